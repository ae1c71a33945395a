"""The M-step: the mixture that maximizes the expected log-likelihood of statistics."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.numerics import at_least, at_most, smallest_variance
from jaxgmm.covariances.storage import without_inverse
from jaxgmm.covariances.traced import AnyStructure
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.regularization import with_clouds
from jaxgmm.steps.statistics import SufficientStatistics


@jax.jit
def maximize(
    structure: AnyStructure,
    statistics: SufficientStatistics,
    previous: GaussianMixture | None,
    regularization: Array,
) -> GaussianMixture:
    """`m_step` for arguments known to be good.

    Args:
        structure: the covariance type.
        statistics: see `m_step`.
        previous: likewise.
        regularization: (D,) variances.
    """
    total = jnp.sum(statistics.count)
    weights = statistics.count / total
    dead = weights <= smallest_variance(weights.dtype)
    count = jnp.where(dead, 0, statistics.count)
    shift = statistics.first / jnp.where(dead, jnp.inf, count)[:, None]

    # Per unit of weight, so that nothing vanishes beside it.
    scatter = _scatter_about_means(statistics.second, count, shift, structure) / total
    share = jnp.where(dead, 0, weights)
    if not structure.stores_one:
        of_dead = dead.reshape(-1, *(1,) * (scatter.ndim - 1))
        average = jnp.sum(jnp.where(of_dead, 0, scatter), axis=0, keepdims=True)
        # So few rows that no sum over components would notice them.
        few = float(jnp.finfo(total.dtype).eps) ** 2
        scatter = jnp.where(of_dead, few * average, scatter)
        share = jnp.where(dead, few, weights)
    before = None
    if previous is not None:
        of_type = previous if structure.coupled else stored_as(structure, previous)
        before = of_type.covariance
    scatter = with_clouds(scatter, share, regularization)
    covariance = structure.estimate(share, scatter, before)
    if before is not None and not (structure.stores_one or structure.coupled):
        covariance = jax.tree.map(
            lambda old, new: jnp.where(dead.reshape(-1, *(1,) * (new.ndim - 1)), old, new),
            before,
            covariance,
        )
    log_weights = jnp.where(dead, -jnp.inf, jnp.log(jnp.where(dead, 1, weights)))
    means = statistics.origin + shift
    if previous is not None:
        means = jnp.where(dead[:, None], previous.means, means)
    return GaussianMixture(log_weights, means, covariance)


def _scatter_about_means(
    second: Array, count: Array, shift: Array, structure: AnyStructure
) -> Array:
    """Second moments about what is `shift` (K, D) away from the origin that they were about.

    Of all components, or their sum where they share a covariance; matrices, or their diagonals.
    """

    def pool(array: Array) -> Array:
        return jnp.sum(array, axis=0, keepdims=True) if structure.stores_one else array

    if structure.full_second_moment:
        moved = count[:, None, None] * shift[:, :, None] * shift[:, None, :]
        return raised_to_zero(pool(second) - pool(moved))
    diagonal = jnp.diagonal(second, axis1=1, axis2=2) if second.ndim == 3 else second
    return at_least(pool(diagonal) - pool(count[:, None] * shift**2), 0)


def raised_to_zero(scatter: Array) -> Array:
    """Matrices (K, D, D) whose diagonals are zero where rounding made them negative."""
    below = at_most(jnp.diagonal(scatter, axis1=1, axis2=2), 0)
    return scatter - below[:, :, None] * jnp.eye(scatter.shape[-1], dtype=scatter.dtype)[None]


def stored_as(structure: AnyStructure, mixture: GaussianMixture) -> GaussianMixture:
    """The mixture with a covariance of this type: its own, or the nearest."""
    if structure.stores(mixture.covariance, mixture.n_components):
        return replace(mixture, covariance=without_inverse(mixture.covariance))
    nearest = structure.nearest(mixture.covariance, mixture.weights, mixture.n_features)
    return replace(mixture, covariance=nearest)


def means_of(statistics: SufficientStatistics) -> Array:
    """(K, D) means of the components; the origin for those without any weight."""
    count = statistics.count[:, None]
    return statistics.origin + statistics.first / jnp.where(count > 0, count, jnp.inf)
