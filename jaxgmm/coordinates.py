"""Mixtures as unconstrained real numbers, no more of them than there are free parameters.

Σ_k = L_k L_kᵀ, with L_k lower triangular: logarithms of its diagonal and the numbers below it are
free. So are the means, and the logarithms of ratios of mixing weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.arrays.numerics import einsum, inverse_of_lower, log_softmax
from jaxgmm.arrays.validation import check_mixture
from jaxgmm.covariances.storage import Covariance, Diagonal, Full, Spherical
from jaxgmm.mixture import GaussianMixture
from jaxgmm.statistics import SufficientStatistics


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Coordinates:
    """Real numbers that stand for a mixture: a parameter for any optimizer, see `constrain`.

    Attributes:
        logits: (K - 1,) log w_k - log w_K.
        means: (K, D) in the data's units.
        log_scale: logarithms of standard deviations, or of the diagonals of Cholesky factors:
            (K or 1, D), or (K or 1,) for spherical covariances.
        below: (K or 1, D (D - 1) / 2) what is below the diagonal of Cholesky factors, row by row;
            None for diagonal and spherical covariances.
    """

    logits: Array
    means: Array
    log_scale: Array
    below: Array | None


def unconstrain(mixture: GaussianMixture) -> Coordinates:
    """The coordinates of a mixture.

    Args:
        mixture: K components with weights above 0; one without any has an infinite logit.

    Returns:
        As many numbers as the mixture has free parameters; `constrain` is the inverse.

    Raises:
        ValueError: a batch; use `jax.vmap`.

    Source: Pinheiro & Bates 1996 (log-Cholesky).
    """
    check_mixture(mixture)
    logits = mixture.log_weights[:-1] - mixture.log_weights[-1:]
    match mixture.covariance:
        case Full(scale_tril):
            log_scale = jnp.log(jnp.diagonal(scale_tril, axis1=1, axis2=2))
            below = scale_tril[:, *_places_below(mixture.n_features)]
        case Diagonal(scale) | Spherical(scale):
            log_scale, below = jnp.log(scale), None
    return Coordinates(logits, mixture.means, log_scale, below)


def constrain(coordinates: Coordinates) -> GaussianMixture:
    """The mixture that has these coordinates; smooth, and a mixture whatever the numbers are.

    Args:
        coordinates: see `unconstrain`; those of a batch have to go through `jax.vmap`.

    Raises:
        TypeError: not coordinates.
        ValueError: a batch; use `jax.vmap`.

    Example:
        >>> import jax, jaxgmm as jg
        >>> means, variances = [[0.0], [4.0]], [[1.0], [2.0]]
        >>> mixture = jg.GaussianMixture.create([0.25, 0.75], means, variances, "diag")
        >>> jg.constrain(jg.unconstrain(mixture)).weights.round(6).tolist()
        [0.25, 0.75]
        >>> def loss(coordinates):
        ...     return -jg.constrain(coordinates).log_prob([[1.0], [3.0]]).sum()
        >>> jax.grad(loss)(jg.unconstrain(mixture)).means.shape
        (2, 1)
    """
    if not isinstance(coordinates, Coordinates):
        raise TypeError(
            f"constrain needs coordinates from unconstrain, got {type(coordinates).__name__}"
        )
    if coordinates.means.ndim != 2:
        raise ValueError(
            f"coordinates of one mixture have means (K, D), got {coordinates.means.shape}; for a "
            "batch use jax.vmap"
        )
    logits = jnp.pad(coordinates.logits, (0, 1))
    covariance = _covariance(coordinates)
    return GaussianMixture(log_softmax(logits), coordinates.means, covariance)


def _covariance(coordinates: Coordinates) -> Covariance:
    scale = jnp.exp(coordinates.log_scale)
    if coordinates.below is not None:
        return Full(lower_triangular(scale, coordinates.below))
    return Spherical(scale) if scale.ndim == 1 else Diagonal(scale)


def lower_triangular(diagonal: Array, below: Array) -> Array:
    """Matrices (K, D, D) from their diagonals (K, D) and what is below them, row by row."""
    n_features = diagonal.shape[1]
    place = np.full((n_features, n_features), -1)
    place[np.diag_indices(n_features)] = np.arange(n_features)
    place[_places_below(n_features)] = n_features + np.arange(below.shape[1])
    zero = jnp.zeros_like(diagonal[:, :1])
    return jnp.concatenate([diagonal, below, zero], axis=1)[:, place]


def _places_below(n_features: int) -> tuple[Any, Any]:
    return np.tril_indices(n_features, -1)


def origin_of(mixture: GaussianMixture) -> Coordinates:
    """Coordinates of zeros, of the shapes that a mixture's have."""
    shapes = jax.eval_shape(unconstrain, mixture)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def around(mixture: GaussianMixture, step: Coordinates) -> GaussianMixture:
    """The mixture that is a step away from another, in coordinates of whitened components.

    Where the mixture maximizes the expected log-likelihood of completed data (rows of which the
    component is known, too) their information about the step is the identity, per unit of weight.
    So a step of length 1/√N is about one standard error, and what EM does is a step along the
    gradient. Components without weight stay where they are.

    Args:
        mixture: K components.
        step: `Coordinates` of its shapes, see `origin_of`.
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


def slope_of(
    mixture: GaussianMixture, statistics: SufficientStatistics, regularization: Array
) -> Coordinates:
    """The gradient with respect to a step `around` a mixture, where that is zero.

    Args:
        mixture: K components.
        statistics: of completed data, about its means; second moments of all components, or their
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
            below = unit[:, None] * share[:, *_places_below(mixture.n_features)]
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
    """What turns steps around a mixture into changes of its parameters.

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
