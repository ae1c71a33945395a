"""Restarts: each has a key of its own, and the best healthy one wins, with what belongs to it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DTYPE,
    K,
    N,
    array,
    assert_close,
    blobs,
    by_dtype,
    double,
    em,
    start_from_labels,
)

import jaxgmm as jg
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.fits import restarts
from jaxgmm.fits.initialization import STARTS, start_from
from jaxgmm.fits.problems import Problems
from jaxgmm.fits.restarts import best_of
from jaxgmm.solvers.settings import check_limits, check_settings
from jaxgmm.steps.problem import problem_of


def best_of_results(*statuses_and_objectives):
    """The best of results of which component i only is degenerate in the i-th."""
    result = em(start_from_labels(blobs(), "full"), blobs())
    results = [
        replace(
            result,
            status=jnp.asarray(int(status), jnp.int32),
            objective=array(objective),
            degenerate=jnp.arange(K) == i,
        )
        for i, (status, objective) in enumerate(statuses_and_objectives)
    ]
    return best_of(jax.tree.map(lambda *leaves: jnp.stack(leaves), *results))


def test_a_healthy_restart_wins_over_a_higher_degenerate_one():
    degenerate, converged, unfinished, spoiled = (
        (jg.Status.DEGENERATE, 3.0),
        (jg.Status.CONVERGED, 1.0),
        (jg.Status.MAX_ITER, 2.0),
        (jg.Status.NON_FINITE, np.nan),
    )
    assert best_of_results(degenerate, converged, unfinished, spoiled).objective == 2
    assert best_of_results(degenerate, converged, spoiled).objective == 1
    assert best_of_results(spoiled, degenerate).objective == 3
    best = best_of_results(degenerate, converged, unfinished)
    assert best.degenerate.tolist() == [False, False, True]


def test_the_first_of_equal_restarts_wins():
    """Whatever rounding makes of them: it would not choose the same one on another machine."""
    eps = float(jnp.finfo(DTYPE).eps)
    for objective in (-2e5, 2e5):
        for change, first in ((eps, True), (-eps, True), (100 * eps, False)):
            others = (jg.Status.CONVERGED, objective + abs(objective) * change)
            equal = best_of_results((jg.Status.CONVERGED, objective), others, others)
            assert equal.degenerate.tolist() == [first, not first, False]
            lower = (jg.Status.CONVERGED, objective - abs(objective))
            equal = best_of_results(lower, (jg.Status.CONVERGED, objective), others)
            assert equal.degenerate.tolist() == [False, first, not first]


def test_restarts_have_keys_of_their_own(key):
    x = array(blobs())
    problem = problem_of(x, array(np.ones(N)), array(0.0), K, STRUCTURES["full"])
    active = jnp.ones(K, bool)

    @jax.jit
    def start_of(restart):
        partition = STARTS["random"](jax.random.fold_in(key, restart), problem.rows, active, None)
        variances = problem.regularization
        return start_from(
            partition, problem.rows, active, problem.structure, variances, pseudocounts=True
        )

    starts = [
        problem.rows.standardization.inverse_transform(start_of(restart)) for restart in range(3)
    ]
    objectives = [float(jg.log_likelihood(start, x)) for start in starts]
    for n_init in (1, 3):
        best = jg.fit(key, x, K, init="random", n_init=n_init, max_iter=0)
        assert_close(best.log_likelihood, max(objectives[:n_init]), rtol=1e-4)
    assert np.ptp(objectives) > 1e-3


def test_a_fit_from_a_mixture_is_em(key):
    x = array(blobs())
    start = start_from_labels(x, "full")
    options = {
        "weights": array(np.linspace(0.5, 2, N)),
        "tol": 1e-3,
        "reg_covar": 0.05,
        "max_iter": 50,
    }
    actual = jg.fit(key, x, K, init=start, covariance_type="diag", **options)
    expected = jg.em(start, x, covariance_type="diag", **options)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.array_equal(a, e)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_data_are_fitted_in_float32(dtype, key):
    result = jg.fit(
        key, jnp.asarray(blobs(), dtype), K, covariance_type="tied_spherical", max_iter=2
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(result.mixture)} == {jnp.dtype("float32")}


def test_many_restarts_lose_nothing(key):
    """Only the most promising of twelve climb to the end; the best of all is among them."""
    x = array(blobs(width=1.5))
    options = {"covariance_type": "diag", "init": "random", "tol": by_dtype(1e-5, 1e-9)}
    several = jg.fit(key, x, K, n_init=12, history=False, **options)
    alone = jax.lax.map(
        lambda restart: jg.fit(jax.random.fold_in(key, restart), x, K, history=False, **options),
        jnp.arange(12),
    )
    assert several.converged
    best = np.max(double(alone.objective)[np.asarray(alone.converged)])
    assert float(several.objective) >= best - by_dtype(1e-2, 1e-6)
    assert int(several.n_iter) > restarts.SCREENING


def test_screened_out_restarts_go_on_where_the_finalists_degenerate(key, monkeypatch):
    """Of nine starts eight put a component on a single row, which no step has shown so far."""
    monkeypatch.setattr(restarts, "FINALISTS", 2)
    monkeypatch.setattr(restarts, "SCREENING", 0)
    x = array(blobs()[:71])
    problem = problem_of(x, jnp.ones(len(x), DTYPE), array(1e-9), K, STRUCTURES["diag"])
    problems = Problems(problem, 9)
    good = problem.rows.standardization.transform(start_from_labels(blobs(), "diag"))
    row = problem.rows.standardization.standardize(x, jnp.ones(len(x), DTYPE))[70]
    bad = replace(
        good,
        means=good.means.at[0].set(row),
        covariance=jg.Diagonal(good.covariance.scale.at[0].set(1e-3)),
    )
    starts = jax.tree.map(lambda a, b: jnp.stack([a] * 4 + [b] + [a] * 4), bad, good)
    settings = check_settings(400, None, "implicit", history=False)
    active = jnp.ones((1, K), bool)
    tol = array(by_dtype(1e-5, 1e-8))
    limits = check_limits(tol, 400, x)
    result = restarts.run_all(problems, starts, active, limits, 1, settings)[0]
    expected = em(start_from_labels(blobs(), "diag"), x, tol=by_dtype(1e-5, 1e-8))
    assert result.converged and expected.converged
    assert_close(result.objective, expected.objective, by_dtype(1e-4, 1e-8))
