"""Covariance types as data: which one a model has may differ within one compiled program."""

from collections.abc import Sequence
from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.matrices import cholesky
from jaxgmm.covariances.charts import Chart
from jaxgmm.covariances.storage import Covariance, Full
from jaxgmm.covariances.structures import STRUCTURES, Structure, structure_named


class TracedStructure(NamedTuple):
    """A covariance type as data, so that fits of different types can be one program.

    It answers what EM asks of a `Structure`, and has no chart. All are stored as full covariances,
    of which the type says what they have in common.

    Attributes:
        shared: () bool, all components have the same.
        diagonal: () bool, features are independent.
        isotropic: () bool, and have the same variance.
    """

    shared: Array
    diagonal: Array
    isotropic: Array

    @property
    def full_second_moment(self) -> bool:
        """As for a `Structure`."""
        return True

    @property
    def stores_one(self) -> bool:
        """Whether one covariance is stored for all components."""
        return False

    @property
    def chart(self) -> Chart:
        """Types that are data have none: nothing is accelerated, polished or differentiated."""
        raise TypeError("covariance types that are data have no chart")

    @property
    def coupled(self) -> bool:
        """Whether covariances of components without weight can't stay as they are."""
        return False

    def stores(self, covariance: Covariance, n_components: int) -> bool:
        """Whether a covariance already has this type's form."""
        return STRUCTURES["full"].stores(covariance, n_components)

    def nearest(self, covariance: Covariance, weights: Array, n_features: int) -> Covariance:
        """The full covariances that are equal."""
        return STRUCTURES["full"].nearest(covariance, weights, n_features)

    @classmethod
    def of(cls, covariance_types: Sequence[str]) -> Self:
        """The flags of several types, with a leading axis; ValueError where these don't say all."""
        rows = [structure_named(name) for name in covariance_types]
        if any(row.coupled for row in rows):
            raise ValueError(f"not all of {covariance_types} can be data")
        flags = [(row.shared, row.diagonal, row.isotropic) for row in rows]
        return cls(*(jnp.asarray(flag) for flag in zip(*flags, strict=True)))

    def estimate(self, count: Array, scatter: Array, _: Covariance | None) -> Full:
        """Covariances from statistics, see `Structure`; scatter is (K, D, D)."""
        identity = jnp.eye(scatter.shape[-1], dtype=scatter.dtype)[None]
        pooled = jnp.sum(scatter, axis=0, keepdims=True) / jnp.sum(count)
        covariance = jnp.where(self.shared, pooled, scatter / count[:, None, None])
        covariance = jnp.where(self.diagonal, covariance * identity, covariance)
        variance = jnp.einsum("kii->k", covariance)[:, None, None] / scatter.shape[-1]
        return Full(cholesky(jnp.where(self.isotropic, variance * identity, covariance)))


AnyStructure = Structure | TracedStructure
