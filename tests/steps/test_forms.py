"""Products make what they are accurate for, and nothing else."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, EPS, K, array, assert_close, by_dtype, double, set_budget

import jaxgmm as jg
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.solvers.convergence import expected_gain
from jaxgmm.steps import forms
from jaxgmm.steps.differences import statistics_by_differences
from jaxgmm.steps.features import features_for
from jaxgmm.steps.forms import extent_of, forms_of
from jaxgmm.steps.maximization import maximize
from jaxgmm.steps.problem import ready_to_whiten
from jaxgmm.steps.products import logit_coefficients, statistics_by_products
from jaxgmm.steps.rows import Rows, farthest_rows, largest_distance, standardization_of

BITS = jnp.finfo(DTYPE).bits
RATIOS = 10.0 ** np.arange(9)


def rows_of(x):
    x = array(x)
    weights = jnp.ones_like(x[:, 0])
    return Rows(standardization_of(x, weights, False), x, weights)


def standardized(rows):
    return rows.standardization.standardize(rows.x, rows.weights)


def of_small(rows, structure=None):
    """The extent of rows, however few they are."""
    with pytest.MonkeyPatch.context() as patch:
        set_budget(patch, smallest_pass=0)
        return extent_of(rows, K, structure)


def from_labels(rows, labels, covariance_type):
    """The mixture of the parts of standardized rows."""
    statistics = jg.accumulate(
        standardized(rows), array(np.eye(K)[labels]), covariance_type=covariance_type
    )
    return jg.m_step(statistics, covariance_type, regularization=EPS**2)


def logits_in_double(mixture, z):
    """log w_k + log N(z | μ_k, Σ_k): (N, K)."""
    columns = []
    scale = double(next(iter(vars(mixture.covariance).values())))
    for k in range(K):
        factor = scale[k] if scale.ndim == 3 else np.diag(scale[k])
        whitened = np.linalg.solve(factor, (z - double(mixture.means[k])).T)
        log_det = np.log(np.diag(factor)).sum() + z.shape[1] * np.log(2 * np.pi) / 2
        columns.append(double(mixture.log_weights[k]) - log_det - np.sum(whitened**2, axis=0) / 2)
    return np.stack(columns, axis=1)


def errors(rows, mixture, found):
    """What products about the origin lose of logits, in units of what they may: (N, K)."""
    z = standardized(rows)
    moved = replace(mixture, means=mixture.means - found.origin[None])
    features = features_for(mixture, False)
    logits = logit_coefficients(moved, features).at(features.of(z - found.origin[None])).T
    exact = logits_in_double(mixture, double(z))
    top = exact.max(axis=1, keepdims=True)
    tolerable = forms.LOGIT_ERROR[BITS] * (1 + (top - exact) + np.abs(top) / forms.DEPTH)
    return np.abs(double(logits) - exact) / tolerable


@pytest.mark.parametrize("n_features", [1, 2, 8])
@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_where_the_products_are_used_logits_have_a_stated_error(n_features, covariance_type):
    """Over tighter and tighter clusters, judged in NumPy's float64; and where not, it matters."""
    random = np.random.default_rng(0)
    labels = np.arange(400) % K
    noise = random.normal(size=(400, n_features))
    centers = random.normal(size=(K, n_features))
    accepted = []
    for ratio in RATIOS:
        rows = rows_of(centers[labels] + noise / ratio)
        mixture = from_labels(rows, labels, covariance_type)
        found = forms_of(rows, mixture, of_small(rows))
        kept = ~np.asarray(found.logits_apart)
        assert errors(rows, mixture, found)[:, kept].max(initial=0) <= 1
        accepted.append(kept.all())
    assert accepted == sorted(accepted, reverse=True)
    switches = RATIOS[accepted.index(False)]
    assert by_dtype(10, 1e3) <= switches <= by_dtype(1e3, 1e7)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_one_tight_component_is_the_origin(covariance_type):
    """The others are so wide that they don't mind; with two tight ones, one is left."""
    random = np.random.default_rng(0)
    labels = np.arange(600) % K
    size = by_dtype(1e-3, 1e-6)
    for tight, n_apart in (([1], 0), ([0, 1], 1)):
        widths = np.where(np.isin(np.arange(K), tight), size, 1.0)
        x = random.normal(size=(K, 3))[labels]
        x += random.normal(size=(600, 3)) * widths[labels][:, None]
        rows = rows_of(x)
        mixture = from_labels(rows, labels, covariance_type)
        found = forms_of(rows, mixture, of_small(rows))
        assert np.any(np.all(np.asarray(found.origin) == np.asarray(mixture.means)[tight], axis=1))
        assert np.sum(found.logits_apart) == n_apart
        kept = ~np.asarray(found.logits_apart)
        assert errors(rows, mixture, found)[:, kept].max() <= 1


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "tied_diag"])
def test_heavy_tails_do_not_ask_for_differences(covariance_type):
    """Though a row is as far away as the largest of a million is, the widest component is near."""
    random = np.random.default_rng(0)
    labels = np.arange(900) % K
    noise = random.normal(size=(900, 5)) / np.sqrt(random.chisquare(2, size=(900, 1)) / 2)
    rows = rows_of(3 * random.normal(size=(K, 5))[labels] + noise)
    assert np.abs(standardized(rows)).max() > 8
    structure = STRUCTURES[covariance_type]
    extent = of_small(rows, structure)
    found = forms_of(rows, from_labels(rows, labels, covariance_type), extent)
    assert not np.any(found.logits_apart) and not np.any(found.origin)


