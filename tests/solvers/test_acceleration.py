"""Accelerated loops: fewer steps, the same promises."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
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
    start_at_random,
    start_from_labels,
)

import jaxgmm as jg
from jaxgmm.solvers import acceleration

METHODS = ["squarem", "anderson"]
SEEDS = range(8)


@pytest.fixture(scope="module")
def climbs():
    """From the same random starts in a single cloud, where components overlap entirely."""
    x = array(cloud())
    starts = [start_at_random(cloud(), "full", seed) for seed in SEEDS]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)

    def climb(method):
        fit = lambda start: jg.em(start, x, accelerate=method, max_iter=3000)  # noqa: E731
        return jax.jit(jax.vmap(fit))(batch)

    return starts, {method: climb(method) for method in (None, *METHODS)}


@pytest.mark.parametrize("method", METHODS)
def test_overlapping_components_take_far_fewer_steps(climbs, method):
    plain, accelerated = climbs[1][None], climbs[1][method]
    assert np.asarray(accelerated.n_iter).mean() < 0.7 * np.asarray(plain.n_iter).mean()
    assert np.mean(np.asarray(accelerated.status) != jg.Status.MAX_ITER) == 1


@pytest.mark.parametrize("method", METHODS)
def test_the_objective_never_falls(climbs, method):
    result = climbs[1][method]
    size = np.abs(double(result.objective))
    falls = np.diff(double(result.history), axis=1).min(axis=1)
    assert np.all(falls >= -by_dtype(1e-5, 1e-10) * size)
    assert np.all(double(result.objective) >= double(result.history).max(axis=1) - 1e-5 * size)


@pytest.mark.parametrize("method", METHODS)
def test_a_converged_fit_has_nothing_left_to_gain(climbs, method):
    """No more than a hundredth of a nat by thousands of further plain steps."""
    x = array(cloud())
    result = climbs[1][method]
    go_on = jax.jit(jax.vmap(lambda start: jg.em(start, x, tol=0.0, max_iter=5000, history=False)))
    gained = double(go_on(result.mixture).objective) - double(result.objective)
    converged = np.asarray(result.converged)
    assert converged.mean() >= 0.5
    assert gained[converged].max() < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_fitted_as_one_by_one(climbs, method):
    """Where rounding doesn't decide which way to go."""
    x = blobs()
    start = start_from_labels(x, "full")
    one = em(start, x, accelerate=method)
    batch = array(np.stack([x, 2 * x]))
    both = jax.vmap(lambda x: jg.em(start, x, accelerate=method))(batch)
    plain = em(start, x)
    assert one.status == both[0].status == jg.Status.CONVERGED
    assert abs(int(one.n_iter) - int(both[0].n_iter)) <= 1
    assert_same_mixture(one.mixture, both[0].mixture, by_dtype(2e-3, 1e-5))
    assert_same_mixture(one.mixture, plain.mixture, by_dtype(2e-3, 2e-3))


@pytest.mark.parametrize("method", METHODS)
def test_extrapolations_that_lead_astray_are_undone(method, monkeypatch):
    """However far the first of them goes."""
    monkeypatch.setattr(acceleration, "FIRST_LIMIT", 1e6)
    x = cloud()
    result = em(start_at_random(x, "full"), x, accelerate=method, max_iter=301)
    history = double(result.history)
    assert np.diff(history).min() >= -by_dtype(1e-5, 1e-10) * np.abs(history[-1])
    assert result.objective > history[0] and np.all(np.isfinite(result.mixture.means))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("max_iter", [1, 2, 3])
def test_what_is_returned_early_is_no_untried_extrapolation(method, max_iter):
    """But a step from a mixture whose objective is known."""
    x = cloud()
    result = em(start_at_random(x, "diag"), x, accelerate=method, max_iter=max_iter)
    before = double(result.history)[: max_iter - 1]
    assert np.all(result.objective >= before) and result.status == jg.Status.MAX_ITER
    expected = jg.log_likelihood(result.mixture, array(x))
    assert_close(result.log_likelihood, expected, rtol=by_dtype(2e-5, 1e-11))


@pytest.mark.parametrize("method", METHODS)
def test_a_component_without_weight_stays_without_and_does_not_stand_in_the_way(method):
    x = cloud()
    start = jg.GaussianMixture.create(
        array([0.5, 0.5, 0.0]),
        array([[-0.5, 0.0], [0.5, 0.0], [0.0, 0.0]]),
        array(np.stack([np.eye(2)] * K)),
    )
    result, plain = em(start, x, accelerate=method), em(start, x)
    assert result.degenerate.tolist() == [False, False, True]
    assert result.mixture.log_weights[2] == -np.inf
    assert result.n_iter < plain.n_iter


def test_nan_under_a_transformation_is_non_finite():
    x = array(np.where(np.arange(N)[:, None] == 3, np.nan, blobs()))
    start = start_from_labels(blobs(), "full")
    result = jax.jit(lambda x: jg.em(start, x, accelerate="squarem"))(x)
    assert result.status == jg.Status.NON_FINITE
    assert_same_mixture(result.mixture, start, by_dtype(1e-4, 1e-12))


def test_derivatives_are_those_of_the_fixed_point():
    start = start_from_labels(blobs(), "tied_spherical")

    @partial(jax.jit, static_argnums=1)
    @jax.grad
    def derivative(x, method):
        return spread(x, method)

    def spread(x, method):
        result = jg.em(start, x, accelerate=method, tol=by_dtype(1e-7, 1e-12), history=False)
        return result.mixture.covariance_matrix().trace()

    plain, accelerated = (derivative(array(blobs()), method) for method in (None, "squarem"))
    assert_close(accelerated, plain, rtol=0, atol=by_dtype(1e-4, 1e-9))


@pytest.mark.parametrize("options", [{"accelerate": "fast"}, {"accelerate": True}])
def test_unknown_methods_are_refused(options):
    with pytest.raises(ValueError, match="squarem, anderson"):
        em(start_from_labels(blobs(), "full"), blobs(), **options)


def test_all_steps_are_gone_back_through_only_where_they_are_plain():
    with pytest.raises(ValueError, match="plain steps"):
        em(start_from_labels(blobs(), "full"), blobs(), accelerate="squarem", adjoint="unroll")
