"""Centering and scaling: the coordinates in which the data have mean 0 and variance 1."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.covariances.transformations import rescale, within
from jaxgmm.mixtures.mixture import GaussianMixture


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Standardization:
    """Coordinates z = (x - center) / scale in which the data have mean 0 and variance 1.

    Attributes:
        center: (D,) in the data's units, a constant to differentiation.
        scale: (D,) likewise; D equal numbers where the structure allows no other scaling.
        variance: (D,) of the data in these coordinates: 1, but not a constant to differentiation.
            Constant features have the variance that their magnitude suggests; with a weight that
            is negative or NaN none has any.
        isotropic: () bool, whether all features must have the same scale.
    """

    center: Array
    scale: Array
    variance: Array
    isotropic: Array

    def standardize(self, x: Array, weights: Array) -> Array:
        """Rows in these coordinates; rows of weight 0, which may hold anything, at the center.

        Computed, and where a loop reads them once also kept, feature by feature: (D, rows), as
        what follows reads them fastest.
        """
        columns = jnp.where(weights[None] != 0, x.T, self.center[:, None])
        return ((columns - self.center[:, None]) / self.scale[:, None]).T

    def transform(self, mixture: GaussianMixture) -> GaussianMixture:
        """A mixture over x as one over z."""
        means = (mixture.means - self.center[None]) / self.scale[None]
        return replace(mixture, means=means, covariance=rescale(mixture.covariance, 1 / self.scale))

    def transform_start(self, mixture: GaussianMixture) -> GaussianMixture:
        """A mixture over x as one over z that EM can begin with, however far from the data it is.

        Its numbers are kept where their squares, and inverses of these, are finite: a start that is
        so much wider, narrower or farther away than the data says nothing else about them.
        """
        entered = self.transform(mixture)
        most = float(jnp.finfo(entered.means.dtype).max) ** 0.4
        means = jnp.clip(entered.means, -most, most)
        return replace(entered, means=means, covariance=within(entered.covariance, most))

    def inverse_transform(self, mixture: GaussianMixture) -> GaussianMixture:
        """A mixture over z as one over x."""
        means = self.center[None] + self.scale[None] * mixture.means
        return replace(mixture, means=means, covariance=rescale(mixture.covariance, self.scale))

    def log_volume(self) -> Array:
        """(): what has to be taken from a log density over z to have it over x."""
        return jnp.sum(jnp.log(self.scale))
