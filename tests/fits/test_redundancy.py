"""Features that are constant or follow from others are found, and no others."""

import warnings

import jax
import numpy as np
import pytest
from helpers import array, blobs

import jaxgmm as jg
from jaxgmm.fits.redundancy import MOST_CORRELATED, Redundancy, described, redundant_features

N = 200
RANDOM = np.random.default_rng(0)
A, B, C = RANDOM.normal(size=(3, N)) + np.array([[0.0], [5.0], [-300.0]])


def found(*columns, dtype=np.float64, **options):
    return redundant_features(np.stack(columns, axis=-1).astype(dtype), **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "constant", [np.zeros(N), np.full(N, 2020.0), np.full(N, -1e-30), np.full(N, 1e30)]
)
def test_constant_feature_is_found(constant, dtype):
    assert found(A, constant, B, dtype=dtype) == [Redundancy(1)]


def test_feature_that_is_constant_up_to_rounding_is_found():
    tenths = np.where(np.arange(N) % 2, 0.3, 0.1 + 0.2)
    assert tenths[0] != tenths[1]
    assert found(A, tenths) == [Redundancy(1)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_linear_functions_of_earlier_features_are_found_and_their_sources(dtype):
    assert found(A, B, A, dtype=dtype) == [Redundancy(2, (0,), True)]
    assert found(A, B, 32 - 1.8 * A, dtype=dtype) == [Redundancy(2, (0,))]
    assert found(A, C, B, A + B, dtype=dtype) == [Redundancy(3, (0, 2))]
    assert found(A, A, B, 2 * B, A, A - 3 * B, dtype=dtype) == [
        Redundancy(1, (0,), True),
        Redundancy(3, (2,)),
        Redundancy(4, (0,), True),
        Redundancy(5, (0, 2)),
    ]


def test_sums_of_rounded_numbers_are_found():
    """As a table with two decimals has them; and shares of a whole."""
    a, b, c = (np.round(part, 2) for part in (A, B, C))
    assert found(a, b, c, np.round(a + b + c, 2)) == [Redundancy(3, (0, 1, 2))]
    shares = np.round(RANDOM.dirichlet(np.ones(4), size=N) * 100, 1).T
    assert found(*shares[:3], 100 - shares[:3].sum(axis=0)) == [Redundancy(3, (0, 1, 2))]
    hours = 1.7e9 + 1e3 * np.round(A, 3)
    assert found(hours, b, hours + b) == [Redundancy(2, (0, 1))]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_features_with_something_of_their_own_are_kept(dtype, offset):
    few_alarms = (np.arange(N) < 3).astype(float)
    all_zero_but_one = (np.arange(N) == N - 1) * 1e-3
    noisy = A + 1e-2 * B
    columns = [A, few_alarms, all_zero_but_one, noisy, A * B, A**2]
    assert found(*(column + offset for column in columns), dtype=dtype) == []


def test_nearly_collinear_features_are_kept_and_copies_of_them_found():
    near = A + 1e-5 * B
    assert found(A, near, near) == [Redundancy(2, (1,), True)]


def test_tolerance_is_that_of_degenerate_components():
    """Between what a component's covariance can still hold, and what it can't."""
    assert found(A, B, A + B + 1e-9 * C) == [Redundancy(2, (0, 1))]
    assert found(A, B, A + B + 1e-6 * C) == []
    assert found(A, B, A + B + 1e-6 * C, dtype=np.float32) == [Redundancy(2, (0, 1))]


def test_more_features_than_rows_are_redundant_only_as_copies():
    x = RANDOM.normal(size=(20, 60))
    x[:, 7], x[:, 50] = 3.0, x[:, 11]
    expected = [Redundancy(7), Redundancy(50, (11,), True)]
    assert redundant_features(x) == expected
    assert redundant_features(np.repeat(x, 10, axis=0)) == expected
    wide = RANDOM.normal(size=(2, MOST_CORRELATED + 1))
    assert redundant_features(np.concatenate([wide] * 1100)) == []


def test_rare_values_and_rare_differences_are_seen_among_many_rows():
    n_rows = 20_000
    a, b = np.random.default_rng(1).normal(size=(2, n_rows))
    alarm = (np.arange(n_rows) == 77).astype(float)
    once = a.copy()
    once[78] += 1.0
    assert found(a, b, 1e9 + alarm, once) == []
    assert found(a, b, 1e9 + alarm, 2 * b) == [Redundancy(3, (1,))]


def test_without_linear_functions_only_constant_features_count():
    assert found(A, A, np.ones(N), linear=False) == [Redundancy(2)]


def test_rows_without_weight_do_not_count():
    weights = (np.arange(N) < N - 50).astype(float)
    constant, copy = np.where(weights > 0, 7.0, A), np.where(weights > 0, A, B)
    assert found(A, constant, copy) == []
    assert found(A, constant, copy, weights=weights) == [Redundancy(1), Redundancy(2, (0,), True)]


def test_numbers_without_a_finite_difference_are_no_trouble():
    huge = np.where(np.arange(N) % 2, 1.7e308, -1.7e308)
    assert found(A, huge, A) == [Redundancy(2, (0,), True)]


def test_reasons_are_told_in_words():
    reasons = [Redundancy(0), Redundancy(2, (1,), True), Redundancy(3, (1, 4))]
    assert described(reasons, "abcde".__getitem__) == (
        "a is constant, c is a copy of b, d follows from b, e"
    )
    assert described(reasons, str, most=1) == "0 is constant, and 2 more"


def select(x, types):
    return jg.select(jax.random.key(0), array(x), [1, 2], types, n_init=1)


def test_select_names_the_features_that_make_all_fits_degenerate():
    x = blobs()
    with pytest.warns(UserWarning, match="type full, diag is degenerate .* feature 1 is constant;"):
        selection = select(np.c_[x[:, 0], np.full(len(x), 7.0)], ["full", "diag", "spherical"])
    assert selection.best.mixture.covariance_type == "spherical"
    with pytest.warns(UserWarning, match="type full is degenerate .* feature 1 is a copy of featu"):
        selection = select(np.c_[x[:, 0], x[:, 0]], ["full", "diag", "spherical"])
    assert selection.best.mixture.covariance_type != "full"


def test_select_is_silent_where_features_are_not_to_blame():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select(blobs(), ["full", "diag", "spherical"]).best.converged
        points = np.repeat(np.eye(2), 3, axis=0)
        assert (
            select(points, ["full", "diag", "spherical"]).table["status"][3] == jg.Status.DEGENERATE
        )
