"""What every storage and every row of the table of covariance types has to hold."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import DTYPE, EPS, array, assert_close, by_dtype, double
from jax.flatten_util import ravel_pytree

from jaxgmm.covariances.storage import variances

K, D = 3, 3
COUNT = np.array([3.0, 5.0, 7.0])


def check_covariance(storage, dense):
    """A storage, (K or 1, ...), answers as the matrices (K or 1, D, D) do that it stands for."""
    difference = array(np.random.default_rng(1).normal(size=(5, len(dense), dense.shape[-1])))
    n_features = dense.shape[-1]
    whitened = double(storage.whiten(difference))
    inverse = np.linalg.inv(dense)
    square = np.einsum("nki,kij,nkj->nk", double(difference), inverse, double(difference))
    assert_close(np.sum(whitened**2, axis=-1), square, by_dtype(1e-4, 1e-11))
    assert_close(storage.unwhiten(storage.whiten(difference)), difference)
    assert_close(storage.log_det(n_features), np.linalg.slogdet(dense)[1], 0, by_dtype(1e-5, 1e-12))
    assert_close(storage.dense(n_features), dense)
    assert_close(variances(storage, n_features), np.einsum("kii->ki", dense))


def scatter_of(row, seed=0):
    """Sums of squares of K components, as the row wants them."""
    roots = np.random.default_rng(seed).normal(size=(K, D, D + 2))
    matrices = COUNT[:, None, None] * (roots @ np.swapaxes(roots, 1, 2))
    return matrices if row.full_second_moment else np.einsum("kii->ki", matrices)


def complete_log_likelihood(covariance, square, count):
    """Of rows with these sums of squares about their means and counts: (), without constants."""
    dense = jnp.broadcast_to(covariance.dense(D), (K, D, D))
    matrices = square if square.ndim == 3 else square[:, :, None] * jnp.eye(D, dtype=DTYPE)[None]
    traces = jnp.einsum("kij,kij->k", jnp.linalg.inv(dense), matrices)
    return -jnp.sum(count * jnp.linalg.slogdet(dense)[1] + traces) / 2


def check_structure(row):
    """A row of the table: estimate, chart and questions agree with one another."""
    count, scatter = array(COUNT), array(scatter_of(row))
    covariance = row.estimate(count, scatter, None)
    chart = row.chart
    numbers, unravel = ravel_pytree(chart.numbers(covariance))
    tolerance = by_dtype(3e-4, 1e-9)

    # The free parameters are as many as they are said to be, and stand for the covariance.
    assert numbers.size == row.n_parameters(K, D)
    assert_close(chart.covariance(unravel(numbers)).dense(D), covariance.dense(D))
    assert row.conforms(covariance, D)
    assert row.stores(covariance, K) == (not row.coupled)
    written = row.variances(covariance, D)
    assert written.shape == row.shape(K, D)
    assert_close(row.store(written).dense(D), covariance.dense(D))
    nearest = row.nearest(covariance, array(COUNT / COUNT.sum()), D)
    assert_close(nearest.dense(D), covariance.dense(D))

    # The estimate is the maximum, whatever it starts from.
    @jax.jit
    def of_numbers(numbers):
        covariance = chart.covariance(unravel(numbers))
        return complete_log_likelihood(covariance, scatter, count) / jnp.sum(count)

    assert_close(jax.jit(jax.grad(of_numbers))(numbers), np.zeros(numbers.size), 0, tolerance)
    step = 0.1 * np.random.default_rng(2).normal(size=(4, numbers.size))
    assert all(of_numbers(numbers + array(s)) < of_numbers(numbers) for s in step)
    other = row.estimate(count, array(scatter_of(row, seed=1)), None)
    again = row.estimate(count, scatter, other)
    assert_close(again.dense(D), covariance.dense(D), 0, by_dtype(1e-4, 1e-11))

    # Steps: none stays, the score is a gradient, and complete data have the information they say.
    unit = jnp.ones(1, DTYPE) if row.shared else jnp.sqrt(jnp.sum(count) / count)
    moments, counts = scatter, count
    if row.shared:
        moments, counts = jnp.sum(scatter, axis=0)[None], jnp.sum(count)[None]
    zero = jax.tree.map(jnp.zeros_like, chart.numbers(covariance))
    origin, as_step = ravel_pytree(zero)
    assert_close(chart.retract(other, unit, zero, D).dense(D), other.dense(D))

    def around(covariance):
        def of_step(step):
            moved = chart.retract(covariance, unit, as_step(step), D)
            return complete_log_likelihood(moved, scatter, count)

        return jax.jit(of_step)

    slope = ravel_pytree(chart.score(other, unit, moments, counts))[0]
    assert_close(
        slope, jax.jit(jax.grad(around(other)))(origin), by_dtype(1e-3, 1e-8), by_dtype(1e-3, 1e-8)
    )
    hessian = -jax.jit(jax.hessian(around(covariance)))(origin) / jnp.sum(count)
    if chart.information is None:
        assert_close(hessian, np.eye(origin.size), 0, by_dtype(1e-3, 1e-8))
    else:
        mean_square = moments / jnp.sum(count)
        columns = [
            ravel_pytree(chart.information(covariance, unit, mean_square, as_step(column)))[0]
            for column in jnp.eye(origin.size, dtype=DTYPE)
        ]
        assert_close(np.stack(columns), hessian, 0, by_dtype(1e-3, 1e-8))
        assert_close(np.diag(hessian), np.ones(origin.size), 0, by_dtype(1e-3, 1e-8))

    check_units(row, count, scatter, covariance)
    check_a_component_of_no_rows(row, count, scatter, covariance)
    check_derivatives(row, count, scatter)


def check_units(row, count, scatter, covariance):
    """Of data in other units the estimate is that in these units, as far as the type allows."""
    scale = np.full(3, 2.0) if row.isotropic else np.array([1e-6, 1.0, 1e6])
    squared = scale[:, None] * scale[None] if row.full_second_moment else scale**2
    plain = double(row.estimate(count, scatter, None).dense(D))
    moved = row.estimate(count, scatter * array(squared)[None], None)
    back = double(moved.dense(D)) / (scale[:, None] * scale[None])[None]
    assert_close(back, plain, 0, by_dtype(1e-4, 1e-10) * np.abs(plain).max())


def check_a_component_of_no_rows(row, count, scatter, covariance):
    """One more component with hardly any rows changes nothing for the others."""
    if row.shared:
        return
    few = EPS**2 * jnp.sum(count)[None]
    more = row.estimate(
        jnp.concatenate([count, few]),
        jnp.concatenate([scatter, few[0] * 9 * scatter[:1]]),
        None,
    )
    assert_close(more.dense(D)[:K], covariance.dense(D), 0, by_dtype(1e-5, 1e-13) * 10)
    assert np.isfinite(double(more.dense(D))).all()


def check_derivatives(row, count, scatter):
    """Of the estimate, forward and backward, are those of finite differences."""
    direction = array(scatter_of(row, seed=3))
    cotangent = array(np.random.default_rng(4).normal(size=(1 if row.shared else K, D, D)))

    @jax.jit
    def along(length):
        covariance = row.estimate(count, scatter + length * direction, None)
        return jnp.sum(cotangent * covariance.dense(D))

    zero, step = jnp.zeros((), DTYPE), by_dtype(3e-2, 1e-4)
    slope = jax.jit(jax.jacfwd(along))(zero)
    assert_close(jax.jit(jax.grad(along))(zero), slope, by_dtype(1e-3, 1e-8), by_dtype(1e-3, 1e-8))
    quotient = (along(zero + step) - along(zero - step)) / (2 * step)
    assert_close(slope, quotient, by_dtype(3e-2, 1e-5), by_dtype(3e-2, 1e-6))
