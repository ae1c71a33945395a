"""Steps around a mixture, in which the information of complete data is the identity."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.numerics import einsum, inverse_of_lower, log_softmax
from jaxgmm.covariances.storage import Covariance, Diagonal, Full, Spherical
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.mixtures.parameters import (
    Coordinates,
    lower_triangular,
    places_below,
    unconstrain,
)
from jaxgmm.steps.statistics import SufficientStatistics


def zero_tangent(mixture: GaussianMixture) -> Coordinates:
    """Coordinates of zeros, of the shapes that a mixture's have."""
    shapes = jax.eval_shape(unconstrain, mixture)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def retraction(mixture: GaussianMixture, step: Coordinates) -> GaussianMixture:
    """The mixture that is a step away from another, in coordinates of whitened components.

    Where the mixture maximizes the expected log-likelihood of complete data (rows of which the
    component is known, too) their information about the step is the identity, per unit of weight.
    So a step of length 1/√N is about one standard error, and what EM does is a step along the
    gradient. Components without weight stay where they are.

    Args:
        mixture: K components.
        step: `Coordinates` of its shapes, see `zero_tangent`.
    """
    per_root, reflect, unit = _metric(mixture)
    n_features = mixture.n_features
    log_weights = log_softmax(
        mixture.log_weights + per_root * reflect(jnp.pad(step.logits, (0, 1)))
    )
    means = mixture.means + mixture.covariance.unwhiten((per_root[:, None] * step.means)[None])[0]
    match mixture.covariance:
        case Full(scale_tril):
            assert step.below is not None
            growth = jnp.exp(0.5**0.5 * unit[:, None] * step.log_scale)
            relative = lower_triangular(growth, unit[:, None] * step.below)
            covariance: Covariance = Full(einsum("kij,kjl->kil", scale_tril, relative))
        case Diagonal(scale):
            covariance = Diagonal(scale * jnp.exp(0.5**0.5 * unit[:, None] * step.log_scale))
        case Spherical(scale):
            covariance = Spherical(
                scale * jnp.exp((2 * n_features) ** -0.5 * unit * step.log_scale)
            )
    return GaussianMixture(log_weights, means, covariance)


def score(
    mixture: GaussianMixture, statistics: SufficientStatistics, regularization: Array
) -> Coordinates:
    """The gradient with respect to a step `retraction` a mixture, where that is zero.

    Args:
        mixture: K components.
        statistics: of complete data, about its means; second moments of all components, or their
            sum where they share a covariance.
        regularization: (D,) variances that each row brings along.

    Returns:
        That of their log-likelihood; linear in the statistics.
    """
    per_root, reflect, unit = _metric(mixture)
    count = statistics.count
    excess = per_root * (count - mixture.weights * jnp.sum(count))
    shift = mixture.covariance.whiten(statistics.first[None])[0]
    owned = unit.size == count.size
    count = count if owned else jnp.sum(count)[None]
    square = statistics.second
    if square.shape[0] != unit.size:
        square = jnp.sum(square, axis=0, keepdims=True)
    below = None
    match mixture.covariance:
        case Full(scale_tril):
            inverse = inverse_of_lower(scale_tril)
            square += count[:, None, None] * jnp.diag(regularization)[None]
            share = einsum("kij,klj->kil", einsum("kij,kjl->kil", inverse, square), inverse)
            below = unit[:, None] * share[:, *places_below(mixture.n_features)]
            of_scales = jnp.diagonal(share, axis1=1, axis2=2) - count[:, None]
            log_scale = 0.5**0.5 * unit[:, None] * of_scales
        case Diagonal(scale):
            of_scales = (square + count[:, None] * regularization[None]) / scale**2 - count[:, None]
            log_scale = 0.5**0.5 * unit[:, None] * of_scales
        case Spherical(scale):
            total = jnp.sum(square + count[:, None] * regularization[None], axis=1) / scale**2
            of_scales = total - mixture.n_features * count
            log_scale = (2 * mixture.n_features) ** -0.5 * unit * of_scales
    return Coordinates(reflect(excess)[:-1], per_root[:, None] * shift, log_scale, below)


def _metric(mixture: GaussianMixture) -> tuple[Array, Callable[[Array], Array], Array]:
    """The metric that turns steps around a mixture into changes of its parameters.

    Returns:
        1/√w_k: (K,), or 0; a reflection of (K,) that puts the last axis along the √w_k, to which
        the changes of weights are at right angles; and what scales are multiplied by: (K,), or (1,)
        where they are shared.
    """
    root = jnp.sqrt(mixture.weights)
    per_root = jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), 0)
    normal = root.at[-1].add(1)

    def reflect(vector: Array) -> Array:
        return vector - normal * (2 * jnp.sum(normal * vector) / jnp.sum(normal**2))

    owned = jax.tree.leaves(mixture.covariance)[0].shape[0] == root.size
    return per_root, reflect, per_root if owned else jnp.ones_like(root[:1])
