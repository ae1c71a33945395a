"""The table of covariance types: how each is estimated from sufficient statistics.

A further type is one more row. How a covariance is stored is another matter: see `storage.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.numerics import at_least
from jaxgmm.arrays.validation import check_choice
from jaxgmm.covariances import charts, estimators, volume_shape
from jaxgmm.covariances.charts import Chart, FreeNumbers
from jaxgmm.covariances.estimators import Estimator, root_of_matrices
from jaxgmm.covariances.storage import (
    Covariance,
    Diagonal,
    Full,
    Spherical,
    kl_between_covariances,
    variances,
)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Structure:
    """One covariance type; in a tree of arrays it has no leaves.

    Attributes:
        name: by which people ask for it.
        mclust: its name in mclust (volume, shape, orientation).
        storage: the class that stores it.
        shared: whether all components have the same covariance.
        full_second_moment: whether it needs (K, D, D) second moments, or their diagonals (K, D).
        isotropic: whether EM commutes with no other scaling of the features than a common one;
            else it does with any, and with any affine map where second moments are full.
        estimate: maximizes the expected log-likelihood, see `estimators`.
        chart: its free parameters.
        n_parameters: how many these are, of (K, D).
        shape: of the array of variances that people write down, of (K, D).
        coupled: whether components that each have a covariance share some of its numbers.
    """

    name: str
    mclust: str
    storage: type
    shared: bool
    full_second_moment: bool
    isotropic: bool
    estimate: Estimator
    chart: Chart
    n_parameters: Callable[[int, int], int]
    shape: Callable[[int, int], tuple[int, ...]]
    coupled: bool = False

    @property
    def stores_one(self) -> bool:
        """Whether one covariance is stored for all components."""
        return self.shared

    @property
    def diagonal(self) -> bool:
        """Whether features are independent within components."""
        return not self.full_second_moment

    def conforms(self, covariance: Covariance, n_features: int) -> Array:
        """Whether a covariance, stored as the type is, is of the type up to rounding: () bool."""
        nearest = self.chart.covariance(self.chart.numbers(covariance))
        divergence = kl_between_covariances(nearest, covariance, n_features)
        return jnp.all(divergence <= float(jnp.finfo(divergence.dtype).eps))

    def stores(self, covariance: Covariance, n_components: int) -> bool:
        """Whether a covariance is of this type already, whatever its numbers are."""
        return self.may_store(covariance, n_components) and not self.coupled

    def may_store(self, covariance: Covariance, n_components: int) -> bool:
        """Whether a covariance has the form in which this type is stored."""
        leading = 1 if self.shared else n_components
        leaf = next(iter(vars(covariance).values()))
        return isinstance(covariance, self.storage) and leaf.shape[0] == leading

    def check(self, covariance: Covariance, n_components: int, n_features: int) -> None:
        """ValueError where a covariance is not of this type, as far as its values are known."""
        if not self.may_store(covariance, n_components):
            raise ValueError(
                f"covariance_type={self.name!r} is stored otherwise than this mixture, which is "
                f"{covariance_type_of(covariance, n_components)!r}"
            )
        if self.coupled and is_concrete(*jax.tree.leaves(covariance)):
            with jax.ensure_compile_time_eval():
                good = self.conforms(covariance, n_features)
            if not good:
                raise ValueError(
                    "covariances must have in common what "
                    f"covariance_type={self.name!r} says, got {covariance}"
                )

    def nearest(self, covariance: Covariance, weights: Array, n_features: int) -> Covariance:
        """The covariance of this type that is nearest in Kullback-Leibler divergence.

        Args:
            covariance: of another type.
            weights: (K,) mixing weights, by which what components share is averaged.
            n_features: D.
        """
        count = jnp.ones_like(weights)
        if self.shared or self.coupled:
            count = at_least(weights, float(jnp.finfo(weights.dtype).eps) ** 2)
        if self.full_second_moment:
            scatter = covariance.dense(n_features) * count[:, None, None]
        else:
            scatter = variances(covariance, n_features) * count[:, None]
        return self.estimate(count, scatter, None)

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
        name="full",
        mclust="VVV",
        storage=Full,
        shared=False,
        full_second_moment=True,
        isotropic=False,
        estimate=estimators.full,
        chart=charts.FULL,
        n_parameters=lambda k, d: k * d * (d + 1) // 2,
        shape=lambda k, d: (k, d, d),
    ),
    "tied": Structure(
        name="tied",
        mclust="EEE",
        storage=Full,
        shared=True,
        full_second_moment=True,
        isotropic=False,
        estimate=estimators.tied,
        chart=charts.FULL,
        n_parameters=lambda k, d: d * (d + 1) // 2,
        shape=lambda k, d: (d, d),
    ),
    "diag": Structure(
        name="diag",
        mclust="VVI",
        storage=Diagonal,
        shared=False,
        full_second_moment=False,
        isotropic=False,
        estimate=estimators.diag,
        chart=charts.DIAGONAL,
        n_parameters=lambda k, d: k * d,
        shape=lambda k, d: (k, d),
    ),
    "spherical": Structure(
        name="spherical",
        mclust="VII",
        storage=Spherical,
        shared=False,
        full_second_moment=False,
        isotropic=True,
        estimate=estimators.spherical,
        chart=charts.SPHERICAL,
        n_parameters=lambda k, d: k,
        shape=lambda k, d: (k,),
    ),
    "tied_diag": Structure(
        name="tied_diag",
        mclust="EEI",
        storage=Diagonal,
        shared=True,
        full_second_moment=False,
        isotropic=False,
        estimate=estimators.tied_diag,
        chart=charts.DIAGONAL,
        n_parameters=lambda k, d: d,
        shape=lambda k, d: (d,),
    ),
    "tied_spherical": Structure(
        name="tied_spherical",
        mclust="EII",
        storage=Spherical,
        shared=True,
        full_second_moment=False,
        isotropic=True,
        estimate=estimators.tied_spherical,
        chart=charts.SPHERICAL,
        n_parameters=lambda k, d: 1,
        shape=lambda k, d: (),
    ),
    "VEI": Structure(
        name="VEI",
        mclust="VEI",
        storage=Diagonal,
        shared=False,
        full_second_moment=False,
        isotropic=False,
        estimate=volume_shape.common_shape,
        chart=volume_shape.VOLUME_SHAPE,
        n_parameters=lambda k, d: k + d - 1,
        shape=lambda k, d: (k, d),
        coupled=True,
    ),
}


# What `select` tries by default.
SWEPT = ("full", "tied", "diag", "spherical", "tied_diag", "tied_spherical")
CODES = {row.mclust: name for name, row in STRUCTURES.items()}


def structure_named(covariance_type: str) -> Structure:
    """The row of the table, by its name or by mclust's; ValueError lists the names."""
    named = isinstance(covariance_type, str)
    name = CODES.get(covariance_type, covariance_type) if named else covariance_type
    return STRUCTURES[check_choice("covariance_type", name, STRUCTURES)]


def chart_with(numbers: FreeNumbers) -> Chart:
    """The chart that numbers are of, by which of them there are."""
    if numbers.log_shape is not None:
        return volume_shape.VOLUME_SHAPE
    if numbers.below is not None:
        return charts.FULL
    return charts.SPHERICAL if numbers.log_scale.ndim == 1 else charts.DIAGONAL


def covariance_type_of(covariance: Covariance, n_components: int) -> str:
    """The name that a covariance's storage says; for a single component the untied one."""
    return next(name for name, row in STRUCTURES.items() if row.stores(covariance, n_components))