def two_components():
    return jg.GaussianMixture.create(
        [0.5, 0.5], np.eye(2).tolist(), np.ones((2, 2)).tolist(), "diag"
    )


def with_far(rows, far):
    return of_small(rows)._replace(farthest=array(far))


def test_a_row_that_is_far_from_all_asks_for_differences_only_where_it_counts():
    rows, mixture = rows_of(np.random.default_rng(0).normal(size=(50, 2))), two_components()
    near, far = [[3.0, -3.0]], [[by_dtype(1e8, 1e12), 0.0]]
    assert not np.any(forms_of(rows, mixture, with_far(rows, near)).logits_apart)
    # The logits of both are rounded by much more than they differ by, and by either form.
    lost = forms_of(rows, mixture, with_far(rows, far)).logits_apart
    assert not np.any(lost)
    nearly_singular = replace(
        mixture,
        covariance=jg.Full(array([[[1, 0], [1, by_dtype(1e-2, 1e-3)]], [[1, 0], [0, 1]]])),
    )
    along = [[by_dtype(3e3, 3e6)] * 2]
    lost = forms_of(rows, nearly_singular, with_far(rows, along)).logits_apart
    assert np.array_equal(lost, [True, False])
    # A prior may make any of them the one that counts.
    prior = rows._replace(log_prior=array(np.zeros((50, 2))))
    assert not np.any(forms_of(prior, mixture, with_far(rows, near)).logits_apart)
    assert np.all(forms_of(prior, mixture, with_far(rows, far)).logits_apart)
    assert np.all(forms_of(rows, mixture, with_far(rows, [[np.nan, 0]])).logits_apart)


def test_a_small_gain_asks_for_moments_apart_and_a_smaller_one_for_logits():
    """As the step from either is too noisy for it to be seen, that from moments much more."""
    rows, mixture = rows_of(np.random.default_rng(0).normal(size=(50, 2))), two_components()
    extent = of_small(rows)
    error = float(jnp.sum(forms.errors_of_step(mixture.weights, losses_of(mixture), 2)))
    enough = error / forms.SHARE_OF_GAIN
    for gain, logits, moments in (
        (2 * enough, False, False),
        (0.1 * enough, False, True),
        (2 * forms.OF_LOGITS * enough, False, True),
        (0.1 * forms.OF_LOGITS * enough, True, True),
    ):
        found = forms_of(rows, mixture, extent, array(gain))
        assert np.all(np.asarray(found.logits_apart) == logits)
        assert np.all(np.asarray(found.moments_apart) == moments)
        assert np.all(np.asarray(found.apart) == moments)


