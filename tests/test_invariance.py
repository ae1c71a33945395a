"""A fit commutes with the maps of space that its covariance type allows."""

import numpy as np
import oracle
import pytest
from helpers import (
    EPS,
    TIGHT,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    em,
    mixture_from,
    start_from_labels,
)

import jaxgmm as jg
from jaxgmm.fits.kmeans import plus_plus_seeds
from jaxgmm.steps.rows import as_they_are

EXACT = by_dtype(1e-3, 1e-8)
AFFINE = np.array([[2.0, -1.0], [0.5, 3.0]])
ANGLE = 0.7
ROTATION = np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])

SYMMETRIES = {
    "full": AFFINE,
    "tied": AFFINE,
    "diag": np.diag([1e-3, 50.0]),
    "tied_diag": np.diag([1e-3, 50.0]),
    "spherical": 7 * ROTATION,
    "tied_spherical": 7 * ROTATION,
}


def mapped(mixture, matrix, offset):
    """The mixture of A x + b."""
    return oracle.Mixture(
        weights=mixture.weights,
        means=mixture.means @ matrix.T + offset,
        covariances=matrix @ mixture.covariances @ matrix.T,
    )


def assert_commutes(covariance_type, matrix, tolerance=EXACT):
    """em of the mapped data from the mapped start is the mapped em."""
    x = blobs()
    start = start_from_labels(x, covariance_type)
    there = mixture_from(mapped(oracle.dense(start), matrix, 0), covariance_type)
    expected = em(start, x, tol=TIGHT)
    actual = em(there, x @ matrix.T, tol=TIGHT)
    assert actual.status == expected.status == jg.Status.CONVERGED
    assert_same_mixture(
        actual.mixture, mapped(oracle.dense(expected.mixture), matrix, 0), tolerance
    )
    volume = len(x) * np.log(abs(np.linalg.det(matrix)))
    assert_close(
        double(actual.log_likelihood) + volume,
        expected.log_likelihood,
        rtol=0,
        atol=by_dtype(1e-5, 1e-11) * (abs(volume) + abs(float(expected.log_likelihood))),
    )


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e-3, 1e6, 1e12])
def test_units_do_not_matter(covariance_type, scale):
    assert_commutes(covariance_type, scale * np.eye(2))


def test_the_maps_that_a_type_allows_do_not_matter(covariance_type):
    assert_commutes(covariance_type, SYMMETRIES[covariance_type])


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "tied_diag"])
def test_features_may_have_very_different_units(covariance_type):
    assert_commutes(covariance_type, np.diag([1e-9, 1e9]))


@pytest.mark.parametrize("offset", by_dtype((1e2, 1e3, 1e4), (1e4, 1e6, 1e8)))
def test_shifts_do_not_matter(covariance_type, offset):
    """To within 50·eps·(offset/σ); the rounding of the shifted data themselves is not counted."""
    shifted = double(array(blobs() + offset))
    x = shifted - offset
    start = start_from_labels(x, covariance_type)
    there = mixture_from(mapped(oracle.dense(start), np.eye(2), offset), covariance_type)
    expected = em(start, x, tol=TIGHT)
    actual = em(there, shifted, tol=TIGHT)
    narrowest = np.sqrt(np.linalg.eigvalsh(double(expected.mixture.covariances)).min())
    tolerance = max(EXACT, 50 * EPS * offset / narrowest)
    assert actual.status == expected.status == jg.Status.CONVERGED
    there = mapped(oracle.dense(expected.mixture), np.eye(2), offset)
    assert_same_mixture(actual.mixture, there, tolerance)
    assert_close(
        actual.log_likelihood, expected.log_likelihood, rtol=max(by_dtype(1e-5, 1e-9), tolerance)
    )


def test_regularized_fits_do_not_depend_on_units(covariance_type):
    """Regularization has no units."""
    x = blobs()
    start = start_from_labels(x, covariance_type)
    there = mixture_from(mapped(oracle.dense(start), 1e6 * np.eye(2), 0), covariance_type)
    expected = oracle.dense(em(start, x, reg_covar=0.05, tol=TIGHT).mixture)
    actual = em(there, 1e6 * x, reg_covar=0.05, tol=TIGHT)
    assert_same_mixture(actual.mixture, mapped(expected, 1e6 * np.eye(2), 0), EXACT)


def test_float32_far_from_zero_is_as_good_as_double(covariance_type):
    """Covariances within one percent of the float64 fit of the same rounded data."""
    x = (blobs() + 1e4).astype(np.float32)
    start = start_from_labels(double(x), covariance_type)
    r = by_dtype(1e-9, 1e-15) * oracle.variance_of(double(x), covariance_type)
    expected, _ = oracle.em(oracle.dense(start), double(x), covariance_type, 300, None, r)
    assert_same_mixture(em(start, x, tol=TIGHT).mixture, expected, 1e-2)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_the_unit_of_weights_does_not_matter_to_seeds(key, scale):
    weights = np.linspace(0.5, 1, N)
    seeds = [
        plus_plus_seeds(key, as_they_are(array(blobs()), array(weights * unit)), 5)
        for unit in (1, scale)
    ]
    assert_close(*seeds)
    assert len(np.unique(seeds[0], axis=0)) == 5


@pytest.mark.parametrize("init", ["k-means++", "kmeans", "random", "random_from_data"])
def test_a_fit_starts_alike_wherever_the_data_are_and_in_whatever_units(init, key):
    x, scale = blobs(), np.array([1024.0, 2.0**-7])
    options = {"init": init, "covariance_type": "diag", "max_iter": 0}
    here = jg.fit(key, array(x), 3, **options).mixture
    there = jg.fit(key, array(x * scale), 3, **options).mixture
    assert_same_mixture(there, mapped(oracle.dense(here), np.diag(scale), 0), EXACT)
