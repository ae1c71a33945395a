"""Log densities of Gaussian components, at any distance and without N·K·D arrays."""

import math
import operator
from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays.chunks import chunk_size, map_over_chunks
from jaxgmm.arrays.numerics import (
    FEW,
    all_in_batch,
    at_most,
    einsum,
    log_softmax,
    logsumexp,
    made_once,
)
from jaxgmm.covariances.storage import Covariance, whiten_columns, whiten_few
from jaxgmm.execution.programs import PlatformProgram, points_at


def log_normalizer(covariance: Covariance, n_features: int) -> Array:
    """½ (D log 2π + log |Σ_k|): (K or 1,)."""
    return (n_features * math.log(2 * math.pi) + covariance.log_det(n_features)) / 2


def standardized(covariance: Covariance, means: Array, x: Array) -> Array:
    """L_k⁻¹ (x - μ_k), rows last, which is fastest: (N, D) -> (K, D, N)."""
    return whiten_columns(covariance, x.T[None] - means[:, :, None])


def log_density(covariance: Covariance, means: Array, x: Array) -> Array:
    """log N(x | μ_k, Σ_k), -inf where it can't be represented: (N, D) -> (K, N)."""
    n_features = means.shape[1]
    if n_features <= FEW:
        difference = [x.T[i][None] - means[:, i : i + 1] for i in range(n_features)]
        square = reduce(operator.add, (z**2 for z in whiten_few(covariance, difference)))
    else:
        z = standardized(covariance, means, x)
        square = einsum("kin,kin->kn", z, z)
    return -square / 2 - log_normalizer(covariance, n_features)[:, None]


def log_density_anywhere(covariance: Covariance, means: Array, x: Array) -> Array:
    """`log_density`, and -inf where on the way infinities of both signs have cancelled."""
    found = log_density(covariance, means, made_once(x))
    scale = jax.tree.leaves(covariance)[0]
    numbers = jnp.sum(means, axis=1) + jnp.sum(scale.reshape(scale.shape[0], -1), axis=1)
    cancelled = (
        jnp.isnan(found) & ~jnp.isnan(numbers)[:, None] & ~jnp.any(jnp.isnan(x), axis=1)[None]
    )
    return jnp.where(cancelled, -jnp.inf, found)


def far_density(covariance: Covariance, z: Array) -> Array:
    """log N(x | μ_k, Σ_k) of points pulled in from where no component's square is a number.

    Args:
        covariance: of K components.
        z: (K, D, N) standardized.

    Returns:
        (K, N), always finite; the differences between components have the right sign. Equal to
        `log_density` where that is finite.
    """
    most = float(jnp.finfo(z.dtype).max)
    square = jnp.sum(z**2, axis=1)
    near = jnp.isfinite(jnp.min(square, axis=0))

    def pulled_in() -> Array:
        radius = jnp.max(jnp.abs(z), axis=(0, 1), initial=1)
        shrink = lax.stop_gradient((most / z.shape[1]) ** 0.5 / 4 / radius)
        return jnp.where(near[None], square, jnp.sum((z * shrink[None, None]) ** 2, axis=1))

    square = lax.cond(all_in_batch(jnp.all(near)), lambda: square, pulled_in)
    return -at_most(square, most) / 2 - log_normalizer(covariance, z.shape[1])[:, None]


def log_shares(log_weights: Array, covariance: Covariance, z: Array) -> Array:
    """log p(k | x) of standardized points: (K, D, N) -> (K, N)."""
    return log_softmax(far_density(covariance, z) + log_weights[:, None], axis=0)


def _over_rows(function: Callable[[Array], Array], x: Array, n_components: int) -> Array:
    """`function` of (rows, D) on (..., D), a chunk of rows at a time."""
    n_features = x.shape[-1]
    rows = x.reshape(-1, n_features)
    values = map_over_chunks(function, rows, chunk_size(rows.shape[0], n_components * n_features))
    return values.reshape(*x.shape[:-1], *values.shape[1:])


@partial(PlatformProgram, layout=points_at(2), of_each_row=True)
def component_log_prob(covariance: Covariance, means: Array, x: Array) -> Array:
    """log N(x | μ_k, Σ_k): (..., D) -> (..., K)."""
    return _over_rows(
        lambda rows: log_density_anywhere(covariance, means, rows).T, x, means.shape[0]
    )


@partial(PlatformProgram, layout=points_at(3), of_each_row=True)
def log_prob(log_weights: Array, covariance: Covariance, means: Array, x: Array) -> Array:
    """log Σ_k w_k N(x | μ_k, Σ_k): (..., D) -> (...)."""

    def log_prob_of(rows: Array) -> Array:
        return logsumexp(
            log_density_anywhere(covariance, means, rows) + log_weights[:, None], axis=0
        )

    return _over_rows(log_prob_of, x, means.shape[0])


@partial(PlatformProgram, layout=points_at(3), of_each_row=True)
def log_responsibilities(
    log_weights: Array, covariance: Covariance, means: Array, x: Array
) -> Array:
    """log p(k | x): (..., D) -> (..., K)."""

    def log_responsibilities_of(rows: Array) -> Array:
        return log_shares(log_weights, covariance, standardized(covariance, means, rows)).T

    return _over_rows(log_responsibilities_of, x, means.shape[0])
