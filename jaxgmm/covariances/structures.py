"""The table of covariance types: how each is estimated from sufficient statistics.

A further type is one more row. How a covariance is stored is another matter: see `storage.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.validation import check_choice
from jaxgmm.covariances import estimators
from jaxgmm.covariances.estimators import root_of_matrices
from jaxgmm.covariances.storage import Covariance, Diagonal, Full, Spherical, variances


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
        root = root_of_matrices if self.full_second_moment else jnp.sqrt
        return self.storage(root(variances))

    def variances(self, covariance: Covariance, n_features: int) -> Array:
        """The array of variances that a covariance of this type is written down as."""
        if self.full_second_moment:
            written = covariance.dense(n_features)
        else:
            written = next(iter(vars(covariance).values())) ** 2
        return written[0] if self.shared else written


STRUCTURES = {
    "full": Structure(
        mclust="VVV",
        storage=Full,
        shared=False,
        full_second_moment=True,
        estimate=estimators.full,
        n_parameters=lambda k, d: k * d * (d + 1) // 2,
        shape=lambda k, d: (k, d, d),
    ),
    "tied": Structure(
        mclust="EEE",
        storage=Full,
        shared=True,
        full_second_moment=True,
        estimate=estimators.tied,
        n_parameters=lambda k, d: d * (d + 1) // 2,
        shape=lambda k, d: (d, d),
    ),
    "diag": Structure(
        mclust="VVI",
        storage=Diagonal,
        shared=False,
        full_second_moment=False,
        estimate=estimators.diag,
        n_parameters=lambda k, d: k * d,
        shape=lambda k, d: (k, d),
    ),
    "spherical": Structure(
        mclust="VII",
        storage=Spherical,
        shared=False,
        full_second_moment=False,
        estimate=estimators.spherical,
        n_parameters=lambda k, d: k,
        shape=lambda k, d: (k,),
    ),
    "tied_diag": Structure(
        mclust="EEI",
        storage=Diagonal,
        shared=True,
        full_second_moment=False,
        estimate=estimators.tied_diag,
        n_parameters=lambda k, d: d,
        shape=lambda k, d: (d,),
    ),
    "tied_spherical": Structure(
        mclust="EII",
        storage=Spherical,
        shared=True,
        full_second_moment=False,
        estimate=estimators.tied_spherical,
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
