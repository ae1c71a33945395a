"""Derivatives: finite wherever the value is, and those of the fit are right."""

from dataclasses import replace

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
    em,
    padded,
    start_from_labels,
)
from jax.test_util import check_grads

import jaxgmm as jg
from jaxgmm.arrays.krylov import conjugate_residuals

RNG = np.random.default_rng(7)
BLOBS = np.concatenate([RNG.normal(size=(25, 2)), RNG.normal(size=(25, 2)) * [1.0, 0.5] + 3.0])
WEIGHTS = RNG.uniform(0.5, 1.5, size=50)
DIRECTION = RNG.normal(size=(50, 2))


def functional(x, weights, reg_covar, **options):
    """A smooth number that doesn't depend on the order of the components."""
    given = ([0.5, 0.5], [[0.0, 0.0], [3.0, 3.0]], [1.0, 1.0])
    start = jg.GaussianMixture.create(*(jnp.asarray(a, x.dtype) for a in given), "spherical")
    options = {"tol": 1e3 * EPS**2, "history": False, **options}
    result = jg.em(
        start, x, weights=weights, reg_covar=reg_covar, covariance_type="full", **options
    )
    mixture = result.mixture
    moments = jnp.sum(jnp.sin(mixture.means)) + jnp.sum(jnp.cos(mixture.covariances))
    return moments + jnp.sum(mixture.weights**2) + result.log_likelihood / 50


gradient = jax.jit(jax.grad(functional, argnums=(0, 1, 2)))


def arguments():
    return jnp.asarray(BLOBS, DTYPE), jnp.asarray(WEIGHTS, DTYPE), jnp.asarray(1e-3, DTYPE)


def test_implicit_derivative_equals_derivative_of_all_steps():
    of_all_steps = jax.jit(
        jax.grad(lambda *a: functional(*a, adjoint="unroll", max_iter=150), argnums=(0, 1, 2))
    )
    for ours, theirs in zip(gradient(*arguments()), of_all_steps(*arguments()), strict=True):
        scale = float(jnp.max(jnp.abs(theirs)))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=max(1e-5, 3e4 * EPS) * scale)


def test_forward_and_reverse_derivatives_of_a_fit_agree():
    x, weights, reg_covar = arguments()
    direction = jnp.asarray(DIRECTION, DTYPE)
    of_data = lambda x: functional(x, weights, reg_covar)  # noqa: E731
    forward = jax.jit(lambda x: jax.jvp(of_data, (x,), (direction,))[1])(x)
    reverse = jnp.vdot(gradient(x, weights, reg_covar)[0], direction)
    np.testing.assert_allclose(forward, reverse, rtol=3e4 * EPS)


@pytest.mark.once
def test_derivative_of_a_fit_is_the_limit_of_differences():
    with jax.enable_x64(True):
        x, direction = jnp.asarray(BLOBS), jnp.asarray(DIRECTION)
        rest = (jnp.asarray(WEIGHTS), jnp.asarray(1e-3))

        @jax.jit
        def value_and_derivative(x):
            fit = lambda x: functional(x, *rest, tol=1e-14, max_iter=5000)  # noqa: E731
            return jax.jvp(fit, (x,), (direction,))

        derivative = value_and_derivative(x)[1]
        above, below = (value_and_derivative(x + step * direction)[0] for step in (1e-4, -1e-4))
        np.testing.assert_allclose(derivative, (above - below) / 2e-4, rtol=1e-5)


def test_derivative_of_a_batch_is_that_of_each_fit():
    x, weights, reg_covar = arguments()
    batch = jnp.stack([x, x[:, ::-1]])
    together = jax.vmap(lambda x: gradient(x, weights, reg_covar)[0])(batch)
    for one, of_batch in zip(batch, together, strict=True):
        alone = gradient(one, weights, reg_covar)[0]
        np.testing.assert_allclose(alone, of_batch, atol=1e5 * EPS)


def test_derivative_of_a_degenerate_fit_is_finite():
    _, weights, reg_covar = arguments()
    repeated = jnp.zeros((50, 2), DTYPE).at[:20].set(3)
    for leaf in gradient(repeated, weights, reg_covar):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("point", [0.0, 1.0, 1e3, 1e6, 1e15])
def test_derivatives_of_a_density_are_finite(point):
    mixture = jg.GaussianMixture.create(
        jnp.asarray([0.0, 0.5, 0.5], DTYPE),
        jnp.asarray([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]], DTYPE),
        jnp.asarray([1.0, 0.01, 0.01], DTYPE),
        "spherical",
    )
    x = jnp.full(2, point, DTYPE)
    for of_point in (
        lambda mixture, x: mixture.log_prob(x),
        lambda mixture, x: mixture.responsibilities(x)[1],
    ):
        for leaf in jax.tree.leaves(jax.grad(of_point, argnums=(0, 1))(mixture, x)):
            assert np.isfinite(leaf).all()


