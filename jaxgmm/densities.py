"""Log densities of Gaussian components, at any distance and without N·K·D arrays."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.covariance import Covariance
from jaxgmm.numerics import chunk_size, einsum, log_softmax, logsumexp, map_over_chunks


def log_normalizer(covariance: Covariance, n_features: int) -> Array:
    """½ (D log 2π + log |Σ_k|): (K or 1,)."""
    return (n_features * math.log(2 * math.pi) + covariance.log_det(n_features)) / 2


def log_density(covariance: Covariance, means: Array, x: Array) -> Array:
    """log N(x | μ_k, Σ_k), -inf where it can't be represented: (N, D) -> (N, K)."""
    z = covariance.whiten(x[:, None, :] - means[None])
    square = einsum("nki,nki->nk", z, z)
    return -square / 2 - log_normalizer(covariance, z.shape[-1])[None]


def far_density(covariance: Covariance, means: Array, x: Array) -> Array:
    """log N(x | μ_k, Σ_k) of points pulled in from where squares would overflow.

    Args:
        covariance: of K components.
        means: (K, D).
        x: (N, D).

    Returns:
        (N, K), always finite; the differences between components have the right sign. Equal to
        `log_density` wherever that is finite.
    """
    z = covariance.whiten(x[:, None, :] - means[None])
    limit = (float(jnp.finfo(z.dtype).max) / z.shape[-1]) ** 0.5 / 4
    radius = jnp.max(jnp.abs(z), axis=(1, 2), keepdims=True, initial=1)
    shrink = lax.stop_gradient(jnp.minimum(1, limit / radius))
    square = jnp.sum((z * shrink) ** 2, axis=-1)
    return -square / 2 - log_normalizer(covariance, z.shape[-1])[None]


def _over_rows(function: Callable[[Array], Array], x: Array, n_components: int) -> Array:
    """`function` of (rows, D) on (..., D), a chunk of rows at a time."""
    n_features = x.shape[-1]
    rows = x.reshape(-1, n_features)
    values = map_over_chunks(function, rows, chunk_size(rows.shape[0], n_components * n_features))
    return values.reshape(*x.shape[:-1], *values.shape[1:])


@jax.jit
def component_log_prob(covariance: Covariance, means: Array, x: Array) -> Array:
    """log N(x | μ_k, Σ_k): (..., D) -> (..., K)."""
    return _over_rows(lambda rows: log_density(covariance, means, rows), x, means.shape[0])


@jax.jit
def log_prob(log_weights: Array, covariance: Covariance, means: Array, x: Array) -> Array:
    """log Σ_k w_k N(x | μ_k, Σ_k): (..., D) -> (...)."""

    def log_prob_of(rows: Array) -> Array:
        return logsumexp(log_density(covariance, means, rows) + log_weights[None])

    return _over_rows(log_prob_of, x, means.shape[0])


@jax.jit
def log_responsibilities(
    log_weights: Array, covariance: Covariance, means: Array, x: Array
) -> Array:
    """log p(k | x): (..., D) -> (..., K)."""

    def log_responsibilities_of(rows: Array) -> Array:
        return log_softmax(far_density(covariance, means, rows) + log_weights[None])

    return _over_rows(log_responsibilities_of, x, means.shape[0])
