"""Charts of covariances: free real numbers, as many as a covariance type has parameters.

A chart maps covariances to real numbers and back, whatever these are. Beside them it has steps from
a given covariance, whose size is that of standard errors: the information of complete data (rows of
which the component is known, too) has ones on its diagonal, per unit of weight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.arrays.matrices import inverse_of_lower
from jaxgmm.arrays.numerics import einsum
from jaxgmm.covariances.storage import Covariance, Diagonal, Full, Spherical, variances


class FreeNumbers(NamedTuple):
    """The free numbers of covariances, as many of these arrays as the type has.

    Attributes:
        log_scale: logarithms of standard deviations, or of the diagonals of Cholesky factors:
            (K or 1, D); (K or 1,) of spheres, and of the volumes of components that share a shape.
        below: (K or 1, D (D - 1) / 2) what is below the diagonal of Cholesky factors, row by row.
        log_shape: (D - 1,) logarithms of the first D - 1 features' deviations, less those of the
            volumes.
    """

    log_scale: Array
    below: Array | None = None
    log_shape: Array | None = None


@dataclass(frozen=True)
class Chart:
    """The free parameters of a covariance type.

    Steps are numbers of the same shapes. `unit` is 1/√w_k of components with weights w_k, 0 for
    those without any: (K,), or (1,) of ones where all components share one covariance.

    Attributes:
        numbers: of a covariance of the type.
        covariance: that has these numbers; the inverse of `numbers`.
        metric: what small changes of numbers have to be multiplied by, so that the sum of their
            squares is of the size of a Kullback-Leibler divergence; called with a covariance and
            the roots of weights (K or 1,).
        retract: the covariance that a step leads to, from a covariance, `unit`, the step and D.
        score: the gradient with respect to a step of length 0 of the log-likelihood of complete
            data; called with a covariance, `unit`, sums of squares about the means (K or 1, D, D)
            or (K or 1, D), and counts (K or 1,).
        information: products of a step with the information of complete data, called with a
            covariance, `unit`, their mean squares, by the shares of the components, and the step;
            None where that is the identity at every maximum, as it is unless components share some
            of their numbers only.
    """

    numbers: Callable[[Any], FreeNumbers]
    covariance: Callable[[FreeNumbers], Covariance]
    metric: Callable[[Any, Array], FreeNumbers]
    retract: Callable[[Any, Array, FreeNumbers, int], Covariance]
    score: Callable[[Any, Array, Array, Array], FreeNumbers]
    information: Callable[[Any, Array, Array, FreeNumbers], FreeNumbers] | None = None


def lower_triangular(diagonal: Array, below: Array) -> Array:
    """Matrices (K, D, D) from their diagonals (K, D) and what is below them, row by row."""
    n_features = diagonal.shape[1]
    place = np.full((n_features, n_features), -1)
    place[np.diag_indices(n_features)] = np.arange(n_features)
    place[places_below(n_features)] = n_features + np.arange(below.shape[1])
    zero = jnp.zeros_like(diagonal[:, :1])
    return jnp.concatenate([diagonal, below, zero], axis=1)[:, place]


def places_below(n_features: int) -> tuple[Any, Any]:
    """The rows and columns of what is below the diagonal, row by row."""
    return np.tril_indices(n_features, -1)


def _numbers_of_full(covariance: Full) -> FreeNumbers:
    scale_tril = covariance.scale_tril
    diagonal = jnp.diagonal(scale_tril, axis1=1, axis2=2)
    return FreeNumbers(jnp.log(diagonal), scale_tril[:, *places_below(scale_tril.shape[-1])])


def _full_of_numbers(numbers: FreeNumbers) -> Full:
    assert numbers.below is not None
    return Full(lower_triangular(jnp.exp(numbers.log_scale), numbers.below))


def _metric_of_full(covariance: Full, share: Array) -> FreeNumbers:
    of_rows = share[:, None] / jnp.sqrt(variances(covariance, covariance.scale_tril.shape[-1]))
    rows, _ = places_below(of_rows.shape[1])
    return FreeNumbers(jnp.broadcast_to(share[:, None], of_rows.shape), of_rows[:, rows])


def _retract_full(covariance: Full, unit: Array, step: FreeNumbers, n_features: int) -> Full:
    assert step.below is not None
    growth = jnp.exp(0.5**0.5 * unit[:, None] * step.log_scale)
    relative = lower_triangular(growth, unit[:, None] * step.below)
    return Full(einsum("kij,kjl->kil", covariance.scale_tril, relative))


def _score_of_full(covariance: Full, unit: Array, square: Array, count: Array) -> FreeNumbers:
    inverse = inverse_of_lower(covariance.scale_tril)
    share = einsum("kij,klj->kil", einsum("kij,kjl->kil", inverse, square), inverse)
    of_scales = jnp.diagonal(share, axis1=1, axis2=2) - count[:, None]
    below = share[:, *places_below(share.shape[-1])]
    return FreeNumbers(0.5**0.5 * unit[:, None] * of_scales, unit[:, None] * below)


FULL = Chart(
    numbers=_numbers_of_full,
    covariance=_full_of_numbers,
    metric=_metric_of_full,
    retract=_retract_full,
    score=_score_of_full,
)


def _retract_diagonal(
    covariance: Diagonal, unit: Array, step: FreeNumbers, n_features: int
) -> Diagonal:
    return Diagonal(covariance.scale * jnp.exp(0.5**0.5 * unit[:, None] * step.log_scale))


def _score_of_diagonal(
    covariance: Diagonal, unit: Array, square: Array, count: Array
) -> FreeNumbers:
    of_scales = square / covariance.scale**2 - count[:, None]
    return FreeNumbers(0.5**0.5 * unit[:, None] * of_scales)


DIAGONAL = Chart(
    numbers=lambda covariance: FreeNumbers(jnp.log(covariance.scale)),
    covariance=lambda numbers: Diagonal(jnp.exp(numbers.log_scale)),
    metric=lambda covariance, share: FreeNumbers(
        jnp.broadcast_to(share[:, None], covariance.scale.shape)
    ),
    retract=_retract_diagonal,
    score=_score_of_diagonal,
)


def _retract_spherical(
    covariance: Spherical, unit: Array, step: FreeNumbers, n_features: int
) -> Spherical:
    growth = jnp.exp((2 * n_features) ** -0.5 * unit * step.log_scale)
    return Spherical(covariance.scale * growth)


def _score_of_spherical(
    covariance: Spherical, unit: Array, square: Array, count: Array
) -> FreeNumbers:
    n_features = square.shape[1]
    of_scales = jnp.sum(square, axis=1) / covariance.scale**2 - n_features * count
    return FreeNumbers((2 * n_features) ** -0.5 * unit * of_scales)


SPHERICAL = Chart(
    numbers=lambda covariance: FreeNumbers(jnp.log(covariance.scale)),
    covariance=lambda numbers: Spherical(jnp.exp(numbers.log_scale)),
    metric=lambda covariance, share: FreeNumbers(jnp.broadcast_to(share, covariance.scale.shape)),
    retract=_retract_spherical,
    score=_score_of_spherical,
)