def test_the_noisiest_components_go_apart_by_their_weights():
    """Until the others together, and not each of them, make little enough noise."""
    rows = rows_of(np.random.default_rng(0).normal(size=(50, 2)))
    means, variances = [[1.0, 1.0]] * 4, [[1.0, 1.0]] * 3 + [[0.1, 0.1]]
    weights = [0.3, 0.3, 0.3, 0.1]
    mixture = jg.GaussianMixture.create(weights, means, variances, "diag")
    errors = forms.errors_of_step(mixture.weights, losses_of(mixture), 2)
    assert errors[3] > 10 * errors[0]
    extent = of_small(rows)._replace(farthest=array([[0.0, 0.0]]))
    for n_kept, share in ((4, 1.01 * jnp.sum(errors) / errors[0]), (3, 3.5), (1, 1.5), (0, 0.9)):
        gain = share * errors[0]
        found = forms_of(rows, mixture, extent, gain / forms.SHARE_OF_GAIN)
        assert np.sum(~found.moments_apart) == n_kept
        assert found.moments_apart[3] == (n_kept < 4)
    light = replace(mixture, log_weights=jnp.log(array([0.33, 0.33, 0.33, 1e-4])))
    found = forms_of(rows, light, extent, 3.5 * errors[0] / forms.SHARE_OF_GAIN)
    assert not np.any(found.moments_apart)


def test_moments_stay_where_differences_would_lose_as_much():
    """A nearly singular component whose mean is the origin makes noise in any form."""
    rows = rows_of(np.random.default_rng(0).normal(size=(50, 2)))
    covariance = jg.Full(array([[[1, 0], [1, by_dtype(0.1, 1e-3)]], [[1, 0], [0, 1]]]))
    at_origin = jg.GaussianMixture(jnp.log(array([0.5, 0.5])), array(np.zeros((2, 2))), covariance)
    off_origin = replace(at_origin, means=array([[1e-1, 0], [0, 0]]))
    gain = array(EPS**2)
    extent = of_small(rows)._replace(farthest=array([[0.0, 0.0]]))
    assert not np.any(forms_of(rows, at_origin, extent, gain).moments_apart)
    assert np.array_equal(forms_of(rows, off_origin, extent, gain).moments_apart, [True, False])


def losses_of(mixture):
    return forms.loss_of_moments(mixture, jnp.zeros(mixture.n_features, DTYPE))


@pytest.mark.parametrize("n_features", [2, 6])
def test_a_step_by_products_errs_by_little_more_than_is_said(n_features):
    """Judged by a step by differences, which loses nothing of this size."""
    random = np.random.default_rng(0)
    labels = np.arange(3000) % K
    centers = random.normal(size=(K, n_features))
    rows = rows_of(centers[labels] + by_dtype(1e-2, 1e-4) * random.normal(size=(3000, n_features)))
    mixture = ready_to_whiten(from_labels(rows, labels, "full"))
    steps = [
        maximize(STRUCTURES["full"], statistics, None, jnp.zeros(n_features, DTYPE))
        for statistics in (
            statistics_by_products(rows, mixture, True, None),
            statistics_by_differences(rows, mixture, True),
        )
    ]
    error = jnp.sum(expected_gain(*steps))
    losses = forms.loss_of_moments(mixture, jnp.zeros(n_features, DTYPE))
    said = jnp.sum(forms.errors_of_step(mixture.weights, losses, n_features))
    assert 1e-4 * said < error < 4 * said
    found = forms_of(rows, mixture, of_small(rows))
    errors = forms.errors_of_step(
        mixture.weights, forms.loss_of_moments(mixture, found.origin), n_features
    )
    of_logits = np.where(found.logits_apart, 0, forms.OF_LOGITS)
    expected = np.sum(np.where(found.moments_apart, of_logits, 1) * np.asarray(errors))
    assert_close(found.error, expected, rtol=1e-3)


def test_components_that_share_a_covariance_go_together_for_a_small_gain():
    random = np.random.default_rng(0)
    labels = np.arange(300) % K
    rows = rows_of(random.normal(size=(K, 2))[labels] + 0.3 * random.normal(size=(300, 2)))
    mixture = from_labels(rows, labels, "tied_diag")
    extent = of_small(rows, STRUCTURES["tied_diag"])
    kept = forms_of(rows, mixture, extent)
    assert not np.any(kept.apart) and kept.error > 0
    enough = kept.error / forms.SHARE_OF_GAIN
    assert not np.any(forms_of(rows, mixture, extent, 1.1 * enough).apart)
    apart = forms_of(rows, mixture, extent, 0.9 * enough)
    assert np.all(apart.logits_apart) and np.all(apart.moments_apart) and apart.error == 0


