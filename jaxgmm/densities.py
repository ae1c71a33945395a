"""Log densities of Gaussian components, at any distance and without N·K·D arrays."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.covariance import Covariance
from jaxgmm.numerics import chunk_size, log_softmax, logsumexp, map_over_chunks


def log_normalizer(covariance: Covariance, n_features: int) -> Array:
    """½ (D log 2π + log |Σ_k|): (K or 1,)."""
    return (n_features * math.log(2 * math.pi) + covariance.log_det(n_features)) / 2


def near_and_far(covariance: Covariance, means: Array, x: Array) -> tuple[Array, Array]:
    """log N(x | μ_k, Σ_k), and the same for points pulled in from where squares overflow.

    Args:
        covariance: of K components.
        means: (K, D).
        x: (N, D).

    Returns:
        (N, K) log densities, -inf where they can't be represented, and (N, K) log densities that
        are always finite and whose differences have the right sign. The two are equal wherever
        squares don't overflow.
    """
    z = covariance.whiten(x[:, None, :] - means[None])
    limit = (float(jnp.finfo(z.dtype).max) / z.shape[-1]) ** 0.5 / 4
    radius = jnp.max(jnp.abs(z), axis=(1, 2), keepdims=True, initial=1)
    shrink = lax.stop_gradient(jnp.minimum(1, limit / radius))
    half_square = jnp.sum((z * shrink) ** 2, axis=-1) / 2
    constant = log_normalizer(covariance, z.shape[-1])[None]
    shrink = shrink[..., 0]
    return -half_square / shrink / shrink - constant, -half_square - constant


def _over_rows(function: Callable[[Array], Array], x: Array, n_components: int) -> Array:
    """`function` of (rows, D) on (..., D), a chunk of rows at a time."""
    n_features = x.shape[-1]
    rows = x.reshape(-1, n_features)
    values = map_over_chunks(function, rows, chunk_size(rows.shape[0], n_components * n_features))
    return values.reshape(*x.shape[:-1], *values.shape[1:])


@jax.jit
def component_log_prob(covariance: Covariance, means: Array, x: Array) -> Array:
    """log N(x | μ_k, Σ_k): (..., D) -> (..., K)."""
    return _over_rows(lambda rows: near_and_far(covariance, means, rows)[0], x, means.shape[0])


@jax.jit
def log_prob(log_weights: Array, covariance: Covariance, means: Array, x: Array) -> Array:
    """log Σ_k w_k N(x | μ_k, Σ_k): (..., D) -> (...)."""

    def log_prob_of(rows: Array) -> Array:
        near, _ = near_and_far(covariance, means, rows)
        return logsumexp(near + log_weights[None])

    return _over_rows(log_prob_of, x, means.shape[0])


@jax.jit
def log_responsibilities(
    log_weights: Array, covariance: Covariance, means: Array, x: Array
) -> Array:
    """log p(k | x): (..., D) -> (..., K)."""

    def log_responsibilities_of(rows: Array) -> Array:
        _, far = near_and_far(covariance, means, rows)
        return log_softmax(far + log_weights[None])

    return _over_rows(log_responsibilities_of, x, means.shape[0])
