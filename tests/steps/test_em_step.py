"""The E-step and the M-step are the textbook's, for every covariance type."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    DTYPE,
    EPS,
    LABELS,
    D,
    K,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    start_from_labels,
)

import jaxgmm as jg
from jaxgmm.covariances.storage import with_inverse
from jaxgmm.covariances.structures import STRUCTURES

pytestmark = pytest.mark.quick

RELATIVE = by_dtype(3e-5, 1e-11)
WEIGHTS = double(array(np.random.default_rng(3).uniform(0, 2, size=N)))


@pytest.fixture
def x():
    return blobs()


@pytest.fixture
def mixture(x, covariance_type):
    return start_from_labels(x, covariance_type)


def assert_statistics(actual, expected, log_likelihood):
    second = expected.second
    if actual.second.ndim == 2:
        second = np.einsum("kii->ki", second)
    assert_close(actual.log_likelihood, log_likelihood, rtol=RELATIVE)
    assert_close(actual.count, expected.count, rtol=0, atol=RELATIVE * expected.count.max())
    assert_close(actual.first, expected.first, rtol=0, atol=RELATIVE * np.abs(second).max())
    assert_close(actual.second, second, rtol=0, atol=RELATIVE * np.abs(second).max())
    assert all(leaf.dtype == DTYPE for leaf in jax.tree.leaves(actual))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_e_step_is_the_oracles(x, mixture, weights):
    reference = oracle.dense(mixture)
    actual = jg.e_step(mixture, array(x), None if weights is None else array(weights))
    expected = oracle.e_step(reference, x, weights)
    assert_statistics(actual, expected, oracle.log_likelihood(reference, x, weights))


def test_counts_add_up_to_the_total_weight(x, mixture):
    assert_close(jnp.sum(jg.e_step(mixture, array(x)).count), N)


def test_moments_are_about_the_means_of_the_mixture(x, mixture):
    assert np.array_equal(jg.e_step(mixture, array(x)).origin, mixture.means)


def test_the_second_moment_is_the_one_the_type_needs(x, mixture, covariance_type):
    full = STRUCTURES[covariance_type].full_second_moment
    assert jg.e_step(mixture, array(x)).second.shape == ((K, D, D) if full else (K, D))


@pytest.mark.parametrize("regularization", [None, [0.3, 0.1]], ids=["plain", "regularized"])
def test_m_step_is_the_oracles(x, mixture, covariance_type, regularization):
    matrix = None if regularization is None else np.diag(regularization)
    actual = jg.m_step(
        jg.e_step(mixture, array(x), array(WEIGHTS)),
        covariance_type,
        regularization=None if regularization is None else array(regularization),
    )
    expected = oracle.m_step(
        oracle.e_step(oracle.dense(mixture), x, WEIGHTS), covariance_type, matrix
    )
    assert_same_mixture(actual, expected, by_dtype(2e-4, 1e-11))
    assert actual.covariance_type == covariance_type
    assert all(leaf.dtype == DTYPE for leaf in jax.tree.leaves(actual))


def test_m_step_is_the_maximum_within_its_type(x, mixture, covariance_type):
    """No other mixture of the type has a higher expected log-likelihood."""
    statistics = jg.e_step(mixture, array(x))
    shares = oracle.responsibilities(oracle.dense(mixture), x)
    best = jg.m_step(statistics, covariance_type)

    def expected_log_likelihood(candidate):
        return np.sum(shares * oracle.logits(oracle.dense(candidate), x))

    for seed in range(5):
        random = np.random.default_rng(seed)
        noise = jax.tree.map(
            lambda leaf, r=random: array(0.03 * r.normal(size=leaf.shape)), best.covariance
        )
        tilted = best.weights * np.exp(array(0.03 * random.normal(size=K)))
        other = jg.GaussianMixture(
            jnp.log(tilted / jnp.sum(tilted)),
            best.means + array(0.03 * random.normal(size=(K, D))),
            jax.tree.map(lambda leaf, n: leaf * (1 + n), best.covariance, noise),
        )
        assert expected_log_likelihood(other) < expected_log_likelihood(best)


def test_a_scalar_regularization_is_the_same_for_every_feature(x, mixture, covariance_type):
    statistics = jg.e_step(mixture, array(x))
    scalar = jg.m_step(statistics, covariance_type, regularization=0.3)
    vector = jg.m_step(statistics, covariance_type, regularization=array([0.3, 0.3]))
    assert_same_mixture(scalar, vector, by_dtype(1e-5, 1e-13))


def test_full_statistics_serve_every_type(x, mixture, covariance_type):
    statistics = jg.e_step(mixture, array(x), covariance_type="full")
    own = jg.m_step(jg.e_step(mixture, array(x)), covariance_type)
    assert_same_mixture(jg.m_step(statistics, covariance_type), own, by_dtype(1e-4, 1e-11))


@pytest.mark.parametrize("needs_full", ["full", "tied"])
def test_diagonal_statistics_do_not_serve_full_covariances(x, needs_full):
    statistics = jg.e_step(start_from_labels(x, "diag"), array(x))
    with pytest.raises(ValueError, match="second moments"):
        jg.m_step(statistics, needs_full)


def test_em_step_is_m_step_of_e_step(x, mixture, covariance_type):
    actual, log_likelihood = jg.em_step(mixture, array(x), array(WEIGHTS))
    reference = oracle.dense(mixture)
    assert_same_mixture(
        actual, oracle.em_step(reference, x, covariance_type, WEIGHTS), by_dtype(2e-4, 1e-11)
    )
    expected = oracle.log_likelihood(reference, x, WEIGHTS)
    assert_close(log_likelihood, expected, rtol=RELATIVE)


def test_em_step_returns_the_log_likelihood_of_what_went_in(x, mixture):
    _, log_likelihood = jg.em_step(mixture, array(x))
    assert_close(log_likelihood, jg.log_likelihood(mixture, array(x)), rtol=RELATIVE)


def test_regularized_em_step_climbs_the_regularized_objective(x, mixture, covariance_type):
    r = np.diag([0.3, 0.3] if "spherical" in covariance_type else [0.3, 0.1])
    reference = oracle.dense(mixture)
    new, objective = jg.em_step(mixture, array(x), regularization=array(np.diag(r)))
    expected = oracle.em_step(reference, x, covariance_type, None, r)
    assert_same_mixture(new, expected, by_dtype(2e-4, 1e-11))
    before = oracle.log_likelihood(reference, x, None, r)
    assert_close(objective, before, rtol=RELATIVE)
    assert oracle.log_likelihood(oracle.dense(new), x, None, r) > before


def test_log_prior_is_added_to_the_logits(x, mixture, covariance_type):
    prior = double(array(np.random.default_rng(0).normal(size=(N, K))))
    actual = jg.e_step(mixture, array(x), log_prior=array(prior))
    reference = oracle.dense(mixture)
    logits = oracle.logits(reference, x) + prior
    total = np.logaddexp.reduce(logits, axis=1)
    shares = np.exp(logits - total[:, None])
    expected = oracle.accumulate(x, shares, np.ones(N), reference.means)
    assert_statistics(actual, expected, total.sum())


def test_a_log_prior_of_minus_infinity_is_a_label(x):
    """Rows whose component is known count for that component only."""
    labels = np.arange(N) % K
    with np.errstate(divide="ignore"):
        prior = np.log(np.eye(K)[labels])
    mixture = start_from_labels(x, "full")
    new, _ = jg.em_step(mixture, array(x), log_prior=array(prior))
    for k in range(K):
        assert_close(new.means[k], x[labels == k].mean(axis=0), rtol=RELATIVE, atol=RELATIVE)
    assert_close(new.weights, np.full(K, 1 / K))


def test_a_component_without_weight_keeps_its_parameters(x, mixture, covariance_type):
    """Its mean and covariance stay, its weight is 0; the others are as if it were not there."""
    statistics = jg.e_step(mixture, array(x))
    gone = array([1.0, 0.0, 1.0])
    axes = (slice(None), *(None,) * (statistics.second.ndim - 1))
    statistics = jg.SufficientStatistics(
        log_likelihood=statistics.log_likelihood,
        count=statistics.count * gone,
        first=statistics.first * gone[:, None],
        second=statistics.second * gone[axes],
        origin=statistics.origin,
    )
    new = jg.m_step(statistics, covariance_type, previous=mixture)
    assert new.log_weights[1] == -jnp.inf
    assert np.array_equal(new.means[1], mixture.means[1])
    if not STRUCTURES[covariance_type].shared:
        assert_close(new.covariances[1], mixture.covariances[1])
    assert all(np.isfinite(double(leaf)).all() for leaf in jax.tree.leaves(new.covariance))
    assert_close(jnp.sum(new.weights), 1)


def test_without_a_previous_mixture_a_dead_component_takes_the_average_covariance(x):
    shares = np.eye(K)[np.arange(N) % 2]
    statistics = jg.accumulate(array(x), array(shares), covariance_type="full")
    new = oracle.dense(jg.m_step(statistics, "full"))
    average = new.weights[0] * new.covariances[0] + new.weights[1] * new.covariances[1]
    assert_close(new.covariances[2], average)
    assert new.weights[2] == 0


def test_a_prior_is_pseudo_statistics(x, mixture, covariance_type):
    """Adding the statistics of other rows is the M-step of both."""
    other = blobs(seed=9)
    both = jg.e_step(mixture, array(x)) + jg.e_step(mixture, array(other))
    expected = oracle.em_step(oracle.dense(mixture), np.r_[x, other], covariance_type)
    assert_same_mixture(jg.m_step(both, covariance_type), expected, by_dtype(2e-4, 1e-11))


def test_steps_compute_in_the_wider_of_two_dtypes(x):
    with jax.enable_x64(True):
        start = start_from_labels(x, "diag")
        narrow = jax.tree.map(lambda leaf: leaf.astype("float32"), start)
        wide = jg.e_step(narrow, jnp.asarray(x, "float64"))
        same = jg.e_step(narrow, jnp.asarray(x, "float32"))
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {jnp.dtype("float64")}
    assert {leaf.dtype for leaf in jax.tree.leaves(same)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("log_prior", np.ones((N, K + 1))),
        ("log_prior", np.ones(N)),
        ("covariance_type", "elliptical"),
        ("weights", np.ones((N, 1))),
    ],
)
def test_e_step_refuses(x, argument, value):
    value = value if isinstance(value, str) else array(value)
    with pytest.raises(ValueError, match=argument):
        jg.e_step(start_from_labels(x, "full"), array(x), **{argument: value})


def test_an_em_step_is_an_e_step_and_an_m_step(x, mixture, covariance_type):
    """With regularization, too: both ways have the same fixed points."""
    log_prior = array(np.random.default_rng(0).normal(size=(N, K)))
    r = array([0.03, 0.01])
    given = {"covariance_type": covariance_type, "log_prior": log_prior, "regularization": r}
    new, objective = jg.em_step(mixture, array(x), array(WEIGHTS), **given)
    statistics = jg.e_step(mixture, array(x), array(WEIGHTS), **given)
    assert_equal(new, jg.m_step(statistics, covariance_type, previous=mixture, regularization=r))
    assert objective == statistics.log_likelihood
    plain = jg.e_step(mixture, array(x), array(WEIGHTS), log_prior=log_prior)
    assert objective < plain.log_likelihood


@pytest.mark.parametrize("regularization", [-1.0, np.nan, [0.1, 0.1, 0.1], [[0.1, 0.1]]])
def test_steps_refuse_a_regularization(x, regularization):
    mixture = start_from_labels(x, "full")
    statistics = jg.e_step(mixture, array(x))
    with pytest.raises(ValueError, match="regularization must be"):
        jg.e_step(mixture, array(x), regularization=array(regularization))
    with pytest.raises(ValueError, match="regularization must be"):
        jg.m_step(statistics, regularization=array(regularization))


def test_steps_refuse_data_of_another_dimension(x):
    with pytest.raises(ValueError, match=r"x must be \(N, 2\)"):
        jg.em_step(start_from_labels(x, "full"), array(np.c_[x, x]))


def test_rounding_takes_nothing_from_the_regularization(covariance_type):
    """Of two equal rows, whose second moment about their mean comes out below zero."""
    structure = STRUCTURES[covariance_type]
    second = np.full((1, D, D), 2 - 8 * EPS)
    if not structure.full_second_moment:
        second = np.einsum("kii->ki", second)
    statistics = jg.SufficientStatistics(
        array(0), array([2]), array(np.full((1, D), 2)), array(second), array(np.zeros((1, D)))
    )
    mixture = jg.m_step(statistics, covariance_type, regularization=4 * EPS)
    assert np.all(np.einsum("kii->ki", double(mixture.covariances)) > 3.9 * EPS)


def assert_equal(actual, expected):
    for leaf, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("regularization", [None, 1e-3])
def test_a_step_is_in_the_wider_of_the_dtypes(x, mixture, covariance_type, regularization):
    with jax.enable_x64(True):
        narrow = jax.tree.map(lambda leaf: leaf.astype("float32"), mixture)
        wide = jax.tree.map(lambda leaf: leaf.astype("float64"), narrow)
        options = {"covariance_type": covariance_type, "regularization": regularization}
        actual, _ = jg.em_step(narrow, np.asarray(x), **options)
        assert actual.means.dtype == jnp.float64
        assert_equal(actual, jg.em_step(wide, np.asarray(x), **options)[0])
        statistics = jg.e_step(wide, np.asarray(x), covariance_type=covariance_type)
        kept = jg.m_step(statistics, covariance_type, previous=narrow)
        assert_equal(kept, jg.m_step(statistics, covariance_type, previous=wide))


def test_what_stands_at_rows_without_weight_does_not_matter(x):
    start, weights = start_from_labels(x, "full"), array(np.arange(N) > 4)
    log_prior = np.random.default_rng(0).normal(size=(N, K))
    spoiled = np.where(double(weights)[:, None] == 0, np.nan, log_prior)
    actual, _ = jg.em_step(start, array(x), weights, log_prior=array(spoiled))
    expected, _ = jg.em_step(start, array(x), weights, log_prior=array(log_prior))
    assert_equal(actual, expected)
    of_spoiled, of_all = (
        jg.accumulate(array(x), array(np.exp(given)), weights, covariance_type="full")
        for given in (spoiled, log_prior)
    )
    assert_equal(of_spoiled, of_all)


def test_an_inverse_at_hand_changes_nothing(x):
    start = start_from_labels(x, "full")
    ready_to_whiten = replace(start, covariance=with_inverse(start.covariance))
    actual, expected = jg.em_step(ready_to_whiten, array(x))[0], jg.em_step(start, array(x))[0]
    assert_same_mixture(actual, expected, by_dtype(1e-4, 1e-12))
    assert jg.em(ready_to_whiten, array(x)).converged


@pytest.mark.parametrize("covariance_type", ["full", "tied", "tied_diag", "VEI"])
@pytest.mark.parametrize("rate", by_dtype([1e-36, 1e36], [1e-305, 1e305]))
def test_weights_of_any_size_are_regularized_alike(x, covariance_type, rate):
    """Also where a weight times a variance would be out of the range of the dtype."""
    means, shares = start_from_labels(x, "diag").means, np.eye(K)[LABELS]
    # Of rows that are all at the means: only the regularization is left.
    points = double(means)[LABELS]
    statistics = jg.accumulate(array(points), array(shares), covariance_type=covariance_type)
    scaled = jg.m_step(rate * statistics, covariance_type, regularization=array(1e-6))
    variances = np.einsum("kii->ki", double(scaled.covariance.dense(D)))
    assert_close(variances, np.full_like(variances, 1e-6), by_dtype(2e-2, 1e-6))
