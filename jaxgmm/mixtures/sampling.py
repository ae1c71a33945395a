"""Draws from a mixture, and how they move with its parameters."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import ndtr
from jax.scipy.stats import norm

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.chunks import map_over_chunks
from jaxgmm.arrays.matrices import inverse_of_lower
from jaxgmm.arrays.numerics import einsum, log_softmax, varying
from jaxgmm.covariances.storage import (
    Covariance,
    diagonal_of_factors,
    factors,
    is_diagonal,
    pick,
    with_inverse,
)

Parameters = tuple[Array, Array, Covariance]

# So many terms of a matrix product are one operation on all rows.
COLUMNS_AT_ONCE = 64
# With so many components or fewer it is faster to compare a number with all ends than to search.
COMPARED = 16


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
    weights = lax.stop_gradient(jnp.exp(log_weights))
    labels = draw_labels(weights, key_of_labels, n)
    noise = jax.random.normal(key_of_noise, (n, means.shape[1]), means.dtype)
    x = means[labels] + _unwhitened(covariance, labels, noise)
    return jnp.where(jnp.sum(weights) > 0, x, jnp.nan), labels


def draw_labels(weights: Array, key: Array, n: int) -> Array:
    """Components with probabilities in proportion to weights (K,), by their inverse CDF: (n,) int.

    The smallest weights stand first, where sums of them are small and floats are close together:
    the probability of each is right to some roundings of its own size. What has no weight has no
    room, as no sum before the first weight is above 0, and 1 is never drawn.

    Args:
        weights: (K,) not negative.
        key: a JAX PRNG key.
        n: how many.
    """
    order = jnp.argsort(weights)
    # However the sums are made, none is above the next.
    ends = lax.cummax(jnp.cumsum(weights[order]))
    precision = jnp.finfo(weights.dtype)
    # All bits of a word: near 0 they are finer than those of a `uniform` float.
    bits = jax.random.bits(key, (n,), f"uint{precision.bits}")
    uniform = bits.astype(weights.dtype) * 2.0**-precision.bits
    uniform = jnp.minimum(uniform, 1 - float(precision.epsneg))
    method = "compare_all" if weights.size <= COMPARED else "scan_unrolled"
    return order[jnp.searchsorted(ends / ends[-1], uniform, side="right", method=method)]


def _unwhitened(covariance: Covariance, labels: Array, noise: Array) -> Array:
    """L z of each row's own component: (n, D), without (n, D, D) numbers."""
    if is_diagonal(covariance):
        return pick(covariance, labels).unwhiten(noise)
    columns = jnp.swapaxes(factors(covariance, noise.shape[1]), 1, 2)

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
def reparameterized(parameters: Parameters, x: Array) -> Array:
    """Draws (n, D), which move with all parameters as their distribution does.

    A draw keeps its place among all draws: the probability of a smaller first feature, and those of
    smaller further ones, given the ones before. That determines how it moves, with the weights,
    too, though no draw ever changes its component.

    Source: Figurnov, Mohamed & Mnih 2018 (implicit reparameterization).
    """
    return x


@reparameterized.defjvp
def _differentiate_carried_along(
    primals: tuple[Parameters, Array], tangents: tuple[Parameters, Array]
) -> tuple[Array, Array]:
    (log_weights, means, covariance), x = primals

    covariance, covariance_moved = jax.jvp(with_inverse, (covariance,), (tangents[0][2],))
    parameters = (log_weights, means, covariance)
    parameters_moved = (*tangents[0][:2], covariance_moved)

    def velocity(row: Array) -> Array:
        moved = jax.jvp(
            lambda moving: rosenblatt_transform(moving, row), (parameters,), (parameters_moved,)
        )[1]
        slopes = jax.jacfwd(lambda row: rosenblatt_transform(parameters, row))(row)
        return -einsum("ij,j->i", inverse_of_lower(slopes), moved)

    numbers_per_row = means.size * means.shape[1]
    n_rows = min(x.shape[0], max(1, budget().block // numbers_per_row))
    return x, map_over_chunks(jax.vmap(velocity), x, n_rows) + tangents[1]


def rosenblatt_transform(parameters: Parameters, row: Array) -> Array:
    """P(x_d ≤ row_d | the features before it), of each feature d: (D,) -> (D,)."""
    log_weights, means, covariance = parameters
    z = covariance.whiten((row[None] - means)[None])[0]
    scales = diagonal_of_factors(covariance, row.size)
    log_density = norm.logpdf(z) - jnp.log(scales)
    before = jnp.cumsum(log_density, axis=1) - log_density
    responsibilities = jnp.exp(log_softmax(log_weights[:, None] + before, axis=0))
    return jnp.sum(responsibilities * ndtr(z), axis=0)