def test_derivative_of_log_density_equals_its_formula():
    covariance = np.array([[2.0, 0.6], [0.6, 1.0]])
    mixture = jg.GaussianMixture.create(
        *(jnp.asarray(value, DTYPE) for value in ([1.0], [[1.0, -1.0]], [covariance]))
    )
    x = np.array([0.3, 0.4])
    expected = -np.linalg.solve(covariance, x - [1.0, -1.0])
    actual = jax.grad(mixture.log_prob)(jnp.asarray(x, DTYPE))
    np.testing.assert_allclose(actual, expected, rtol=100 * EPS)


def test_conjugate_residuals_solve_a_nonsymmetric_system():
    matrix = jnp.eye(6) + jnp.asarray(RNG.normal(size=(6, 6)) / 8, DTYPE)
    solution = jnp.arange(1.0, 7.0, dtype=DTYPE)
    found = conjugate_residuals(lambda v: matrix @ v, matrix @ solution, 32 * EPS).vector
    np.testing.assert_allclose(found, solution, rtol=1e4 * EPS)


def test_conjugate_residuals_of_a_singular_system_are_finite():
    matrix = jnp.diag(jnp.asarray([1.0, 0.5, 0.0], DTYPE))
    found = conjugate_residuals(lambda v: matrix @ v, jnp.ones(3, DTYPE), 32 * EPS)
    assert np.isfinite(found.vector).all()


def test_unrolled_steps_are_those_of_the_loop():
    x = blobs()
    start = start_from_labels(x, "full")
    loop, unrolled = (em(start, x, adjoint=name, max_iter=50) for name in ("implicit", "unroll"))
    assert loop.n_iter == unrolled.n_iter < 50 and loop.status == unrolled.status
    assert_same_mixture(unrolled.mixture, loop.mixture, by_dtype(1e-5, 1e-12))


def test_derivative_with_a_dead_component_is_finite():
    x = array(blobs())
    start = start_from_labels(blobs(), "diag")
    dead = replace(start, log_weights=array([-np.inf, np.log(0.4), np.log(0.6)]))

    @jax.grad
    def gradient(x):
        result = jg.em(dead, x)
        mixture = result.mixture
        return result.log_likelihood + jnp.sum(mixture.means) + jnp.sum(mixture.weights)

    assert np.isfinite(double(gradient(x))).all()


@pytest.mark.parametrize("adjoint", ["implicit", "unroll"])
def test_derivative_with_absent_rows_is_finite(adjoint):
    x, weights = padded(blobs()[:60])
    start = start_from_labels(blobs(), "diag")

    @jax.jit
    @jax.grad
    def gradient(x):
        return jg.em(start, x, weights=weights, adjoint=adjoint, max_iter=30).log_likelihood

    derivative = double(gradient(x))
    assert np.isfinite(derivative).all() and not derivative[60:].any()


@pytest.mark.once
def test_derivatives_of_a_fit_that_stopped_early_are_those_of_the_maximum():
    with jax.enable_x64(True):
        x = jnp.asarray(blobs(width=2.5), "float64")
        start = jax.tree.map(
            lambda leaf: leaf.astype("float64"), start_from_labels(blobs(width=2.5), "diag")
        )

        @jax.jit
        @jax.grad
        def gradient(x, tol):
            mixture = jg.em(start, x, tol=tol, max_iter=5000).mixture
            return jnp.sum(mixture.means * jnp.arange(1.0, 7.0).reshape(3, 2))

        early, late = gradient(x, 1e-7), gradient(x, 1e-15)
        assert_close(early, late, rtol=0, atol=1e-4 * float(jnp.max(jnp.abs(late))))


def with_float64(tree):
    return jax.tree.map(lambda leaf: leaf.astype("float64"), tree)


@pytest.mark.once
def test_densities_have_derivatives_to_second_order(storage_type):
    with jax.enable_x64(True):
        mixture = with_float64(start_from_labels(blobs(), storage_type))
        points = jnp.asarray([[0.3, -0.2], [4.0, 2.0]], "float64")

        def log_prob(step, points):
            moved = jax.tree.map(lambda leaf: leaf * (1 + 0.1 * step), mixture)
            return moved.log_prob(points)

        def entropy(step):
            moved = jax.tree.map(lambda leaf: leaf * (1 + 0.1 * step), mixture)
            return jg.entropy(moved).upper

        check_grads(jax.jit(log_prob), (jnp.asarray(0.3), points), order=2, rtol=1e-5)
        check_grads(jax.jit(entropy), (jnp.asarray(0.3),), order=2, rtol=1e-5)


