"""Samples that have no sensible fit get a finite answer that says so, and names the components.

The cases are numbered B01 to F18. All rows are padded to one shape with rows of weight 0.
"""

from importlib.resources import files

import jax
import numpy as np
import oracle
import pytest
from helpers import (
    DTYPE,
    D,
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
    mixture_from,
    padded,
    start_at_random,
    start_from_labels,
    start_from_shares,
)

import jaxgmm as jg

X = blobs()


def fit(x, weights=None, n_components=K, n_rows=N):
    """`jg.fit` of full covariances to rows padded to one shape."""
    rows, weights = padded(x, weights, n_rows)
    return jg.fit(jax.random.key(0), rows, n_components, weights=weights)


def assert_finite(result):
    """Usable numbers everywhere, and weights that are probabilities."""
    mixture = result.mixture
    assert result.status != jg.Status.NON_FINITE
    for leaf in (mixture.means, *jax.tree.leaves(mixture.covariance), mixture.weights):
        assert np.isfinite(double(leaf)).all()
    scale = next(iter(vars(mixture.covariance).values()))
    diagonal = np.diagonal(scale, axis1=-2, axis2=-1) if scale.ndim == 3 else scale
    assert np.all(np.asarray(diagonal) > 0)
    assert np.isfinite(double(result.log_likelihood)) and np.isfinite(double(result.objective))
    assert_close(np.sum(double(mixture.weights)), 1)


def assert_named(result, components=None):
    """DEGENERATE, and the exception names the components."""
    assert_finite(result)
    assert result.status == jg.Status.DEGENERATE and not result.converged
    named = np.flatnonzero(result.degenerate).tolist()
    assert named if components is None else named == components
    with pytest.raises(jg.FitError) as raised:
        result.check()
    assert str(named) in str(raised.value)


LINE = np.linspace(-1, 1, 60)[:, None]

SINGULAR = {
    "B01 one row": X[:1],
    "B01 two rows": X[:2],
    "B02 as many rows as components": X[[0, 30, 80]],
    "B03 five rows": X[[0, 1, 30, 31, 80]],
    "B04 a point mass": np.full((50, D), 3.0),
    "B04 a point mass at zero": np.zeros((50, D)),
    "B06 two point masses": np.repeat([[1.0, 1.0], [0.0, 0.0]], 5, axis=0),
    "B06 three point masses": np.repeat([[1.0, 1.0], [0.0, 0.0], [0.0, 2.0]], 5, axis=0),
    "B07 a constant feature": np.c_[X[:, 0], np.full(N, 7.0)],
    "B07 a constant feature of zeros": np.c_[X[:, 0], np.zeros(N)],
    "B08 a feature twice": np.c_[X[:, 0], X[:, 0]],
    "B11 rows on a line": np.r_[LINE[:30] * [1.0, 1.0], LINE[:30] * [1.0, -1.0]],
}


@pytest.mark.parametrize("x", SINGULAR.values(), ids=SINGULAR)
def test_singular_samples_are_fitted_and_named(x):
    assert_named(fit(x))


@pytest.mark.parametrize("x", SINGULAR.values(), ids=SINGULAR)
def test_singular_samples_are_named_for_every_type_that_sees_it(covariance_type, x):
    """Finite from any start, for every type; degenerate where the type can't hide it."""
    weights = np.random.default_rng(0).dirichlet(np.ones(K), size=len(x))
    spread = oracle.Mixture(
        np.full(K, 1 / K), weights.T @ x / weights.sum(axis=0)[:, None], np.stack([np.eye(D)] * K)
    )
    result = em(mixture_from(spread, covariance_type), *padded(x))
    assert_finite(result)
    if len(np.unique(x, axis=0)) == 1:
        assert result.status == jg.Status.DEGENERATE and np.all(result.degenerate)


def test_without_rows_of_weight_zero_the_answer_is_the_same():
    """B01: a single row, as it comes."""
    result = jg.fit(jax.random.key(0), array(X[:1]), 1)
    assert_named(result, [0])
    assert_close(result.mixture.means[0], X[0])


def test_more_components_than_rows_are_refused():
    with pytest.raises(ValueError, match="needs at least as many rows"):
        jg.fit(jax.random.key(0), array(X[:2]), 3)


