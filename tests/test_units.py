"""Derivatives and standard errors are linear in the units of the data and in the cotangent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, array, assert_close, by_dtype

import jaxgmm as jg

N_ROWS = 60
# Units whose squares, and those of what small data make of them, the dtype can hold.
UNITS = by_dtype((1e-14, 1e-10, 1e-6, 1e10, 1e17), (1e-130, 1e-80, 1e80, 1e140))
COTANGENTS = by_dtype((1e-28, 1e-20, 1e20, 1e34), (1e-280, 1e-160, 1e160, 1e290))
CLOSE = by_dtype(1e-4, 1e-9)


def two_clusters():
    noise = np.random.default_rng(0).normal(size=(N_ROWS, 2))
    return noise + np.where(np.arange(N_ROWS)[:, None] < N_ROWS // 2, 0.0, 3.0)


def start_in(unit, covariance_type="full"):
    variances = {"full": np.stack([np.eye(2)] * 2), "spherical": np.ones(2)}[covariance_type]
    start = jg.GaussianMixture.create(
        [0.5, 0.5], [[0.0, 0.0], [3.0, 3.0]], variances.tolist(), covariance_type
    )
    start = jax.tree.map(lambda leaf: leaf.astype(DTYPE), start)
    # The map is linear in the factor, so that no square of the unit is made.
    covariance = jax.tree.map(lambda leaf: unit * leaf, start.covariance)
    return jg.GaussianMixture(start.log_weights, unit * start.means, covariance)


@jax.jit
def derivatives(x, start, cotangent):
    """Of weights, means and covariances, each times the cotangent."""

    def parts(x):
        mixture = jg.em(start, x, history=False).mixture
        weights, means = mixture.weights[0], mixture.means[:, 0].sum()
        return weights, means, mixture.covariances.sum()

    back = jax.vjp(parts, x)[1]
    zero = jnp.zeros_like(cotangent)
    rows = (cotangent, zero, zero), (zero, cotangent, zero), (zero, zero, cotangent)
    return [back(row)[0] for row in rows]


@pytest.fixture(scope="module")
def at_one():
    return derivatives(array(two_clusters()), start_in(1.0), array(1.0))


@pytest.mark.parametrize("unit", UNITS)
def test_derivatives_of_a_fit_are_linear_in_the_unit(unit, at_one):
    x = array(unit * two_clusters())
    for power, found, expected in zip(
        (-1, 0, 1), derivatives(x, start_in(unit), array(1.0)), at_one, strict=True
    ):
        scaled = np.asarray(found, float) * float(unit) ** -power
        assert_close(scaled, expected, rtol=0, atol=CLOSE * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("cotangent", COTANGENTS)
def test_derivatives_of_a_fit_are_linear_in_the_cotangent(cotangent, at_one):
    found = derivatives(array(two_clusters()), start_in(1.0), array(cotangent))
    for actual, expected in zip(found, at_one, strict=True):
        scaled = np.asarray(actual, float) / cotangent
        assert_close(scaled, expected, rtol=0, atol=CLOSE * float(jnp.abs(expected).max()))


def test_standard_errors_are_linear_in_the_unit():
    x = two_clusters() + np.where(np.arange(N_ROWS)[:, None] < N_ROWS // 2, 0.0, 6.0)
    errors = jax.jit(jg.standard_errors)
    mixture = jg.em(start_in(1.0), array(x), history=False).mixture
    expected = errors(mixture, array(x))
    assert np.all(np.isfinite(expected.covariances))
    for unit in UNITS:
        covariance = jg.Full(unit * mixture.covariance.scale_tril)
        moved = jg.GaussianMixture(mixture.log_weights, unit * mixture.means, covariance)
        found = errors(moved, array(unit * x))
        assert_close(found.weights, expected.weights, rtol=CLOSE)
        assert_close(np.asarray(found.means, float) / unit, expected.means, rtol=CLOSE)
        per_square = np.asarray(found.covariances, float) / unit / unit
        assert_close(per_square, expected.covariances, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("covariance_type", ["full", "spherical"])
def test_starts_of_another_unit_than_the_data_leave_all_finite(covariance_type):
    """Such as of an embedding that has vanished: its fit is degenerate at worst."""

    @jax.jit
    def fitted(x):
        def log_likelihood(x):
            start = start_in(1.0, covariance_type)
            result = jg.em(start, x, max_iter=50, history=False)
            return result.mixture.means.sum(), result.status

        (_, status), slope = jax.value_and_grad(log_likelihood, has_aux=True)(x)
        return status, jnp.all(jnp.isfinite(slope))

    for unit in by_dtype((0.0, 1e-40, 1e-30, 1e-20, 1e20, 1e30), (0.0, 1e-310, 1e-200, 1e200)):
        status, finite = fitted(array(unit * two_clusters()))
        assert status != jg.Status.NON_FINITE and finite, unit