def test_statistics_for_any_use_are_exact_component_by_component():
    """A light one is as exact as a heavy one, whatever its part in a step is."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2000, 4))
    x[:10] = 1 + by_dtype(0.05, 1e-3) * random.normal(size=(10, 4))
    rows = rows_of(x)
    mixture = from_labels(rows, np.where(np.arange(2000) < 10, 0, 1 + np.arange(2000) % 2), "full")
    wide = replace(mixture, means=mixture.means.at[1:].set(0.1 * mixture.means[1:]))
    extent = of_small(rows)
    assert not forms_of(rows, wide, extent, array(1.0)).moments_apart[0]
    found = forms_of(rows, wide, extent, None)
    assert found.moments_apart[0] or np.any(found.origin)


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0], [np.inf, 1.0, 1.0], [np.nan, 2.0, 0.0]])
def test_sums_in_ascending_order(values):
    found = np.asarray(forms.up_to(array(values)))
    expected = {3.0: [6, 1, 3], np.inf: [np.inf, 1, 2]}.get(values[0], [np.nan, 2, 0])
    assert np.array_equal(found, expected, equal_nan=True)


def test_moments_stand_more_than_logits():
    rows = rows_of(np.random.default_rng(0).normal(size=(50, 2)))
    widths = by_dtype([1.0, 3e-2, 3e-2, 1e-4], [1.0, 8.5e-4, 8.5e-4, 1e-7])
    mixture = jg.GaussianMixture.create(
        [0.25] * 4, [[0, 0], [1, 0], [0, 1], [-1, 1]], np.square(widths).tolist(), "spherical"
    )
    found = forms_of(rows, mixture, of_small(rows))
    assert np.array_equal(found.origin, mixture.means[3])
    assert np.array_equal(found.logits_apart, [False, True, True, False])
    assert not np.any(found.moments_apart)
    without = replace(mixture, means=mixture.means.at[1].set(mixture.means[3] + 1))
    tighter = replace(without.covariance, scale=without.covariance.scale.at[1].set(widths[3]))
    found = forms_of(rows, replace(without, covariance=tighter), of_small(rows))
    assert np.sum(found.moments_apart) == 1 and np.sum(found.logits_apart) == 2


@pytest.mark.parametrize("n_rows", [40, 5000])
def test_the_farthest_rows_are_those_of_each_feature(n_rows):
    """Of rows with a weight, in one chunk or several."""
    random = np.random.default_rng(0)
    x = random.normal(size=(n_rows, 3))
    places = [n_rows - 1, 7, 20]
    x[places, [0, 1, 2]] = [30, -40, 50]
    x[11] = 1e6
    x, weights = array(x), array(np.where(np.arange(n_rows) == 11, 0, 1.0))
    rows = Rows(standardization_of(x, weights, False), x, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxgmm.steps.rows.chunk_size", lambda *_: min(n_rows, 700))
        found = farthest_rows(rows, 16)
        most = farthest_rows(rows, 2)
    assert np.array_equal(found, standardized(rows)[np.array(places)])
    size = np.abs(np.asarray(found)).max(axis=1)
    assert np.array_equal(most, np.asarray(found)[np.argsort(-size)[:2]])


def test_a_dead_component_asks_for_nothing():
    """Though it is as tight as no other, and far away."""
    rows, mixture = rows_of(np.random.default_rng(0).normal(size=(50, 2))), two_components()
    dead = replace(
        mixture,
        log_weights=mixture.log_weights.at[0].set(-jnp.inf),
        means=mixture.means.at[0].set(by_dtype(1e3, 1e6)),
        covariance=replace(
            mixture.covariance, scale=mixture.covariance.scale.at[0].set(by_dtype(1e-4, 1e-7))
        ),
    )
    found = forms_of(rows, dead, of_small(rows))
    assert not np.any(found.logits_apart) and not np.any(found.origin)
    tied = jg.GaussianMixture(dead.log_weights, dead.means, jg.Diagonal(jnp.ones((1, 2), DTYPE)))
    found = forms_of(rows, tied, of_small(rows, STRUCTURES["tied_diag"]))
    assert not np.any(found.logits_apart)


def test_what_is_not_a_number_is_found_in_any_chunk():
    x = np.random.default_rng(0).normal(size=(30, 2))
    x[3, 1] = np.nan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxgmm.steps.rows.chunk_size", lambda *_: 10)
        found = largest_distance(array(x), jnp.ones(30, DTYPE), jnp.zeros(2, DTYPE))
    assert np.array_equal(np.isnan(found), [False, True])