def test_a_constant_feature_does_not_disturb_the_others():
    """B07: the fit of the other features is the one without it."""
    x = np.c_[X[:, 0], np.full(N, 7.0)]
    start = start_from_labels(x + np.c_[np.zeros(N), X[:, 1] * 1e-3], "diag")
    result = em(start, x)
    alone = jg.em(
        jg.GaussianMixture(
            start.log_weights, start.means[:, :1], jg.Diagonal(start.covariance.scale[:, :1])
        ),
        array(x[:, :1]),
    )
    assert_named(result, [0, 1, 2])
    assert_close(result.mixture.means[:, 1], [7.0] * K)
    tolerance = by_dtype(2e-2, 1e-5)
    assert_close(result.mixture.means[:, 0], alone.mixture.means[:, 0], rtol=0, atol=tolerance)


def test_fewer_rows_than_features_are_degenerate_for_full_and_fine_for_shared_diagonals():
    """B09: ten rows of twenty features."""
    x = array(np.random.default_rng(0).normal(size=(10, 20)))
    fits = jax.vmap(lambda key: jg.fit(key, x, 2))(jax.random.split(jax.random.key(0), 8))
    for b in range(8):
        assert_named(fits[b])
    assert jg.fit(jax.random.key(0), x, 1, covariance_type="diag").check().converged


def test_one_row_more_than_features_is_as_good_as_its_condition_number():
    """B10: fitted with the sample's covariance, or named."""
    x = double(array(np.random.default_rng(0).normal(size=(D + 1, D))))
    result = fit(x, n_components=1)
    assert_finite(result)
    assert_close(result.mixture.covariances[0], np.cov(x.T, bias=True), rtol=1e-3)
    assert result.converged
    flat = x * [1.0, 0.0] + x[:, :1] * [0.0, 1.0]
    assert_named(fit(flat, n_components=1), [0])


def test_rounded_rows_and_too_many_components_climb_all_the_same():
    """B14: minutes between eruptions, 51 different values, nine components."""
    table = files("jaxgmm") / "datasets" / "old_faithful.csv"
    waiting = [[float(row.split(",")[1])] for row in table.read_text().splitlines()[1:]]
    result = jg.fit(jax.random.key(0), array(waiting), 9)
    assert_finite(result)
    fall = np.diff(double(result.history)).min()
    assert fall >= -by_dtype(1e-5, 1e-10) * abs(float(result.log_likelihood))


def test_repeated_values_on_one_axis_are_finite_and_both_components_reported():
    """B16: thirty values of which most stand several times."""
    values = np.repeat([0.0, 1.0, 1.5, 4.0, 9.0], (12, 8, 5, 4, 1))[:, None]
    result = jg.fit(jax.random.key(0), array(values), 2, covariance_type="tied")
    assert_finite(result)
    assert np.all(np.asarray(result.mixture.weights) > 0)


def test_subnormal_data_are_fitted_or_named():
    """C11: never one merged component that calls itself a success."""
    scale = by_dtype(1e-41, 1e-310)
    result = jg.fit(jax.random.key(0), array(X * scale), K)
    assert_finite(result)
    assert result.status == jg.Status.DEGENERATE


def test_when_every_start_fails_there_is_one_clear_error():
    """F04: no mixture of NaN, and the best of the failures says that it is one."""
    rows, weights = padded(X)
    spoiled = rows.at[3, 1].set(np.nan)
    blind = jax.jit(lambda x: jg.fit(jax.random.key(0), x, K, weights=weights, n_init=3))
    result = blind(spoiled)
    assert result.status == jg.Status.NON_FINITE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.mixture))
    with pytest.raises(jg.FitError, match="NON_FINITE"):
        result.check()


def test_sparse_binary_rows_are_finite():
    """B12: many components, few distinct rows."""
    x = (np.random.default_rng(0).uniform(size=(60, 8)) < 0.1).astype(DTYPE)
    assert_named(jg.fit(jax.random.key(0), x, 15, covariance_type="diag"))


def test_equal_components_are_named_as_twins(covariance_type):
    """B18, E01: two starts that coincide stay together, and neither means anything."""
    start = oracle.dense(start_from_labels(X, covariance_type))
    means, covariances = start.means.copy(), start.covariances.copy()
    means[1], covariances[1] = means[0], covariances[0]
    weights = np.array([0.25, 0.25, 0.5])
    twins = mixture_from(oracle.Mixture(weights, means, covariances), covariance_type)
    assert_named(em(twins, X), [0, 1])


@pytest.mark.parametrize("far", [1e6, 1e12], ids="D01 {:g}".format)
def test_an_outlier_alone_is_a_degenerate_component(far):
    x = np.r_[X[:-1], [[far, far]]]
    shares = np.eye(K)[np.r_[np.zeros(40, int), np.ones(49, int), 2]]
    assert_named(em(start_from_shares(x, 0.999 * shares + 0.001 / K, "diag"), x))


def test_uniform_noise_is_fitted():
    """D06: converged, or stopped by the number of steps."""
    x = np.random.default_rng(0).uniform(size=(N, D))
    result = em(start_at_random(x, "full"), x)
    assert_finite(result)


