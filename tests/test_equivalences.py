"""Different ways to say the same thing give the same fit."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    COVARIANCE_TYPES,
    DTYPE,
    LABELS,
    TIGHT,
    K,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    cloud,
    double,
    em,
    padded,
    start_from_labels,
    start_from_shares,
)

import jaxgmm as jg
from jaxgmm.fits.initialization import STARTS
from jaxgmm.fits.kmeans import plus_plus_seeds, subsample
from jaxgmm.steps.rows import Rows, standardization_of

RELATIVE = by_dtype(2e-5, 1e-11)
SAME = by_dtype(1e-3, 1e-8)


def permuted(mixture, order):
    """The mixture with its components in another order."""
    leading = mixture.means.shape[0]
    return jax.tree.map(lambda leaf: leaf[order] if leaf.shape[0] == leading else leaf, mixture)


def assert_same_fit(actual, expected, tolerance=SAME):
    assert actual.status == expected.status
    assert abs(int(actual.n_iter) - int(expected.n_iter)) <= 1
    assert_same_mixture(actual.mixture, expected.mixture, tolerance)


def test_weights_are_repetitions(covariance_type):
    """Rows that stand twice are rows of weight 2."""
    x = blobs()[::2]
    start = start_from_labels(blobs(), covariance_type)
    repeated = em(start, np.repeat(x, 2, axis=0), tol=TIGHT)
    weighted = em(start, *padded(x, np.full(len(x), 2.0)), tol=TIGHT)
    assert_same_fit(weighted, repeated)
    assert_close(weighted.log_likelihood, repeated.log_likelihood, rtol=RELATIVE)


def test_a_row_of_weight_zero_is_no_row(covariance_type):
    """Even when it holds NaN, and whatever the other weights are."""
    x, random = blobs(), np.random.default_rng(0)
    weights = double(array(random.uniform(0.5, 2, size=N)))
    absent = random.permutation(N)[:25]
    present = np.setdiff1d(np.arange(N), absent)
    start = start_from_labels(x, covariance_type)
    holey, zeroed = x.copy(), weights.copy()
    holey[absent], zeroed[absent] = np.nan, 0
    result = em(start, holey, zeroed, tol=TIGHT)
    x, weights = x[present], weights[present]
    expected, objectives = oracle.em(oracle.dense(start), x, covariance_type, 300, weights)
    assert result.converged
    assert_same_mixture(result.mixture, expected, SAME)
    assert_close(result.log_likelihood, objectives[-1], rtol=RELATIVE)
    assert_close(
        jg.log_likelihood(result.mixture, array(holey), array(zeroed)), objectives[-1], RELATIVE
    )


def test_a_removed_row_is_removed_from_a_fit_of_another_shape():
    x = blobs()
    start = start_from_labels(x, "tied_spherical")
    shorter = jg.em(start, array(x[:60]), tol=TIGHT)
    assert_same_fit(em(start, *padded(x[:60]), tol=TIGHT), shorter)


def test_the_order_of_rows_does_not_matter(covariance_type):
    x = blobs()
    start = start_from_labels(x, covariance_type)
    order = np.random.default_rng(0).permutation(N)
    assert_same_fit(em(start, x[order], tol=TIGHT), em(start, x, tol=TIGHT))


def test_the_order_of_components_is_that_of_the_start(covariance_type):
    x = blobs()
    start = start_from_labels(x, covariance_type)
    order = np.array([2, 0, 1])
    expected = em(start, x, tol=TIGHT)
    actual = em(permuted(start, order), x, tol=TIGHT)
    assert_same_fit(actual, with_components(expected, order))


def with_components(result, order):
    """A result with its components in another order."""
    leaves = {name: getattr(result, name) for name in vars(result)}
    return jg.FitResult(**leaves | {"mixture": permuted(result.mixture, order)})


@pytest.mark.parametrize("factor", [1e6, 1e-6])
def test_scaling_the_weights_scales_only_the_log_likelihood(covariance_type, factor):
    x = blobs()
    start = start_from_labels(x, covariance_type)
    weights = double(array(np.random.default_rng(0).uniform(0.5, 2, size=N)))
    expected = em(start, x, weights, tol=TIGHT)
    actual = em(start, x, factor * weights, tol=TIGHT)
    assert_same_fit(actual, expected)
    assert_close(actual.log_likelihood, factor * double(expected.log_likelihood), rtol=RELATIVE)
    assert_close(actual.objective, factor * double(expected.objective), rtol=RELATIVE)


def test_duplicated_data_have_the_same_fit_and_twice_the_log_likelihood(covariance_type):
    x = blobs()[::2]
    start = start_from_labels(blobs(), covariance_type)
    once = em(start, *padded(x), tol=TIGHT)
    twice = em(start, np.concatenate([x, x]), tol=TIGHT)
    assert_same_fit(twice, once)
    assert_close(twice.log_likelihood, 2 * double(once.log_likelihood), rtol=RELATIVE)


def test_repetition_does_not_change_the_regularization(covariance_type):
    """Nor does any other scale of the weights: rare components are not inflated."""
    x = blobs()
    start = start_from_labels(x, covariance_type)
    results = [em(start, x, np.full(N, w), reg_covar=0.05, tol=TIGHT) for w in (1.0, 1e4)]
    assert_same_fit(*results)


@pytest.fixture(scope="module")
def symmetric():
    """Every row with its mirror images in both features, around three centers."""
    quarter = 1 + np.random.default_rng(0).uniform(size=(7, 2))
    quarter[:, 1] = quarter[:, 0]
    mirrored = np.concatenate([quarter * [a, b] for a in (1, -1) for b in (1, -1)])
    centers = np.array([[0.0, 0.0], [40.0, 0.0], [0.0, 40.0]])
    rows = np.concatenate([mirrored + center for center in centers])
    return rows, np.repeat(np.arange(K), len(mirrored))


@pytest.mark.parametrize("covariance_type", [t for t in COVARIANCE_TYPES if t != "full"])
def test_types_agree_with_full_where_the_data_make_them_equal(covariance_type, symmetric):
    """Clusters that are equal, symmetric and round."""
    rows, labels = symmetric
    x, weights = padded(rows)
    shares = 0.9 * np.eye(K)[labels] + 0.1 / K
    full = em(start_from_shares(rows, shares, "full"), x, weights, tol=TIGHT)
    other = em(start_from_shares(rows, shares, covariance_type), x, weights, tol=TIGHT)
    assert full.converged and other.converged
    assert_same_mixture(other.mixture, full.mixture, SAME)
    assert_close(other.log_likelihood, full.log_likelihood, rtol=RELATIVE)


def test_types_of_independent_features_agree_in_one_dimension():
    """D = 1: full, diag and spherical are one model."""
    x = blobs(n_features=1)
    full, diag, spherical = (
        em(start_from_labels(x, name), x, tol=TIGHT) for name in ("full", "diag", "spherical")
    )
    assert_same_fit(diag, full)
    assert_same_fit(spherical, full)


@pytest.mark.parametrize("covariance_type", ["full", "tied_spherical"])
def test_one_component_is_the_sample_mean_and_covariance(covariance_type):
    """With the denominator N. The first step arrives there, the next confirm it."""
    x = blobs()
    one = np.ones((N, 1))
    start = jg.GaussianMixture.create(
        array([1.0]),
        array([[1.0, 1.0]]),
        array([np.eye(2)] if covariance_type == "full" else 3.0),
        covariance_type,
    )
    result = em(start, x)
    origin = x.mean(axis=0)[None]
    expected = oracle.m_step(oracle.accumulate(x, one, np.ones(N), origin), covariance_type)
    assert result.converged and result.n_iter <= 3
    assert_close(result.history[0], result.objective, rtol=RELATIVE)
    assert_same_mixture(result.mixture, expected, by_dtype(2e-5, 1e-12))
    assert result.mixture.log_weights[0] == 0


def test_one_component_is_reached_in_one_m_step(covariance_type):
    x = blobs()
    statistics = jg.accumulate(array(x), array(np.ones((N, 1))), covariance_type=covariance_type)
    origin = x.mean(axis=0)[None]
    expected = oracle.m_step(
        oracle.accumulate(x, np.ones((N, 1)), np.ones(N), origin), covariance_type
    )
    actual = jg.m_step(statistics, covariance_type)
    assert_same_mixture(actual, expected, by_dtype(2e-5, 1e-12))


@pytest.fixture(scope="module")
def batch():
    """Starts, data and their fits in one call; member 2 is nothing but NaN."""
    data = np.stack([blobs(), blobs(seed=1), np.full((N, 2), np.nan), blobs(seed=2)])
    starts = [start_from_labels(blobs(), "full")] * len(data)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    results = jax.vmap(lambda mixture, x: jg.em(mixture, x))(stacked, array(data))
    return starts, data, results


def test_a_batch_is_fitted_as_one_by_one(batch):
    starts, data, results = batch
    for b in (0, 1, 3):
        alone = em(starts[b], data[b])
        assert results[b].converged
        assert_same_fit(results[b], alone)
        assert_close(results[b].log_likelihood, alone.log_likelihood, rtol=RELATIVE)


def test_a_member_of_nan_is_non_finite_and_keeps_its_start(batch):
    starts, _, results = batch
    assert results[2].status == jg.Status.NON_FINITE and not results[2].converged
    assert_same_mixture(results[2].mixture, starts[2], by_dtype(1e-5, 1e-12))
    assert results.status.tolist() == [0, 0, 2, 0]


@pytest.mark.parametrize("init", STARTS)
def test_rows_of_weight_zero_do_not_change_where_a_fit_starts(init, key):
    """With the same key, whatever they hold."""

    @jax.jit
    def partition(x, weights):
        rows = Rows(standardization_of(x, weights, isotropic=False), x, weights)
        responsibilities = STARTS[init](key, rows, jnp.ones(K, bool), jnp.asarray(6))
        return responsibilities(jnp.arange(30), rows.standardization.standardize(x, weights)[:30])

    x = blobs()[::3]
    plain, among_others = partition(array(x), array(np.ones(30))), partition(*padded(x))
    assert_close(among_others, plain)


@pytest.mark.parametrize("size", [7, 29, 30, 60])
def test_a_subsample_is_of_rows_that_are_there_and_of_all_where_they_are_few(size):
    """Spread evenly, and the same whatever rows of weight 0 stand behind."""
    x = np.arange(30.0)[:, None] * [1.0, -1.0]
    weights = 1.0 + np.arange(30)
    samples = []
    for n_rows in (30, 61, 90):
        rows, padded_weights = padded(x, weights, n_rows)
        sample = subsample(Rows(None, rows, padded_weights), size)
        there = np.asarray(sample.weights) > 0
        samples.append((double(sample.x)[there], double(sample.weights)[there]))
    drawn, weights_of_drawn = samples[0]
    assert len(drawn) == min(size, 30)
    steps = np.diff(drawn[:, 0])
    assert steps.max() <= 2 * max(1, 30 / size) and (size < 30 or np.all(steps == 1))
    assert_close(weights_of_drawn, 1 + drawn[:, 0])
    for others in samples[1:]:
        assert np.array_equal(others[0], drawn) and np.array_equal(others[1], weights_of_drawn)


def test_labels_are_recovered(covariance_type):
    """From separated clusters every type finds the partition that made them."""
    x = blobs()
    result = em(start_from_labels(x, covariance_type), x)
    agreement = np.mean(np.asarray(result.mixture.predict(array(x))) == LABELS)
    assert agreement > 0.85 and result.mixture.means.dtype == DTYPE


@pytest.mark.parametrize("anything", [np.nan, np.inf, -np.inf, 1e30])
def test_rows_of_weight_zero_may_hold_anything(covariance_type, anything):
    x = blobs()
    start = start_from_labels(x, covariance_type)
    weights = (np.arange(N) % 4 > 0).astype(float)
    expected = em(start, np.where(weights[:, None] > 0, x, 0), weights)
    actual = em(start, np.where(weights[:, None] > 0, x, anything), weights)
    assert actual.converged and expected.converged
    assert_same_mixture(actual.mixture, expected.mixture)


@pytest.mark.parametrize("factor", [1e16, by_dtype(1e-16, 1e-34)])
def test_any_scale_of_the_weights(factor):
    x, start = blobs(), start_from_labels(blobs(), "full")
    one, other = em(start, x), em(start, x, np.full(N, factor))
    assert other.status == one.status
    assert_same_mixture(other.mixture, one.mixture)


@pytest.mark.parametrize("init", STARTS)
def test_the_scale_of_the_weights_does_not_change_where_a_fit_starts(init, key):
    x = array(blobs()[::9])
    weights = array(np.linspace(0.5, 2, len(x)))
    one, other = (
        jg.fit(key, x, K, weights=factor * weights, init=init, max_iter=0) for factor in (1, 1e3)
    )
    assert_same_mixture(other.mixture, one.mixture, by_dtype(1e-4, 1e-11))


def test_seeds_do_not_depend_on_rows_of_weight_zero():
    """Whatever they hold, and wherever the rows themselves don't tell seeds apart."""

    @jax.jit
    def seeds_of(keys, x, weights):
        rows = Rows(standardization_of(x, weights, isotropic=False), x, weights)
        return jax.vmap(lambda key: plus_plus_seeds(key, rows, K))(keys)

    keys = jax.random.split(jax.random.key(0), 20)
    x = cloud()[::3]
    plain = seeds_of(keys, array(x), array(np.ones(30)))
    assert_close(seeds_of(keys, *padded(x)), plain)
