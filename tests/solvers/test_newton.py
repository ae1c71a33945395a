"""The objective around a maximum, and what follows from it: Newton steps, derivatives, polish."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DTYPE,
    EPS,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    set_budget,
    start_from_labels,
)

import jaxgmm as jg
from jaxgmm.arrays.budgets import CPU
from jaxgmm.arrays.krylov import conjugate_residuals
from jaxgmm.covariances.structures import structure_named
from jaxgmm.solvers.newton import LocalModel, newton
from jaxgmm.steps.problem import problem_of

X = blobs(width=2.0)


def at_the_top(covariance_type):
    """A problem, and the mixture at its maximum, in standardized coordinates."""
    x = array(X)
    start = start_from_labels(X, covariance_type)
    problem = problem_of(
        x, jnp.ones(len(X), DTYPE), array(1e-3), 3, structure_named(covariance_type)
    )
    climb = jax.jit(lambda mixture: newton(problem, mixture))
    return problem, climb(problem.rows.standardization.transform(start))


def test_newton_steps_end_where_the_gradient_vanishes_and_em_stays(covariance_type):
    problem, ascent = at_the_top(covariance_type)
    view = LocalModel.of(problem, ascent.mixture)
    assert ascent.n_tried < 30
    assert jnp.linalg.norm(view.gradient()) < by_dtype(1e-4, 1e-10)
    assert_same_mixture(view.em_step(), ascent.mixture, by_dtype(1e-3, 1e-9))


def test_products_are_those_with_the_hessian(covariance_type):
    problem, ascent = at_the_top(covariance_type)
    view = LocalModel.of(problem, ascent.mixture)
    origin, _ = view.origin()

    def objective(step):
        mixture = view.mixture_at(step)
        return problem.log_likelihood_and_objective(mixture)[1] / len(X)

    direction = jnp.cos(jnp.arange(origin.size, dtype=DTYPE))
    products = jax.jit(view.information())(direction)
    expected = jax.jit(lambda d: -jax.jvp(jax.grad(objective), (origin,), (d,))[1])(direction)
    assert_close(products, expected, 0, by_dtype(1e-3, 1e-8))
    # Between 0, for what only completed data would tell, and 1.
    share = jnp.vdot(direction, products) / jnp.vdot(direction, direction)
    assert 0 < share <= 1 + 100 * EPS


def test_negative_curvature_is_noticed():
    matrix = jnp.diag(jnp.asarray([1.0, 0.5, -0.1], DTYPE))
    right = jnp.ones(3, DTYPE)
    assert not conjugate_residuals(lambda v: matrix @ v, right, 1e-3).definite
    assert conjugate_residuals(lambda v: matrix @ matrix @ v, right, 1e-3).definite


def test_newton_steps_never_lower_the_objective_and_leave_a_saddle():
    x = array(X)
    problem = problem_of(x, jnp.ones(len(X), DTYPE), array(1e-3), 3, structure_named("full"))
    # All components alike but for a trace of a difference.
    start = start_from_labels(X, "full", blur=0.999)
    begin = problem.rows.standardization.transform(start)
    before = LocalModel.of(problem, begin).statistics.log_likelihood
    ascent = newton(problem, begin)
    assert ascent.statistics.log_likelihood > before + 1
    assert np.isfinite(double(ascent.mixture.means)).all()


# Of the fixed point itself, whatever the fit's own tolerance.
DIRECTIONS = np.random.default_rng(3).normal(size=(len(X), 2)), np.linspace(-0.5, 0.5, len(X))


@pytest.mark.once
def test_derivatives_are_those_of_the_maximum_whatever_the_tolerance(storage_type):
    with jax.enable_x64(True):
        x, weights, scale = jnp.asarray(X), jnp.ones(len(X)), jnp.asarray(1e-3)
        given = start_from_labels(X, storage_type)
        start = jax.tree.map(lambda leaf: leaf.astype("float64"), given)
        directions = (*map(jnp.asarray, DIRECTIONS), jnp.asarray(0.05))

        def functional(x, weights, reg_covar, tol):
            result = jg.em(
                start,
                x,
                weights=weights,
                reg_covar=reg_covar,
                tol=tol,
                max_iter=1000,
                history=False,
            )
            mixture = result.mixture
            number = jnp.arange(1.0, 7.0).reshape(3, 2)
            of_covariances = jnp.sum(jnp.sin(mixture.covariances) * number[:, :, None])
            moments = jnp.sum(jnp.cos(mixture.means) * number) + of_covariances
            return moments + jnp.sum(mixture.weights**2 * number[:, 0]) + result.log_likelihood

        gradient = jax.jit(jax.grad(functional, argnums=(0, 1, 2)))
        value = jax.jit(lambda *arguments: functional(*arguments, 0.0))
        for i, direction in enumerate(directions):

            def moved(step, i=i, direction=direction):
                arguments = [x, weights, scale]
                arguments[i] = arguments[i] + step * direction
                return value(*arguments)

            wide, narrow = ((moved(h) - moved(-h)) / (2 * h) for h in (2e-3, 1e-3))
            expected = (4 * narrow - wide) / 3
            for tol in (1e-3, 1e-7, 1e-12):
                ours = jnp.vdot(gradient(x, weights, scale, tol)[i], direction)
                np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_one_step_derivative_is_that_of_a_step_of_em():
    x = array(X)
    start = start_from_labels(X, "diag")
    fitted = jg.em(start, x, reg_covar=0.0, polish=True).mixture

    def of_fit(x):
        result = jg.em(fitted, x, reg_covar=0.0, max_iter=0, adjoint="one_step")
        return jnp.sum(jnp.sin(result.mixture.means))

    def of_step(x):
        return jnp.sum(jnp.sin(jg.em_step(fitted, x)[0].means))

    assert_close(jax.grad(of_fit)(x), jax.grad(of_step)(x), 0, by_dtype(1e-4, 1e-6))


@pytest.mark.once
@pytest.mark.parametrize("smallest_pass", [CPU.smallest_pass, 0])
def test_derivatives_of_derivatives_of_a_fit(monkeypatch, smallest_pass):
    """Also where steps are made by matrix products."""
    set_budget(monkeypatch, smallest_pass=smallest_pass)
    jax.clear_caches()
    with jax.enable_x64(True):
        x = jnp.concatenate([jnp.linspace(-1, 1, 20), jnp.linspace(2, 5, 25)])[:, None]
        start = jg.GaussianMixture.create([0.5, 0.5], [[0.0], [3.5]], [0.5, 1.0], "spherical")
        direction = jnp.cos(jnp.arange(45.0))[:, None]

        def functional(step):
            mixture = jg.em(start, x + step * direction, tol=1e-12, history=False).mixture
            return jnp.sum(jnp.sin(mixture.means))

        slope = jax.jit(jax.grad(functional))
        curvature = jax.jit(jax.grad(jax.grad(functional)))(0.0)
        expected = (slope(1e-4) - slope(-1e-4)) / 2e-4
        np.testing.assert_allclose(curvature, expected, rtol=1e-5)


def test_polish_does_what_many_steps_do(storage_type):
    x = array(X)
    start = start_from_labels(X, storage_type)
    plain = jg.em(start, x, max_iter=5000, tol=by_dtype(1e-7, 1e-12))
    polished = jg.em(start, x, max_iter=5000, tol=by_dtype(1e-7, 1e-12), polish=True)
    assert polished.converged
    assert polished.n_iter < plain.n_iter
    assert polished.log_likelihood >= plain.log_likelihood - by_dtype(1e-3, 1e-8)
    history = np.asarray(polished.history)
    assert (np.diff(history) > -by_dtype(1e-2, 1e-8)).all()
    assert history[-1] == polished.objective


def test_polish_in_a_batch_is_that_of_each_fit(key):
    batch = jnp.stack([array(X), array(X) + 1])
    together = jg.fit_batch(key, batch, 3, covariance_type="diag", polish=True)
    alone = jg.fit(jax.random.fold_in(key, 1), batch[1], 3, covariance_type="diag", polish=True)
    assert together.converged.all() and alone.converged
    assert_close(together[1].mixture.means, alone.mixture.means, 0, by_dtype(1e-2, 1e-6))


@pytest.mark.parametrize("option", [{"polish": True}, {"accelerate": "squarem"}])
def test_unrolled_steps_are_plain_ones(option):
    with pytest.raises(ValueError, match="plain steps"):
        jg.em(start_from_labels(X, "diag"), array(X), adjoint="unroll", **option)


@pytest.mark.parametrize("max_iter", [0, 1, 8, 12])
def test_polish_takes_no_more_iterations_than_allowed(max_iter):
    x = blobs()
    start = start_from_labels(x, "full", blur=0.5)
    result = jg.em(start, array(x), max_iter=max_iter, tol=1e-30, polish=True)
    assert result.n_iter <= max_iter
    assert result.history.shape == (max_iter,)
    if max_iter == 0:
        assert result.status == jg.Status.MAX_ITER
        assert_close(result.mixture.means, start.means)
