"""Sufficient statistics are small, and they add."""

import jax
import numpy as np
import oracle
import pytest
from helpers import DTYPE, D, K, N, array, assert_close, blobs, double, start_from_labels

import jaxgmm as jg

FIELDS = ("log_likelihood", "count", "first", "second", "origin")


def assert_same_statistics(actual, expected, **tolerances):
    for field in FIELDS:
        assert_close(getattr(actual, field), getattr(expected, field), **tolerances)


def diagonal_if(second, like):
    return np.einsum("kii->ki", second) if like.ndim == 2 else second


@pytest.fixture
def statistics(covariance_type):
    x = blobs()
    return jg.e_step(start_from_labels(x, covariance_type), array(x))


def test_statistics_of_parts_add_to_those_of_the_whole(covariance_type, statistics):
    x = blobs()
    mixture = start_from_labels(x, covariance_type)
    first, second = x.copy(), x.copy()
    in_first = np.arange(N) < 33
    parts = [
        jg.e_step(mixture, array(part), array(weights.astype(float)))
        for part, weights in ((first, in_first), (second, ~in_first))
    ]
    assert_same_statistics(parts[0] + parts[1], statistics)


def test_addition_is_the_sum_over_a_list(statistics):
    assert_same_statistics(
        statistics + statistics + statistics,
        jg.SufficientStatistics(
            log_likelihood=3 * statistics.log_likelihood,
            count=3 * statistics.count,
            first=3 * statistics.first,
            second=3 * statistics.second,
            origin=statistics.origin,
        ),
    )


def test_statistics_about_different_origins_do_not_add(statistics):
    with pytest.raises(ValueError, match="origin"):
        statistics + statistics.about(statistics.origin + 1)


def test_full_and_diagonal_second_moments_do_not_add():
    x = blobs()
    mixture = start_from_labels(x, "full")
    with pytest.raises(ValueError, match="second moments"):
        jg.e_step(mixture, array(x)) + jg.e_step(mixture, array(x), covariance_type="diag")


def test_moving_the_origin_equals_summing_about_the_new_one(covariance_type):
    x, random = blobs(), np.random.default_rng(0)
    shares = random.dirichlet(np.ones(K), size=N)
    origin, other = random.normal(size=(2, K, D))
    there = jg.accumulate(
        array(x), array(shares), covariance_type=covariance_type, origin=array(other)
    )
    here = jg.accumulate(
        array(x), array(shares), covariance_type=covariance_type, origin=array(origin)
    )
    assert_same_statistics(here.about(array(other)), there)
    assert_same_statistics(here.about(array(other)).about(array(origin)), here)


def test_accumulate_is_the_weighted_sum(covariance_type):
    x, random = blobs(), np.random.default_rng(0)
    shares = random.dirichlet(np.ones(K), size=N)
    weights, origin = random.uniform(size=N), random.normal(size=(K, D))
    actual = jg.accumulate(
        array(x),
        array(shares),
        array(weights),
        covariance_type=covariance_type,
        origin=array(origin),
    )
    expected = oracle.accumulate(x, shares, weights, origin)
    assert_close(actual.count, expected.count)
    assert_close(actual.first, expected.first)
    assert_close(actual.second, diagonal_if(expected.second, actual.second))
    assert actual.log_likelihood == 0
    assert all(leaf.dtype == DTYPE for leaf in jax.tree.leaves(actual))


def test_accumulate_without_an_origin_is_about_the_means(covariance_type):
    x = blobs()
    shares = np.random.default_rng(0).dirichlet(np.ones(K), size=N)
    actual = jg.accumulate(array(x), array(shares), covariance_type=covariance_type)
    means = shares.T @ x / shares.sum(axis=0)[:, None]
    assert_close(actual.origin, means)
    assert_close(
        actual.first, np.zeros((K, D)), rtol=0, atol=1e-3 if np.float32 == DTYPE else 1e-11
    )


def test_accumulated_responsibilities_of_a_mixture_are_its_e_step(covariance_type, statistics):
    x = blobs()
    mixture = start_from_labels(x, covariance_type)
    elsewhere = jg.accumulate(
        array(x),
        mixture.responsibilities(array(x)),
        covariance_type=covariance_type,
        origin=mixture.means,
    )
    for field in FIELDS[1:]:
        assert_close(getattr(elsewhere, field), getattr(statistics, field))


def test_nothing_cancels_far_from_the_origin():
    """Second moments about the means keep their digits where those about zero lose them."""
    offset = 2.0**12
    x = double(array(blobs() + offset))
    shares = np.eye(K)[np.arange(N) % K]
    actual = jg.accumulate(array(x), array(shares), covariance_type="full")
    expected = oracle.accumulate(x, shares, np.ones(N), double(actual.origin))
    assert_close(actual.second, expected.second)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("responsibilities", np.ones((N - 1, K))),
        ("responsibilities", np.ones(N)),
        ("responsibilities", -np.ones((N, K))),
        ("responsibilities", np.full((N, K), np.nan)),
        ("origin", np.ones((K, D + 1))),
        ("weights", np.ones(N + 1)),
        ("covariance_type", "Full"),
    ],
)
def test_accumulate_refuses(argument, value):
    arguments = {"responsibilities": array(np.ones((N, K))), "covariance_type": "full"}
    value = value if isinstance(value, str) else array(value)
    with pytest.raises(ValueError, match=argument):
        jg.accumulate(array(blobs()), **arguments | {argument: value})