def test_gradient_through_a_hundred_fits_at_once_is_that_of_each():
    x = array(np.stack([blobs(seed=seed)[:, :1] for seed in range(100)]))
    keys = jax.vmap(lambda b: jax.random.fold_in(jax.random.key(0), b))(jnp.arange(100))

    def number(key, x):
        mixture = jg.fit(key, x, 2, covariance_type="tied", history=False).mixture
        return jnp.sum(jnp.sin(mixture.means)) + jnp.sum(mixture.weights**2)

    together = jax.jit(jax.grad(lambda x: jnp.sum(jax.vmap(number)(keys, x))))(x)
    alone = jax.jit(jax.grad(number, argnums=1))
    one_by_one = jnp.stack([alone(key, one) for key, one in zip(keys, x, strict=True)])
    largest = float(jnp.max(jnp.abs(one_by_one)))
    assert_close(together, one_by_one, rtol=0, atol=by_dtype(1e-3, 1e-9) * largest)


# A component without weight, twins, and a tight one.
NASTY = jg.GaussianMixture(
    jnp.log(array([0.0, 0.3, 0.3, 0.4])),
    array([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, -2.0]]),
    jg.Diagonal(array([[1.0, 1.0], [0.1, 0.1], [0.1, 0.1], [1e-5, 1e-5]])),
)
USES = {
    "responsibilities": lambda m, x: m.responsibilities(x),
    "marginal": lambda m, x: jg.marginal(m, 1).log_prob(x[1:]),
    "condition": lambda m, x: jg.condition(m, 0, x[:1]).log_prob(x[1:]),
    "regress": lambda m, x: jnp.concatenate([jnp.ravel(a) for a in jg.regress(m, [0], x[:1])]),
    "affine": lambda m, x: jg.affine(m, jnp.eye(2, dtype=DTYPE), x).log_prob(x),
    "product": lambda m, x: jg.product(m, jg.affine(m, jnp.eye(2, dtype=DTYPE), x)).log_prob(x),
    "reduce": lambda m, x: jg.reduce(m, 2).log_prob(x),
    "mahalanobis": lambda m, x: jg.mahalanobis(m, x),
    "cdf": lambda m, x: jg.cdf(jg.marginal(m, 0), x[0]),
    "quantile": lambda m, x: jg.quantile(jg.marginal(m, 0), array(0.4)) + 0 * x[0],
    "sample": lambda m, x: m.sample(jax.random.key(0), 30) * x[0],
    "entropy": lambda m, x: jg.entropy(m).value + 0 * x[0],
    "kl_divergence": lambda m, x: (
        jg.kl_divergence(jg.affine(m, jnp.eye(2, dtype=DTYPE), jnp.tanh(x)), m).value
    ),
    "l2_distance": lambda m, x: jg.l2_distance(m, jg.affine(m, jnp.eye(2, dtype=DTYPE), x)),
    "cauchy_schwarz": lambda m, x: jg.cauchy_schwarz_divergence(
        m, jg.affine(m, jnp.eye(2, dtype=DTYPE), jnp.tanh(x))
    ),
    "icl": lambda m, x: jg.icl(m, x[None]),
    "niw_prior": lambda m, x: jg.niw_prior(m, x[None]).scale,
}


@pytest.mark.parametrize("use", USES)
def test_in_a_batch_of_a_program_everything_is_what_it_is_alone(use):
    points = array([[1.0, 0.5], [-0.3, 2.0]])
    together = jax.jit(jax.vmap(USES[use], (None, 0)))(NASTY, points)
    alone = jnp.stack([jnp.asarray(USES[use](NASTY, point)) for point in points])
    assert_close(together, alone, rtol=by_dtype(1e-3, 1e-8), atol=by_dtype(1e-3, 1e-8))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("point", [1.0, 1e6])
def test_derivatives_are_finite_wherever_the_value_is(use, point):
    def number(mixture, x):
        return jnp.sum(USES[use](mixture, x))

    with_slopes = jax.jit(jax.value_and_grad(number, argnums=(0, 1)))
    value, slopes = with_slopes(NASTY, array([point, point]))
    assert np.isfinite(value)
    assert all(np.isfinite(double(leaf)).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("init", ["k-means++", "random_from_data"])
def test_starts_are_constants_to_unrolled_derivatives(init, key):
    """A partition moves with no row but by jumps; its M-step, and all steps after it, do."""
    x = blobs()

    def mean(x):
        options = {"init": init, "adjoint": "unroll", "max_iter": 3, "history": False}
        return jg.fit(key, x, 3, covariance_type="diag", **options).mixture.means.sum()

    # Each component's mean moves by its own share of what its rows do, so all of them by the sum.
    slope = jax.jit(jax.grad(mean))(array(x))
    assert_close(slope.sum(axis=0), [3, 3], rtol=1e-3)
