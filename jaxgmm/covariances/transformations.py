"""Covariances from covariances: of other units, within bounds, and of some features."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.arrays.reflections import factor_of_root
from jaxgmm.covariances.storage import (
    Covariance,
    Diagonal,
    Full,
    Spherical,
)


def rescale(covariance: Covariance, factor: Array) -> Covariance:
    """The covariance of `factor · x`; for a spherical one all factors are equal.

    Args:
        covariance: of x.
        factor: (D,).
    """
    match covariance:
        case Full(scale_tril):
            return Full(factor[None, :, None] * scale_tril)
        case Diagonal(scale):
            return Diagonal(factor[None] * scale)
        case Spherical(scale):
            return Spherical(factor[0] * scale)


def within(covariance: Covariance, most: float) -> Covariance:
    """The covariance with standard deviations, or pivots, from 1 / most to most."""
    match covariance:
        case Full(scale_tril):
            diagonal = jnp.eye(scale_tril.shape[-1], dtype=bool)[None]
            return Full(jnp.clip(scale_tril, jnp.where(diagonal, 1 / most, -most), most))
        case _:
            return jax.tree.map(lambda scale: jnp.clip(scale, 1 / most, most), covariance)


def of_features(covariance: Covariance, indices: tuple[int, ...]) -> Covariance:
    """The covariance of some features, in the order given."""
    match covariance:
        case Full(scale_tril):
            return Full(factor_of_root(scale_tril[:, np.array(indices)]))
        case Diagonal(scale):
            return Diagonal(scale[:, np.array(indices)])
        case Spherical():
            return covariance


def of_diagonals(scale: Array, isotropic: bool) -> Covariance:
    """The covariance of independent features with these deviations (K or 1, D).

    Args:
        scale: of each feature.
        isotropic: whether all features have the same, and one number is to stand for them.
    """
    return Spherical(scale[:, 0]) if isotropic else Diagonal(scale)
