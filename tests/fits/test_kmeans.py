"""The pieces of k-means: draws in proportion, and the metric found within clusters."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, assert_close, by_dtype

from jaxgmm.fits.kmeans import (
    SMALLEST_DEVIATION,
    Nearest,
    draw_rows,
    lloyd,
    running_sum,
    scaled_within,
)
from jaxgmm.steps.rows import Rows, standardization_of

# Two clusters, of weights 2 and 5: far apart in the first feature, in which they are narrow, and
# alike in the second. The last row is absent.
X = np.array([[0.0, 1], [1, 5], [100, 1], [101, 5], [np.nan, np.inf]])
WEIGHTS = np.array([1.0, 1, 2, 3, 0])


def rows_of(x, isotropic=False):
    x, weights = array(x), array(WEIGHTS)
    return Rows(standardization_of(x, weights, isotropic), x, weights)


def partition_of(rows, numbers=(0, 2)):
    centers = rows.standardization.standardize(rows.x, rows.weights)[jnp.array(numbers)]
    start = Nearest(centers, jnp.ones(2, rows.x.dtype))
    return lloyd(rows, rows, start, 1, 10)


def deviations(rows):
    """What precisions mean in the units of the data."""
    return rows.standardization.scale / jnp.sqrt(scaled_within(rows, partition_of(rows)).precision)


def test_features_are_measured_by_their_deviation_within_clusters():
    of_groups = [
        np.average((X[s] - np.average(X[s], 0, WEIGHTS[s])) ** 2, 0, WEIGHTS[s])
        for s in (slice(0, 2), slice(2, 4))
    ]
    expected = np.sqrt(np.average(of_groups, 0, [2, 5]))
    assert_close(deviations(rows_of(X)), expected, rtol=by_dtype(1e-4, 1e-10))


def test_features_of_one_scale_keep_it():
    assert np.ptp(deviations(rows_of(X, isotropic=True))) == 0


def test_a_feature_that_is_constant_within_clusters_has_a_finite_precision():
    rows = rows_of(np.stack([[0.0, 0, 100, 100, np.inf], X[:, 1]], axis=1))
    precision = scaled_within(rows, partition_of(rows)).precision
    assert_close(precision[0], SMALLEST_DEVIATION**-2)


def test_the_metric_decides_which_center_is_nearest():
    centers, row = array([[0.0, 0], [2, 2]]), array([[0.5, 1.9]])
    for precision, nearest in (([1.0, 1], 1), ([10, 1], 0)):
        assert Nearest(centers, array(precision))(0, row).argmax() == nearest


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 1000])
def test_running_sums(size):
    values = np.random.default_rng(size).uniform(size=size)
    assert_close(running_sum(array(values)), np.cumsum(values), rtol=by_dtype(1e-5, 1e-13))


@pytest.mark.parametrize("n_behind", [0, 1, 30])
def test_rows_are_drawn_in_proportion_to_the_density(n_behind):
    density = np.array([0, 0.1, 0, 0, 0.6, 0.3] + n_behind * [0])
    places = (np.arange(1000) + 0.5) / 1000
    drawn = draw_rows(array(places), array(density))
    counts = np.bincount(drawn, minlength=density.size)
    assert_close(counts, 1000 * density, rtol=0, atol=1)
    assert not counts[density == 0].any()