def test_a_start_of_weight_zero_stays_dead_and_is_named(covariance_type):
    """D08: and the others are fitted as if it were not there."""
    start = start_from_labels(X, covariance_type)
    weights = array(np.log([0.4, 0.6]))
    log_weights = np.r_[-np.inf, double(weights)]
    dead = jg.GaussianMixture(array(log_weights), start.means, start.covariance)
    result = em(dead, X)
    assert_named(result, [0])
    assert result.mixture.weights[0] == 0
    assert_close(result.mixture.means[0], start.means[0])


def test_a_component_far_from_all_rows_dies_and_keeps_a_covariance(covariance_type):
    """E01: no 0/0."""
    start = start_from_labels(X, covariance_type)
    means = np.r_[double(start.means[:2]), [[1e5, 1e5]]]
    far = jg.GaussianMixture(start.log_weights, array(means), start.covariance)
    assert_named(em(far, X), [2])


def test_a_collapse_onto_a_row_is_detected():
    """E02: a component that starts on one row, a million times narrower than the rows."""
    start = oracle.dense(start_from_labels(X, "full"))
    means, covariances = start.means.copy(), start.covariances.copy()
    means[0], covariances[0] = X[7], 1e-12 * np.eye(D)
    collapsed = mixture_from(oracle.Mixture(start.weights, means, covariances), "full")
    result = em(collapsed, X)
    assert_named(result, [0])
    assert_close(result.mixture.means[0], X[7], rtol=0, atol=1e-4)


def test_many_components_are_finite_after_one_step():
    """E04, F05."""
    x = array(np.random.default_rng(0).normal(size=(200, D)))
    result = jg.fit(jax.random.key(0), x, 40, max_iter=1, covariance_type="diag")
    assert_finite(result)
    assert result.n_iter == 1 and not result.converged


def test_the_best_of_several_starts_carries_its_own_flags(key):
    """F03: log-likelihood, status and steps belong to the mixture returned."""
    x = array(cloud())
    options = {"covariance_type": "spherical", "init": "random"}
    best = jg.fit(key, x, K, n_init=4, **options)
    single = jg.fit(key, x, K, **options)
    if single.converged:
        assert best.objective >= single.objective - 1e-3
    again = em(best.mixture, x)
    assert_close(again.objective, best.objective, rtol=by_dtype(1e-4, 1e-6))
    assert_close(best.history[int(best.n_iter) - 1], best.objective)


def test_components_of_very_different_units_stay_apart():
    """C06: one feature ten thousand times larger than the other."""
    x = X * [1.0, 1e4]
    result = em(start_from_labels(x, "full"), x)
    assert result.check().converged
    assert_same_mixture(
        result.mixture,
        oracle.em(oracle.dense(start_from_labels(x, "full")), x, "full", 300)[0],
        by_dtype(3e-3, 1e-5),
    )


@pytest.mark.parametrize("condition", by_dtype((1e2, 1e4), (1e6, 1e10)))
def test_densities_of_ill_conditioned_covariances_are_accurate(condition):
    """C07: the error grows with the condition number, and no faster."""
    angle = 0.5
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    factor = turn @ np.diag([1.0, condition**-0.5])
    covariance = double(array(factor @ factor.T))
    mixture = mixture_from(oracle.Mixture(np.ones(1), np.zeros((1, 2)), covariance[None]), "full")
    x = double(array(np.random.default_rng(0).normal(size=(50, 2)) @ factor.T))
    whitened = np.linalg.solve(np.linalg.cholesky(covariance.astype(np.float64)), x.T)
    expected = -np.sum(whitened**2, axis=0) / 2 - np.log(2 * np.pi)
    expected = expected - np.linalg.slogdet(covariance)[1] / 2
    eps = float(np.finfo(DTYPE).eps)
    assert_close(mixture.log_prob(array(x)), expected, rtol=0, atol=60 * eps * condition * D + 1e-5)


@pytest.mark.parametrize(("share", "flagged"), [(0.55, True), (0.45, False)])
def test_more_than_half_regularization_is_degenerate(share, flagged):
    x = blobs()
    variance = oracle.variance_of(x, "full")
    start = oracle.dense(start_from_labels(x, "full"))
    covariances = start.covariances.copy()
    covariances[1] = variance * np.diag([1, 1e-3 / share])
    mixture = mixture_from(oracle.Mixture(start.weights, start.means, covariances), "full")
    result = em(mixture, x, reg_covar=1e-3, max_iter=0)
    assert result.degenerate.tolist() == [False, flagged, False]
