"""Covariance types as data: which one a model has may differ within one compiled program."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.numerics import cholesky
from jaxgmm.covariances.storage import Full
from jaxgmm.covariances.structures import structure_named


class TracedStructure(NamedTuple):
    """A covariance type as data, so that fits of different types can be one program.

    All are stored as full covariances, of which the type says what they have in common.

    Attributes:
        shared: () bool, all components have the same.
        diagonal: () bool, features are independent.
        isotropic: () bool, and have the same variance.
    """

    shared: Array
    diagonal: Array
    isotropic: Array

    @classmethod
    def of(cls, covariance_types: Sequence[str]) -> Self:
        """The flags of several types, with a leading axis."""
        rows = [structure_named(name) for name in covariance_types]
        flags = [(row.shared, not row.full_second_moment, row.isotropic) for row in rows]
        return cls(*(jnp.asarray(flag) for flag in zip(*flags, strict=True)))

    def estimate(self, count: Array, scatter: Array, regularization: Array) -> Full:
        """Covariances from statistics, see `Structure`; scatter is (K, D, D)."""
        identity = jnp.eye(scatter.shape[-1], dtype=scatter.dtype)[None]
        pooled = jnp.sum(scatter, axis=0, keepdims=True) / jnp.sum(count)
        covariance = jnp.where(self.shared, pooled, scatter / count[:, None, None])
        covariance += regularization[None, None] * identity
        covariance = jnp.where(self.diagonal, covariance * identity, covariance)
        variance = jnp.einsum("kii->k", covariance)[:, None, None] / scatter.shape[-1]
        return Full(cholesky(jnp.where(self.isotropic, variance * identity, covariance)))
