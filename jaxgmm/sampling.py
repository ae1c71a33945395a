"""Draws from a mixture, and how they move with its parameters."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import ndtr
from jax.scipy.stats import norm

from jaxgmm.covariance import Covariance, Full, diagonal_of_factors, pick
from jaxgmm.numerics import log_softmax, varying

Parameters = tuple[Array, Array, Covariance]

# So many terms of a matrix product are one operation on all rows.
COLUMNS_AT_ONCE = 64


@partial(jax.jit, static_argnames="n")
def draw(parameters: Parameters, key: Array, n: int) -> tuple[Array, Array]:
    """Rows and the components that they are from: (n, D), (n,) int.

    Rows are NaN where the weights are, or all 0.

    Args:
        parameters: log-weights (K,), means (K, D) and covariance.
        key: a JAX PRNG key.
        n: how many.
    """
    log_weights, means, covariance = parameters
    key_of_labels, key_of_noise = jax.random.split(key)
    ends = jnp.cumsum(jnp.exp(log_weights))
    # Labels without weight have no room, not even behind the last end, which is 1.
    uniform = jax.random.uniform(key_of_labels, (n,), means.dtype)
    labels = jnp.searchsorted(ends / ends[-1], uniform, side="right", method="compare_all")
    noise = jax.random.normal(key_of_noise, (n, means.shape[1]), means.dtype)
    x = means[labels] + _unwhitened(covariance, labels, noise)
    return jnp.where(ends[-1] > 0, x, jnp.nan), labels


def _unwhitened(covariance: Covariance, labels: Array, noise: Array) -> Array:
    """L z of each row's own component: (n, D), without (n, D, D) numbers."""
    if not isinstance(covariance, Full):
        return pick(covariance, labels).unwhiten(noise)
    columns = jnp.swapaxes(covariance.scale_tril, 1, 2)

    @jax.checkpoint
    def with_column(j: Array, total: Array) -> Array:
        column = lax.dynamic_index_in_dim(columns, j, axis=1, keepdims=False)
        return total + column[labels % column.shape[0]] * lax.dynamic_slice_in_dim(
            noise, j, 1, axis=1
        )

    n_features = noise.shape[1]
    unroll = min(n_features, COLUMNS_AT_ONCE)
    start = varying(jnp.zeros_like(noise), columns, labels)
    return lax.fori_loop(0, n_features, with_column, start, unroll=unroll)


@jax.custom_jvp
def carried_along(parameters: Parameters, x: Array) -> Array:
    """Draws (n, D), which move with all parameters as their distribution does.

    A draw keeps its place among all draws: the probability of a smaller first feature, and those of
    smaller further ones, given the ones before. That determines how it moves, with the weights,
    too, though no draw ever changes its component.

    Source: Figurnov, Mohamed & Mnih 2018 (implicit reparameterization).
    """
    return x


@carried_along.defjvp
def _differentiate_carried_along(
    primals: tuple[Parameters, Array], tangents: tuple[Parameters, Array]
) -> tuple[Array, Array]:
    parameters, x = primals

    def velocity(row: Array) -> Array:
        moved = jax.jvp(lambda moving: place(moving, row), (parameters,), (tangents[0],))[1]
        slopes = jax.jacfwd(lambda row: place(parameters, row))(row)
        return -solve_triangular(slopes, moved, lower=True)

    return x, jax.vmap(velocity)(x) + tangents[1]


def place(parameters: Parameters, row: Array) -> Array:
    """P(x_d ≤ row_d | the features before it), of each feature d: (D,) -> (D,)."""
    log_weights, means, covariance = parameters
    z = covariance.whiten((row[None] - means)[None])[0]
    scales = diagonal_of_factors(covariance, row.size)
    log_density = norm.logpdf(z) - jnp.log(scales)
    before = jnp.cumsum(log_density, axis=1) - log_density
    responsibilities = jnp.exp(log_softmax(log_weights[:, None] + before, axis=0))
    return jnp.sum(responsibilities * ndtr(z), axis=0)
