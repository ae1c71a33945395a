"""The table of covariance types: how each is estimated from sufficient statistics.

A further type is one more row. How a covariance is stored is another matter: see `covariance.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.numerics import at_least, cholesky, is_positive_definite
from jaxgmm.arrays.validation import check_choice
from jaxgmm.covariance import Covariance, Diagonal, Full, Spherical, variances


@dataclass(frozen=True)
class Structure:
    """One covariance type.

    Attributes:
        mclust: its name in mclust (volume, shape, orientation).
        storage: the class that stores it.
        shared: whether all components have the same covariance.
        full_second_moment: whether it needs (K, D, D) second moments, or their diagonals (K, D).
        estimate: maximizes the expected log-likelihood. Called as
            `estimate(count, scatter, regularization)` with count: (K,) positive; scatter:
            (K, D, D) or (K, D), sums of squares about the components' new means; regularization:
            (D,) variances that every row brings along.
        n_parameters: free parameters of the covariances, of (K, D).
        shape: of the array of variances that people write down, of (K, D).
    """

    mclust: str
    storage: type
    shared: bool
    full_second_moment: bool
    estimate: Callable[[Array, Array, Array], Covariance]
    n_parameters: Callable[[int, int], int]
    shape: Callable[[int, int], tuple[int, ...]]

    @property
    def isotropic(self) -> bool:
        """Whether the type allows no other scaling of the features than a common one."""
        return self.storage is Spherical

    def stores(self, covariance: Covariance, n_components: int) -> bool:
        """Whether a covariance already has this type's form."""
        leading = 1 if self.shared else n_components
        leaf = next(iter(vars(covariance).values()))
        return isinstance(covariance, self.storage) and leaf.shape[0] == leading

    def nearest(self, covariance: Covariance, weights: Array, n_features: int) -> Covariance:
        """The covariance of this type that is nearest in Kullback-Leibler divergence.

        Args:
            covariance: of another type.
            weights: (K,) mixing weights, by which shared covariances are averaged.
            n_features: D.
        """
        count = weights if self.shared else jnp.ones_like(weights)
        if self.full_second_moment:
            scatter = covariance.dense(n_features) * count[:, None, None]
        else:
            scatter = variances(covariance, n_features) * count[:, None]
        return self.estimate(count, scatter, jnp.zeros(n_features, scatter.dtype))

    def store(self, variances: Array) -> Covariance:
        """The covariance that an array of variances, of this type's `shape`, writes down."""
        if self.shared:
            variances = variances[None]
        root = _root_of_matrices if self.full_second_moment else jnp.sqrt
        return self.storage(root(variances))

    def variances(self, covariance: Covariance, n_features: int) -> Array:
        """The array of variances that a covariance of this type is written down as."""
        if self.full_second_moment:
            written = covariance.dense(n_features)
        else:
            written = next(iter(vars(covariance).values())) ** 2
        return written[0] if self.shared else written


def _root_of_matrices(covariances: Array) -> Array:
    """Cholesky factors (..., D, D), NaN where a matrix isn't positive definite.

    LAPACK is faster for large matrices, but in a program, and for its derivatives, must not be
    called for batches, see `reflections.py`.
    """
    if is_concrete(covariances):
        # Known values inside of somebody's trace, too, are factorized by a program of their own.
        with jax.ensure_compile_time_eval():
            return jnp.linalg.cholesky(covariances)
    symmetric = (covariances + jnp.swapaxes(covariances, -1, -2)) / 2
    is_good = is_positive_definite(symmetric)[..., None, None]
    return jnp.where(is_good, cholesky(symmetric), jnp.nan)


def _full(count: Array, scatter: Array, regularization: Array) -> Full:
    covariance = scatter / count[:, None, None] + jnp.diag(regularization)[None]
    return Full(cholesky(covariance))


def _tied(count: Array, scatter: Array, regularization: Array) -> Full:
    return _full(jnp.sum(count)[None], jnp.sum(scatter, axis=0)[None], regularization)


