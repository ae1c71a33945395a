"""Degenerate components, which mean nothing: empty, held up by regularization, or twins."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.numerics import smallest_variance
from jaxgmm.covariances.storage import (
    exceeds,
    kl_between_covariances,
    pick,
    variances,
)
from jaxgmm.mixtures.mixture import GaussianMixture


def degenerate_components(mixture: GaussianMixture, regularization: Array) -> Array:
    """Components without weight, without a covariance of their own, or without a difference.

    Args:
        mixture: K components, finite.
        regularization: (D,) variances that were added to the covariances.

    Returns:
        (K,) bool.
    """
    return collapsed_components(mixture, regularization) | twins(mixture)[0]


def collapsed_components(mixture: GaussianMixture, regularization: Array) -> Array:
    """Components without weight, or without a covariance of their own; see above."""
    empty = mixture.weights <= smallest_variance(mixture.means.dtype)
    return empty | _held_up(mixture, regularization)


def _held_up(mixture: GaussianMixture, regularization: Array) -> Array:
    """Whether in some direction more than half of the covariance is regularization or rounding.

    Rounding counts as D·eps of each feature's own variance, to which `cholesky` raises pivots.
    """
    covariance, n_features = mixture.covariance, mixture.n_features
    rounding = n_features * float(jnp.finfo(regularization.dtype).eps)
    added = regularization[None] + rounding * variances(covariance, n_features)
    return jnp.broadcast_to(~exceeds(covariance, 2 * added), (mixture.n_components,))


def twins(mixture: GaussianMixture) -> tuple[Array, Array]:
    """Whether another component, with weight, is the same up to the root of the rounding error.

    Returns:
        (K,) bool; and (K,) bool, whether one with a lower number is.
    """
    n_components, n_features = mixture.means.shape
    tolerance = float(jnp.finfo(mixture.means.dtype).eps) ** 0.5
    numbers = jnp.arange(n_components)

    def twin_of_another(k: Array) -> tuple[Array, Array]:
        one = pick(mixture.covariance, k[None])
        shift = one.whiten((mixture.means - mixture.means[k][None])[:, None, :])[:, 0]
        spread = kl_between_covariances(mixture.covariance, one, n_features)
        divergence = jnp.sum(shift**2, axis=-1) / 2 + spread
        same = (divergence < tolerance) & (mixture.log_weights > -jnp.inf)
        return jnp.any(same & (numbers != k)), jnp.any(same & (numbers < k))

    if mixture.means.size**2 <= budget().unlooped:
        return jax.vmap(twin_of_another)(numbers)
    return lax.map(twin_of_another, numbers)
