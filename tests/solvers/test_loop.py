"""The loop climbs, stops when nothing is left to gain, and reports what it returns."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    LABELS,
    TIGHT,
    D,
    K,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    cloud,
    distance,
    double,
    em,
    padded,
    start_at_random,
    start_from_labels,
)

import jaxgmm as jg
import jaxgmm.solvers.loop

RELATIVE = by_dtype(2e-5, 1e-11)
FEW = blobs()[np.linspace(0, N - 1, K * D + 2).astype(int)]
DATA = {"separated": blobs(), "overlapping": cloud(), "few": FEW}


def test_the_objective_never_falls(covariance_type):
    """F01: easy, overlapping, and hardly more rows than parameters; many starts and all λ.

    Unless a component is singular but for a λ that the dtype can't resolve, which is flagged.
    """
    cases = [
        (start_at_random(x, covariance_type, seed), *padded(x), reg_covar)
        for x in DATA.values()
        for seed, reg_covar in itertools.product(range(50), (0.0, 1e-6, 1e-3, 1e-2))
    ]
    starts, x, weights, reg_covar = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)

    @jax.jit
    @jax.vmap
    def climb(start, x, weights, reg_covar):
        return jg.em(start, x, weights=weights, reg_covar=reg_covar, max_iter=100)

    result = climb(starts, x, weights, array(reg_covar))
    steps = np.diff(double(result.history), axis=1)
    log_prob = jax.vmap(jg.GaussianMixture.log_prob)(result.mixture, jnp.nan_to_num(x))
    size = np.sum(double(weights) * np.abs(double(log_prob)), axis=1)
    fell = steps.min(axis=1) < -by_dtype(1e-5, 1e-10) * size
    assert np.all(np.asarray(result.status)[fell] == jg.Status.DEGENERATE)
    assert np.all(np.asarray(reg_covar)[fell] < by_dtype(1e-4, 1e-8)) and fell.mean() < 0.03


@pytest.mark.parametrize("reg_covar", [0.0, 1e-2])
def test_the_objective_is_the_oracles(covariance_type, reg_covar):
    """The log-likelihood under logits that carry -½ λ tr(V Σ_k⁻¹)."""
    x = blobs()
    result = em(start_from_labels(x, covariance_type), x, reg_covar=reg_covar)
    reference = oracle.dense(result.mixture)
    r = reg_covar * oracle.variance_of(x, covariance_type)
    assert_close(result.objective, oracle.log_likelihood(reference, x, None, r), rtol=RELATIVE)
    assert_close(result.log_likelihood, oracle.log_likelihood(reference, x), rtol=RELATIVE)


@pytest.mark.parametrize("reg_covar", [1e-6, 1e-2])
def test_the_fit_is_the_oracles(covariance_type, reg_covar):
    """Every step, so also the history, and the mixture that they lead to."""
    x = blobs()
    start = start_from_labels(x, covariance_type)
    result = em(start, x, reg_covar=reg_covar, tol=TIGHT)
    n_steps = int(result.n_iter)
    r = reg_covar * oracle.variance_of(x, covariance_type)
    mixture, objectives = oracle.em(oracle.dense(start), x, covariance_type, n_steps, None, r)
    assert_same_mixture(result.mixture, mixture, by_dtype(1e-3, 1e-8))
    assert_close(result.history[:n_steps], objectives, rtol=by_dtype(1e-5, 1e-10))


def test_the_reported_log_likelihood_is_that_of_the_returned_mixture(covariance_type):
    x = cloud()
    result = em(start_at_random(x, covariance_type), x)
    assert_close(result.log_likelihood, jg.log_likelihood(result.mixture, array(x)), rtol=RELATIVE)


def test_history_is_padded_with_the_objective(covariance_type):
    x = blobs()
    result = em(start_from_labels(x, covariance_type), x)
    n_steps = int(result.n_iter)
    assert result.history.shape == (1000,) and 2 < n_steps < 1000
    assert np.all(result.history[n_steps - 1 :] == result.objective)
    assert result.history[0] < result.objective


def test_a_converged_fit_says_so(covariance_type):
    x = blobs()
    result = em(start_from_labels(x, covariance_type), x)
    assert result.status == jg.Status.CONVERGED and bool(result.converged)
    assert not np.any(result.degenerate) and result.remaining_gain < 1e-7
    assert result.check() is result


def test_zero_tolerance_runs_all_steps(covariance_type):
    x = blobs()
    result = em(start_from_labels(x, covariance_type), x, tol=0.0)
    assert result.n_iter == 1000 and result.status == jg.Status.MAX_ITER
    with pytest.raises(jg.FitError, match=r"MAX_ITER.*1000 iterations.*raise max_iter"):
        result.check()


def test_a_smaller_tolerance_takes_no_fewer_steps_and_gets_no_less(covariance_type):
    x = cloud()
    start = start_at_random(x, covariance_type)
    results = [em(start, x, tol=tol) for tol in (1e-3, 1e-5, 1e-7)]
    assert np.all(np.diff([int(result.n_iter) for result in results]) >= 0)
    gained = np.diff([float(result.objective) for result in results])
    assert gained.min() >= -by_dtype(1e-5, 1e-10) * N * 10


def test_without_steps_the_start_is_returned():
    x = blobs()
    start = start_from_labels(x, "full")
    result = em(start, x, max_iter=0)
    assert result.n_iter == 0 and result.status == jg.Status.MAX_ITER
    assert result.history.shape == (0,)
    assert_same_mixture(result.mixture, start, by_dtype(1e-4, 1e-12))
    assert_close(result.log_likelihood, jg.log_likelihood(start, array(x)), rtol=RELATIVE)


def test_few_steps_are_the_oracles_and_are_not_called_converged():
    x = cloud()
    start = start_at_random(x, "full")
    result = em(start, x, max_iter=3, history=False)
    mixture, _ = oracle.em(oracle.dense(start), x, "full", 3)
    assert result.n_iter == 3 and result.status == jg.Status.MAX_ITER
    assert result.history is None
    assert_same_mixture(result.mixture, mixture, by_dtype(1e-3, 1e-9))
    expected = oracle.log_likelihood(oracle.dense(result.mixture), x)
    assert_close(result.log_likelihood, expected, rtol=RELATIVE)


def test_a_converged_model_is_confirmed_in_a_few_steps(covariance_type):
    x = blobs()
    first = em(start_from_labels(x, covariance_type), x)
    again = em(first.mixture, x)
    assert again.converged and again.n_iter <= 12
    assert distance(again.mixture, first.mixture) < by_dtype(2e-3, 2e-3)
    assert again.objective >= first.objective - by_dtype(1e-5, 1e-10) * N * 10


def test_interrupted_and_resumed_equals_uninterrupted():
    x = cloud()
    start = start_at_random(x, "full")
    some = em(start, x, max_iter=3, history=False)
    resumed = em(some.mixture, x, tol=TIGHT)
    whole = em(start, x, tol=TIGHT)
    assert_close(resumed.objective, whole.objective, rtol=RELATIVE)
    steps = int(some.n_iter) + 2
    assert_close(resumed.history[1], whole.history[steps - 1], rtol=RELATIVE)


def test_another_type_starts_from_the_nearest_covariance():
    """A full start of a diagonal fit is the diagonal of its covariances."""
    x = blobs()
    full, diag = start_from_labels(x, "full"), start_from_labels(x, "diag")
    result = em(full, x, covariance_type="diag")
    assert result.mixture.covariance_type == "diag"
    assert_same_mixture(result.mixture, em(diag, x).mixture)


@pytest.fixture
def traces(monkeypatch):
    """How often the step of the loop is traced."""
    traced = []
    step = jaxgmm.solvers.loop.step

    def counted(*arguments):
        traced.append(1)
        return step(*arguments)

    monkeypatch.setattr(jaxgmm.solvers.loop, "step", counted)
    return traced


def test_new_numbers_compile_nothing(traces):
    """Neither data, weights, start, tolerance nor regularization are part of the program."""
    x = np.concatenate([blobs(), blobs(seed=1)])[:101]
    start = start_from_labels(blobs(), "tied_spherical")
    other = start_from_labels(blobs(seed=1), "tied_spherical")
    em(start, x)
    assert traces
    before = len(traces)
    for tol, reg_covar, scale in ((1e-3, 1e-3, 2.0), (0.0, 0.0, 1.0), (1, 0, 1.0)):
        em(other, scale * x, np.full(101, scale), tol=tol, reg_covar=reg_covar)
    em(start, x)
    assert len(traces) == before


def test_a_sweep_over_tolerances_is_one_program():
    x = blobs()
    start = start_from_labels(x, "tied_spherical")

    @jax.jit
    @jax.vmap
    def sweep(tol, reg_covar):
        return jg.em(start, array(x), tol=tol, reg_covar=reg_covar)

    results = sweep(array([1e-2, 1e-7]), array([1e-3, 1e-6]))
    for b, (tol, reg_covar) in enumerate([(1e-2, 1e-3), (1e-7, 1e-6)]):
        alone = em(start, x, tol=tol, reg_covar=reg_covar)
        assert abs(int(results[b].n_iter) - int(alone.n_iter)) <= 1
        assert_same_mixture(results[b].mixture, alone.mixture)


def test_a_step_that_is_not_finite_is_not_taken(monkeypatch):
    """The last finite mixture is returned, and the status says why the loop ended."""
    x = cloud()
    start = start_at_random(x, "tied_spherical")
    bound = float(em(start, x, tol=0.0).history[1])
    step = jaxgmm.solvers.loop.step

    def poisoned(*arguments):
        taken = step(*arguments)
        objective = jnp.where(taken.objective > bound, jnp.nan, taken.objective)
        return taken._replace(objective=objective)

    monkeypatch.setattr(jaxgmm.solvers.loop, "step", poisoned)
    result = em(start, x, max_iter=37)
    assert result.status == jg.Status.NON_FINITE and not result.converged
    mixture, _ = oracle.em(oracle.dense(start), x, "tied_spherical", int(result.n_iter) - 1)
    assert 3 <= result.n_iter < 37
    assert_same_mixture(result.mixture, mixture, by_dtype(1e-3, 1e-8))
    with pytest.raises(jg.FitError, match="NON_FINITE"):
        result.check()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tol": np.nan}, ValueError, "tol"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"tol": np.inf}, ValueError, "tol"),
        ({"tol": "small"}, ValueError, "tol"),
        ({"reg_covar": np.nan}, ValueError, "reg_covar"),
        ({"reg_covar": -1.0}, ValueError, "reg_covar"),
        ({"max_iter": -1}, ValueError, "max_iter"),
        ({"max_iter": 2.5}, ValueError, "max_iter"),
        ({"max_iter": True}, ValueError, "max_iter"),
        ({"adjoint": "magic"}, ValueError, "implicit, one_step"),
        ({"covariance_type": "Full"}, ValueError, "tied_spherical"),
        ({"weights": -np.ones(N)}, ValueError, "weights"),
    ],
)
def test_em_refuses(options, error, message):
    x = blobs()
    with pytest.raises(error, match=message):
        em(start_from_labels(x, "full"), x, **options)


def test_em_refuses_a_batch():
    x = blobs()
    start = start_from_labels(x, "full")
    with pytest.raises(ValueError, match="vmap"):
        em(start, np.stack([x, x]), np.ones(N))
    with pytest.raises(ValueError, match="vmap"):
        em(jax.tree.map(lambda leaf: leaf[None], start), x)


def test_results_survive_flattening():
    x = blobs()
    result = em(start_from_labels(x, "full"), x)
    leaves, structure = jax.tree.flatten(result)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert_same_mixture(again.mixture, result.mixture, 1e-6)
    assert result.mixture.means.shape == (K, D)
    with pytest.raises(TypeError, match="not a batch"):
        result[0]


def test_a_batch_of_results_names_the_first_that_failed():
    x = blobs()
    result = em(start_from_labels(x, "full"), x)
    failed = em(start_from_labels(x, "full"), x, tol=0.0)
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), result, failed)
    assert batch[0].check().converged
    with pytest.raises(jg.FitError, match="1 of 2 fits failed: fit 1 stopped"):
        batch.check()


def test_the_regularizations_variance_is_the_weighted_one(covariance_type):
    x = blobs()
    weights = double(array(np.where(LABELS == 2, 0.2, 2.0)))
    start = start_from_labels(x, covariance_type)
    result = em(start, x, weights, reg_covar=0.05, tol=TIGHT)
    r = 0.05 * oracle.variance_of(x, covariance_type, weights)
    mixture, _ = oracle.em(oracle.dense(start), x, covariance_type, 300, weights, r)
    assert_same_mixture(result.mixture, mixture, by_dtype(1e-3, 1e-8))


def test_degenerate_comes_before_max_iter():
    start = start_from_labels(cloud(), "full")
    dead = replace(start, log_weights=array([-np.inf, np.log(0.4), np.log(0.6)]))
    result = em(dead, cloud(), max_iter=3, history=False)
    assert result.n_iter == 3 and result.status == jg.Status.DEGENERATE


def test_the_reported_objective_is_that_of_the_returned_mixture():
    x = cloud()
    result = em(start_at_random(x, "full"), x, reg_covar=1e-2, max_iter=3)
    r = 1e-2 * oracle.variance_of(x, "full")
    expected = oracle.log_likelihood(oracle.dense(result.mixture), x, None, r)
    assert_close(result.objective, expected, rtol=RELATIVE)
    assert_close(result.history[-1], expected, rtol=RELATIVE)


@pytest.mark.parametrize("covariance_type", ["full", "tied_diag"])
def test_the_remaining_gain_is_what_remains(covariance_type):
    """Extrapolated, not that of the last step; an order of magnitude."""
    with jax.enable_x64(True):
        x = jnp.asarray(blobs(width=3.5), "float64")
        start = start_from_labels(blobs(width=3.5), covariance_type)
        start = jax.tree.map(lambda leaf: leaf.astype("float64"), start)
        some, end = (
            jg.em(start, x, tol=tol, history=False, max_iter=20_000) for tol in (1e-4, 1e-14)
        )
        left = float(end.objective - some.objective) / N
        assert left / 1.5 < some.remaining_gain < 10 * left