def _diag(count: Array, scatter: Array, regularization: Array) -> Diagonal:
    variance = scatter / count[:, None] + regularization[None]
    return Diagonal(jnp.sqrt(at_least(variance, jnp.finfo(variance.dtype).tiny)))


def _tied_diag(count: Array, scatter: Array, regularization: Array) -> Diagonal:
    return _diag(jnp.sum(count)[None], jnp.sum(scatter, axis=0)[None], regularization)


def _spherical(count: Array, scatter: Array, regularization: Array) -> Spherical:
    variance = jnp.mean(scatter / count[:, None] + regularization[None], axis=-1)
    return Spherical(jnp.sqrt(at_least(variance, jnp.finfo(variance.dtype).tiny)))


def _tied_spherical(count: Array, scatter: Array, regularization: Array) -> Spherical:
    return _spherical(jnp.sum(count)[None], jnp.sum(scatter, axis=0)[None], regularization)


class Form(NamedTuple):
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
        """Those of several types, with a leading axis."""
        rows = [structure_named(name) for name in covariance_types]
        flags = [(row.shared, not row.full_second_moment, row.isotropic) for row in rows]
        return cls(*(jnp.asarray(flag) for flag in zip(*flags, strict=True)))

    def estimate(self, count: Array, scatter: Array, regularization: Array) -> Full:
        """See `Structure`; scatter is (K, D, D)."""
        identity = jnp.eye(scatter.shape[-1], dtype=scatter.dtype)[None]
        pooled = jnp.sum(scatter, axis=0, keepdims=True) / jnp.sum(count)
        covariance = jnp.where(self.shared, pooled, scatter / count[:, None, None])
        covariance += regularization[None, None] * identity
        covariance = jnp.where(self.diagonal, covariance * identity, covariance)
        variance = jnp.einsum("kii->k", covariance)[:, None, None] / scatter.shape[-1]
        return Full(cholesky(jnp.where(self.isotropic, variance * identity, covariance)))


STRUCTURES = {
    "full": Structure(
        mclust="VVV",
        storage=Full,
        shared=False,
        full_second_moment=True,
        estimate=_full,
        n_parameters=lambda k, d: k * d * (d + 1) // 2,
        shape=lambda k, d: (k, d, d),
    ),
    "tied": Structure(
        mclust="EEE",
        storage=Full,
        shared=True,
        full_second_moment=True,
        estimate=_tied,
        n_parameters=lambda k, d: d * (d + 1) // 2,
        shape=lambda k, d: (d, d),
    ),
    "diag": Structure(
        mclust="VVI",
        storage=Diagonal,
        shared=False,
        full_second_moment=False,
        estimate=_diag,
        n_parameters=lambda k, d: k * d,
        shape=lambda k, d: (k, d),
    ),
    "spherical": Structure(
        mclust="VII",
        storage=Spherical,
        shared=False,
        full_second_moment=False,
        estimate=_spherical,
        n_parameters=lambda k, d: k,
        shape=lambda k, d: (k,),
    ),
    "tied_diag": Structure(
        mclust="EEI",
        storage=Diagonal,
        shared=True,
        full_second_moment=False,
        estimate=_tied_diag,
        n_parameters=lambda k, d: d,
        shape=lambda k, d: (d,),
    ),
    "tied_spherical": Structure(
        mclust="EII",
        storage=Spherical,
        shared=True,
        full_second_moment=False,
        estimate=_tied_spherical,
        n_parameters=lambda k, d: 1,
        shape=lambda k, d: (),
    ),
}


def structure_named(covariance_type: str) -> Structure:
    """The row of the table; ValueError lists the names."""
    return STRUCTURES[check_choice("covariance_type", covariance_type, STRUCTURES)]


def covariance_type_of(covariance: Covariance, n_components: int) -> str:
    """The name that a covariance's storage says; for a single component the untied one."""
    return next(name for name, row in STRUCTURES.items() if row.stores(covariance, n_components))
