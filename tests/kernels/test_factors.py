"""Factors and inverses in one launch are those of loops, interpreted step by step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgmm.arrays import matrices
from jaxgmm.arrays.matrices import cholesky, inverse_of_lower
from jaxgmm.kernels import factors
from jaxgmm.kernels.launching import INTERPRETED

pytestmark = pytest.mark.once

EPS = float(jnp.finfo(jnp.float32).eps)


def positive(n_features, *batch, seed=0):
    """Covariances of some rows in units of their own."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(*batch, 3 * n_features, n_features)) * rng.uniform(
        1e-3, 1e3, size=n_features
    )
    return jnp.asarray(np.swapaxes(rows, -1, -2) @ rows / (3 * n_features), jnp.float32)


def singular(n_features):
    """Of one direction, of rounding below zero, of nothing, and of a constant feature."""
    rng = np.random.default_rng(1)
    direction = rng.normal(size=(n_features, 1))
    below = np.eye(n_features) - 1.001 * np.ones((n_features, n_features)) / n_features
    constant = np.eye(n_features)
    constant[-1, -1] = 0
    of_all = [direction @ direction.T, below, np.zeros_like(below), constant]
    return jnp.asarray(np.stack(of_all), jnp.float32)


def both(kernels, function, matrix):
    """What loops and kernels make of a matrix, and how often a kernel is launched for it."""
    kernels(None)
    by_loops = function(matrix)
    kernels(INTERPRETED)
    launches = str(jax.make_jaxpr(function)(matrix)).count("pallas_call")
    return np.asarray(by_loops), np.asarray(function(matrix)), launches


def scale_of(matrix):
    return np.sqrt(np.diagonal(matrix, axis1=-2, axis2=-1))[..., :, None] + 1e-30


@pytest.mark.parametrize("n_features", [4, 5, 16, 33, 64])
def test_factors_are_those_of_a_loop(kernels, n_features):
    matrix = positive(n_features, 3)
    by_loops, by_kernel, launches = both(kernels, cholesky, matrix)
    assert launches == 1
    scale = scale_of(np.asarray(matrix))
    np.testing.assert_allclose(by_kernel / scale, by_loops / scale, atol=64 * EPS)
    assert np.all(np.triu(by_kernel, 1) == 0)


@pytest.mark.parametrize("n_features", [4, 7, 16])
def test_factors_of_singular_matrices_are_floored_alike(kernels, n_features):
    matrix = singular(n_features)
    by_loops, by_kernel, _ = both(kernels, cholesky, matrix)
    assert np.all(np.isfinite(by_kernel))
    pivots, expected = (np.diagonal(of, axis1=-2, axis2=-1) ** 2 for of in (by_kernel, by_loops))
    floors = n_features * EPS * np.diagonal(np.asarray(matrix), axis1=-2, axis2=-1)
    assert np.all(pivots >= (1 - 1e-5) * np.maximum(floors, jnp.finfo(jnp.float32).tiny))
    # Of nothing, and of a constant feature, there is no rounding either.
    np.testing.assert_allclose(pivots[2:], expected[2:], rtol=1e-5)
    again, wanted = (of @ np.swapaxes(of, -1, -2) for of in (by_kernel, by_loops))
    np.testing.assert_allclose(again, wanted, atol=1e-3)


@pytest.mark.parametrize("n_features", [4, 5, 16, 33, 64])
def test_inverses_are_those_of_a_loop(kernels, n_features):
    factor = cholesky(positive(n_features, 2, 3))
    by_loops, by_kernel, launches = both(kernels, inverse_of_lower, factor)
    assert launches == 1
    scale = np.max(np.abs(by_loops), axis=(-2, -1), keepdims=True)
    np.testing.assert_allclose(by_kernel / scale, by_loops / scale, atol=64 * EPS)


def test_what_is_not_finite_stays_with_its_matrix(kernels):
    matrix = positive(5, 3).at[1, 2, 2].set(jnp.nan)
    _, factor, _ = both(kernels, cholesky, matrix)
    assert np.all(np.isfinite(factor[[0, 2]])) and np.any(np.isnan(factor[1]))


@pytest.mark.parametrize("function", [cholesky, inverse_of_lower])
def test_derivatives_are_those_of_loops(kernels, function):
    def slope(matrix):
        return jax.grad(lambda of: jnp.sum(jnp.sin(function(of))))(matrix)

    matrix = positive(4, 2)
    largest = jnp.max(matrix, axis=(1, 2), keepdims=True)
    matrix = matrix / largest + jnp.eye(4)[None]
    matrix = cholesky(matrix) if function is inverse_of_lower else matrix
    by_loops, by_kernel, _ = both(kernels, slope, matrix)
    np.testing.assert_allclose(by_kernel, by_loops, rtol=1e-4, atol=1e-5)


def test_batches_are_one_launch(kernels):
    matrix = positive(4, 2, 3)
    by_loops, by_kernel, launches = both(kernels, jax.vmap(cholesky), matrix)
    assert launches == 1
    np.testing.assert_allclose(by_kernel, by_loops, rtol=1e-5)


@pytest.mark.parametrize("n_features", [1, matrices.TINY, factors.MOST_FEATURES + 1])
def test_few_and_many_features_have_none(kernels, n_features):
    assert both(kernels, cholesky, positive(n_features, 2))[2] == 0


def test_float64_has_none(kernels):
    with jax.enable_x64(True):
        matrix = jnp.asarray(positive(5, 2), jnp.float64)
        assert both(kernels, cholesky, matrix)[2] == 0
        assert both(kernels, inverse_of_lower, matrix)[2] == 0
