"""Mixtures as unconstrained real numbers, no more of them than there are free parameters.

Σ_k = L_k L_kᵀ, with L_k lower triangular: logarithms of its diagonal and the numbers below it are
free. So are the means, and the logarithms of ratios of mixing weights.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.numerics import log_softmax
from jaxgmm.arrays.validation import check_mixture
from jaxgmm.covariances.charts import FreeNumbers
from jaxgmm.covariances.structures import chart_with
from jaxgmm.mixtures.mixture import GaussianMixture, structure_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Coordinates:
    """Real numbers that stand for a mixture: a parameter for any optimizer, see `constrain`.

    Attributes:
        logits: (K - 1,) log w_k - log w_K.
        means: (K, D) in the data's units.
        log_scale: logarithms of standard deviations, or of the diagonals of Cholesky factors:
            (K or 1, D); (K or 1,) of spheres, and of the volumes of components that share a shape.
        below: (K or 1, D (D - 1) / 2) what is below the diagonal of Cholesky factors, row by row;
            None for all others.
        log_shape: (D - 1,) of the shape of "VEI"; None for all others.
    """

    logits: Array
    means: Array
    log_scale: Array
    below: Array | None = None
    log_shape: Array | None = None


def unconstrain(mixture: GaussianMixture, covariance_type: str | None = None) -> Coordinates:
    """The coordinates of a mixture.

    Args:
        mixture: K components with weights above 0; one without any has an infinite logit.
        covariance_type: as which it was estimated; by default what the storage says.

    Returns:
        As many numbers as the mixture has free parameters; `constrain` is the inverse.

    Raises:
        ValueError: a batch; use `jax.vmap`. Or the mixture is not of the type.

    Source: Pinheiro & Bates 1996 (log-Cholesky).
    """
    check_mixture(mixture)
    logits = mixture.log_weights[:-1] - mixture.log_weights[-1:]
    chart = structure_of(mixture, covariance_type).chart
    return Coordinates(logits, mixture.means, *chart.numbers(mixture.covariance))


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
    numbers = FreeNumbers(coordinates.log_scale, coordinates.below, coordinates.log_shape)
    covariance = chart_with(numbers).covariance(numbers)
    return GaussianMixture(log_softmax(logits), coordinates.means, covariance)
