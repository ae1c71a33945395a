"""What is known of rows beforehand: labels and the like, in every kind of fit."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    LABELS,
    K,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    em,
    set_budget,
    start_from_labels,
)

import jaxgmm as jg
from jaxgmm.fits.initialization import STARTS

X = blobs(width=2.0)
TOL = by_dtype(1e-6, 1e-10)
# Components are to have these numbers, not those in which starts would find them.
NUMBERS = (LABELS + 1) % K


def labels(known, numbers=NUMBERS):
    """0 and -inf for the rows that are known, zeros for the others."""
    prior = np.where(np.arange(K)[None] == numbers[:, None], 0, -np.inf)
    return array(np.where(known[:, None], prior, 0))


EVERY = labels(np.ones(N, bool))
SOME = labels(np.arange(N) % 5 == 0)


def weak(seed=0):
    return array(np.random.default_rng(seed).normal(size=(N, K)))


def objective_of(mixture, prior):
    """By NumPy in float64."""
    dense = oracle.dense(mixture)
    logits = oracle.component_log_prob(dense, X) + np.log(dense.weights)[None] + double(prior)
    return np.logaddexp.reduce(logits, axis=1).sum()


def test_the_log_likelihood_has_it_everywhere():
    mixture, prior = start_from_labels(X, "full", blur=0.3), weak()
    expected = objective_of(mixture, prior)
    close = {"rtol": by_dtype(1e-5, 1e-12)}
    assert_close(jg.log_likelihood(mixture, array(X), log_prior=prior), expected, **close)
    fit = em(mixture, array(X), log_prior=prior, tol=0, max_iter=5, reg_covar=0.0)
    assert_close(fit.log_likelihood, objective_of(fit.mixture, prior), **close)
    stepped = mixture
    for _ in range(5):
        stepped, _ = jg.em_step(stepped, array(X), log_prior=prior)
    assert_same_mixture(fit.mixture, stepped, by_dtype(1e-3, 1e-9))


def test_where_every_row_is_known_each_component_is_that_of_its_rows(key, storage_type):
    fit = jg.fit(key, array(X), K, log_prior=EVERY, covariance_type=storage_type, tol=TOL).check()
    shares = np.eye(K)[NUMBERS]
    own = jg.accumulate(array(X), array(shares), covariance_type=storage_type)
    assert_same_mixture(fit.mixture, jg.m_step(own, storage_type), by_dtype(2e-3, 1e-6))


@pytest.mark.parametrize("init", STARTS)
def test_components_have_the_numbers_of_their_labels(key, init):
    fit = jg.fit(key, array(X), K, log_prior=SOME, init=init, n_init=2, tol=TOL).check()
    assert (np.asarray(fit.mixture.predict(array(X))) == NUMBERS).mean() > 0.9
    again = em(fit.mixture, array(X), log_prior=SOME, tol=TOL)
    assert_close(again.objective, fit.objective, by_dtype(1e-4, 1e-8))


@pytest.mark.parametrize("init", ["k-means++", "kmeans"])
def test_starts_have_these_numbers_before_any_step(key, init):
    start = jg.fit(key, array(X), K, log_prior=SOME, init=init, max_iter=0, history=False)
    assert (np.asarray(start.mixture.predict(array(X))) == NUMBERS).mean() > 0.7
    other = labels(np.arange(N) % 5 == 0, (NUMBERS + 1) % K)
    moved = jg.fit(key, array(X), K, log_prior=other, init=init, max_iter=0, history=False)
    assert (np.asarray(moved.mixture.predict(array(X))) == (NUMBERS + 1) % K).mean() > 0.7


@pytest.mark.parametrize("most", [2.0**23, -(2.0**23)])
def test_what_all_components_have_in_common_costs_no_digits(most):
    """Numbers that are exact in the dtype, as a hidden Markov model may have them."""
    start = start_from_labels(X, "full", blur=0.3)
    prior = array(np.where(np.arange(K)[None] == LABELS[:, None], 0, -2))
    plain = em(start, array(X), log_prior=prior, tol=0, max_iter=20)
    large = em(start, array(X), log_prior=prior + most, tol=0, max_iter=20)
    assert_same_mixture(large.mixture, plain.mixture, by_dtype(1e-5, 1e-12))
    assert_close(large.log_likelihood, plain.log_likelihood + N * most, by_dtype(1e-6, 1e-13))


def test_no_preference_at_all_changes_nothing(key):
    plain = jg.fit(key, array(X), K, tol=TOL)
    level = jg.fit(key, array(X), K, log_prior=array(np.zeros((N, K))), tol=TOL)
    order = jg.match(plain.mixture, level.mixture)
    assert_same_mixture(order, plain.mixture, by_dtype(2e-2, 1e-5))
    assert_close(level.objective, plain.objective, by_dtype(1e-4, 1e-9))


@pytest.mark.parametrize(
    "how", [{"accelerate": "squarem"}, {"accelerate": "anderson"}, {"polish": True}]
)
def test_ways_to_the_maximum_agree(how):
    start, prior = start_from_labels(X, "full"), weak()
    plain = em(start, array(X), log_prior=prior, tol=TOL)
    other = em(start, array(X), log_prior=prior, tol=TOL, **how)
    assert plain.converged and other.converged
    assert_close(other.objective, plain.objective, by_dtype(1e-4, 1e-9))
    by_gradient = jg.fit_gradient(start, array(X), log_prior=prior, tol=TOL, history=False)
    assert_close(by_gradient.objective, plain.objective, by_dtype(1e-4, 1e-8))


def test_a_batch_is_single_fits(key):
    """Of arrays, of data that all have in common, and of lists."""
    priors = [SOME, labels(np.arange(N) % 7 == 0, LABELS)]
    data = [array(X), array(2 * X - 3)]
    single = [
        jg.fit(jax.random.fold_in(key, b), data[b], K, log_prior=priors[b], tol=TOL)
        for b in range(2)
    ]
    batch = jg.fit_batch(key, jnp.stack(data), K, log_prior=jnp.stack(priors), tol=TOL)
    lists = jg.fit_batch(key, data, K, log_prior=priors, tol=TOL)
    for b in range(2):
        for found in (batch[b], lists[b]):
            assert found.status == single[b].status
            assert_same_mixture(found.mixture, single[b].mixture, by_dtype(2e-2, 1e-5))
    weights = array(np.ones((2, N)))
    common = jg.fit_batch(key, data[0], K, weights=weights, log_prior=priors[0], tol=TOL)
    own = jg.fit_batch(key, data[0], K, weights=weights, log_prior=jnp.stack(priors), tol=TOL)
    assert_same_mixture(common[0].mixture, single[0].mixture, by_dtype(2e-2, 1e-5))
    assert_same_mixture(own[0].mixture, single[0].mixture, by_dtype(2e-2, 1e-5))
    assert (np.asarray(own[1].mixture.predict(data[0])) == LABELS).mean() > 0.9


def test_rows_of_weight_zero_may_have_any():
    start = start_from_labels(X, "full")
    x, prior = np.r_[X, np.full((5, 2), np.nan)], np.r_[double(SOME), np.full((5, K), np.nan)]
    weights = array(np.r_[np.ones(N), np.zeros(5)])
    fit = em(start, array(x), weights=weights, log_prior=array(prior), tol=TOL)
    expected = em(start, array(X), log_prior=SOME, tol=TOL)
    assert_same_mixture(fit.mixture, expected.mixture, by_dtype(1e-3, 1e-8))


def test_products_and_differences_agree(monkeypatch):
    start, prior = start_from_labels(X, "full", blur=0.3), weak()
    expected = jg.em(start, array(X), log_prior=prior, tol=0, max_iter=7)
    set_budget(monkeypatch, smallest_pass=0)
    jax.clear_caches()
    found = jg.em(start, array(X), log_prior=prior, tol=0, max_iter=7)
    jax.clear_caches()
    assert_close(found.objective, expected.objective, by_dtype(1e-4, 1e-10))
    assert_same_mixture(found.mixture, expected.mixture, by_dtype(1e-2, 1e-7))


@pytest.mark.once
def test_derivatives_are_those_of_finite_differences():
    with jax.enable_x64(True):
        x, prior = jnp.asarray(X), jnp.asarray(weak(), float) / 3
        given = jax.tree.map(lambda leaf: leaf.astype("float64"), start_from_labels(X, "diag"))
        number = jnp.arange(1.0, 7.0).reshape(3, 2)

        def functional(prior, tol):
            fit = jg.em(given, x, log_prior=prior, tol=tol, reg_covar=1e-3, history=False)
            return jnp.sum(jnp.cos(fit.mixture.means) * number) + fit.objective

        direction = jnp.asarray(np.random.default_rng(3).normal(size=prior.shape))
        value = jax.jit(lambda step: functional(prior + step * direction, 0.0))
        wide, narrow = ((value(h) - value(-h)) / (2 * h) for h in (2e-3, 1e-3))
        ours = jnp.vdot(jax.jit(jax.grad(functional))(prior, 1e-9), direction)
        np.testing.assert_allclose(ours, (4 * narrow - wide) / 3, rtol=1e-6)


def test_what_does_not_fit_is_refused(key):
    start = start_from_labels(X, "full")
    for wrong in (np.zeros((N, K + 1)), np.zeros(N)):
        for call in (
            lambda p: jg.em(start, array(X), log_prior=p),
            lambda p: jg.fit(key, array(X), K, log_prior=p),
            lambda p: jg.log_likelihood(start, array(X), log_prior=p),
            lambda p: jg.fit_batch(key, array(X[None]), K, log_prior=p),
        ):
            with pytest.raises(ValueError, match="log_prior"):
                call(array(wrong))
    with pytest.raises(ValueError, match=r"log_prior\[1\]"):
        jg.fit_batch(key, [array(X)] * 2, K, log_prior=[SOME, SOME[:-1]])
    impossible = SOME.at[4].set(-jnp.inf)
    for prior in (impossible, SOME.at[4, 1].set(jnp.nan), SOME.at[4, 1].set(jnp.inf)):
        with pytest.raises(ValueError, match="row 4"):
            jg.em(start, array(X), log_prior=prior)
    # In a batch it is a status, and its neighbor's is its own.
    pair = jg.fit_batch(
        key, jnp.stack([array(X)] * 2), K, log_prior=jnp.stack([impossible, SOME]), tol=TOL
    )
    assert pair.status[0] == jg.Status.NON_FINITE and pair.status[1] == jg.Status.CONVERGED
