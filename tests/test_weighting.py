"""The unit of sample weights changes nothing but what is a sum of them.

Scales are powers of two, which round nothing, so that results are equal to the last digit.
"""

import jax
import numpy as np
import pytest
from helpers import DTYPE, K, N, array, assert_close, blobs, by_dtype, double, em, start_from_labels

import jaxgmm as jg
from jaxgmm.arrays.numerics import in_own_unit

WEIGHTS = double(array(np.random.default_rng(3).uniform(0.5, 1.0, size=N)))
FURTHEST = by_dtype(2.0**123, 2.0**1020)
FAR = by_dtype(2.0**90, 2.0**900)


@pytest.fixture
def start():
    return start_from_labels(blobs(), "full")


def assert_equal(actual, expected):
    for leaf, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("scale", [FURTHEST, 1 / FURTHEST])
def test_fits_in_any_unit_are_the_same(start, key, scale):
    x = array(blobs())

    def fits(weights):
        return (
            em(start, x, weights).mixture,
            jg.fit(key, x, K, weights=array(weights)).mixture,
            jg.fit_batch(key, x[None], K, weights=array(weights)[None]).mixture,
            jg.fit_gradient(start, x, weights=array(weights)).mixture,
            jg.select(key, x, [K], ["full"], n_init=1, weights=array(weights)).best.mixture,
            jax.jit(lambda w: jg.em(start, x, weights=w))(array(weights)).status,
        )

    assert_equal(fits(scale * WEIGHTS), fits(WEIGHTS))


@pytest.mark.parametrize("scale", [FAR, 1 / FAR])
def test_sums_over_rows_are_in_the_unit_of_the_weights(start, key, scale):
    x = array(blobs())

    def sums(weights):
        weights = array(weights)
        fit = jg.fit_batch(key, x[None], K, weights=weights[None], history=True)
        return (
            (fit.log_likelihood, fit.objective, fit.history),
            jg.e_step(start, x, weights).second,
            jg.accumulate(x, start.responsibilities(x), weights, covariance_type="full").second,
            jg.log_likelihood(start, x, weights),
            jg.observed_information(start, x, weights),
        )

    assert_equal(sums(scale * WEIGHTS), jax.tree.map(lambda leaf: scale * leaf, sums(WEIGHTS)))
    assert np.isfinite(jg.bic(start, x, array(scale * WEIGHTS)))
    table = jg.select(key, x, [K], ["full"], n_init=1, weights=array(scale * WEIGHTS)).table
    assert np.isfinite(table["bic"]).all()


@pytest.mark.parametrize("kind", ["sandwich", "information"])
def test_standard_errors_are_those_of_repeated_rows(start, key, kind):
    x, mixture = array(blobs()), em(start, blobs(), WEIGHTS).mixture
    once = jg.standard_errors(mixture, x, array(WEIGHTS), kind=kind)
    often = jg.standard_errors(mixture, x, array(2.0**100 * WEIGHTS), kind=kind)
    assert_equal(often, jax.tree.map(lambda leaf: 2.0**-50 * leaf, once))


@pytest.mark.parametrize("scale", [FAR, 1 / FAR])
def test_derivatives_with_respect_to_weights_are_in_the_inverse_unit(start, scale):
    """Of the largest weight, too, which sets the unit."""
    x = array(blobs())

    def spread(weights):
        result = jg.em(start, x, weights=weights)
        return result.mixture.means.sum(), result.log_likelihood

    slopes = jax.jacrev(spread)
    expected = slopes(array(WEIGHTS))
    actual = slopes(array(scale * WEIGHTS))
    assert_close(actual[0] * scale, expected[0], rtol=by_dtype(1e-5, 1e-11))
    assert_close(actual[1], expected[1], rtol=by_dtype(1e-5, 1e-11))
    assert np.all(double(expected[0]) != 0)


def test_the_unit_is_the_power_of_two_below_the_largest_weight():
    weights = array([[0.0, 3.0, 0.5], [0.0, 0.0, 0.0], [np.inf, 1.0, 1.0], [np.nan, 1.0, 1.0]])
    own, unit = in_own_unit(weights)
    assert unit.tolist() == [2, 1, 1, 1] and own.dtype == unit.dtype == DTYPE
    assert own[0].tolist() == [0, 1.5, 0.25]


def test_weights_that_are_computed_with_as_zero_are_refused(start):
    with pytest.raises(ValueError, match=r"weights are all zero.* not below"):
        em(start, blobs(), np.full(N, by_dtype(1e-40, 1e-310)))
