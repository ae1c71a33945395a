"""Mixtures as unconstrained real numbers, no more of them than there are free parameters.

Σ_k = L_k L_kᵀ, with L_k lower triangular: logarithms of its diagonal and the numbers below it are
free. So are the means, and the logarithms of ratios of mixing weights.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.arrays.numerics import log_softmax
from jaxgmm.arrays.validation import check_mixture
from jaxgmm.covariances.storage import Covariance, Diagonal, Full, Spherical
from jaxgmm.mixtures.mixture import GaussianMixture


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
            below = scale_tril[:, *places_below(mixture.n_features)]
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
    place[places_below(n_features)] = n_features + np.arange(below.shape[1])
    zero = jnp.zeros_like(diagonal[:, :1])
    return jnp.concatenate([diagonal, below, zero], axis=1)[:, place]


def places_below(n_features: int) -> tuple[Any, Any]:
    return np.tril_indices(n_features, -1)
