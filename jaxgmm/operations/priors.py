"""Normal-inverse-Wishart priors from mixtures: what a mixture knows about a Gaussian nearby.

In guided policy search a mixture over transitions (x, u, x') of all times is the prior of the
Gaussian of each time, of which there are only a few samples; conditioned on (x, u) that Gaussian is
a linear model of the dynamics.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays import shards
from jaxgmm.arrays.conversion import as_float_array, in_common_dtype
from jaxgmm.arrays.host import is_concrete, unit_weights
from jaxgmm.arrays.matrices import cholesky
from jaxgmm.arrays.numerics import einsum
from jaxgmm.arrays.validation import check_data, check_mixture, check_number
from jaxgmm.covariances.storage import Full, average
from jaxgmm.execution.programs import PlatformProgram, rows_from
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.operations.algebra import Indices, linear_parts


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class NIWPrior:
    """A normal-inverse-Wishart distribution of a Gaussian's mean and covariance.

    Σ has an inverse Wishart distribution, and given Σ the mean is N(mean, Σ / mean_precision).

    Attributes:
        mean: (D,) μ₀ in the data's units.
        scale: (D, D) Ψ in their squares.
        mean_precision: () κ > 0, as how many rows the mean counts.
        dof: () ν, degrees of freedom; the covariance has an expectation where ν > D + 1.
    """

    mean: Array
    scale: Array
    mean_precision: Array
    dof: Array

    def posterior(self, x: ArrayLike, weights: ArrayLike | None = None) -> "NIWPrior":
        """The distribution after some rows of the Gaussian have been seen.

        Args:
            x: (N, D), whose rows may be spread over devices, see `em`.
            weights: (N,) sample weights, which are counts.

        Raises:
            TypeError: x is not numeric.
            ValueError: shapes don't agree; where values are known, NaN or infinity in x.
        """
        x, weights = check_data(x, weights)
        if x.shape[1] != self.mean.shape[0]:
            raise ValueError(f"x must be (N, {self.mean.shape[0]}), got shape {x.shape}")
        prior, x, weights = in_common_dtype(
            self, x, unit_weights(x) if weights is None else weights
        )
        # About the prior's mean, so that nothing cancels far from zero.
        count, first, second = _moments_about(prior.mean, x, weights)
        total = prior.mean_precision + count
        return NIWPrior(
            mean=prior.mean + first / total,
            scale=prior.scale + second - first[:, None] * first[None] / total,
            mean_precision=total,
            dof=prior.dof + count,
        )

    def expected_covariance(self) -> Array:
        """E Σ = Ψ / (ν - D - 1): (D, D)."""
        return self.scale / (self.dof - self.mean.shape[0] - 1)

    def gaussian(self) -> GaussianMixture:
        """The Gaussian with the expected mean and covariance, as a mixture of one component."""
        factor = cholesky(self.expected_covariance()[None])
        return GaussianMixture(jnp.zeros_like(self.mean[:1]), self.mean[None], Full(factor))


@partial(PlatformProgram, layout=rows_from(1, 2))
def _moments_about(origin: Array, x: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Σ w, Σ w z and Σ w z zᵀ of rows z = x - origin: (), (D,), (D, D)."""
    z = jnp.where(weights[:, None] != 0, x - origin[None], 0)
    first = einsum("n,ni->i", weights, z)
    second = einsum("ni,nj->ij", weights[:, None] * z, z)
    return shards.total((jnp.sum(weights), first, second))


def niw_prior(mixture: GaussianMixture, x: ArrayLike, *, strength: ArrayLike = 1.0) -> NIWPrior:
    """The Normal-inverse-Wishart prior of the Gaussian that some points are from.

    With w̄ the average responsibilities of the points, its mean is μ₀ = Σ w̄_k μ_k, its expected
    covariance Φ = Σ w̄_k (Σ_k + (μ_k - μ₀)(μ_k - μ₀)ᵀ), and it counts as `strength` rows. The
    public code of guided policy search has the same mean and Φ, and with a growing number of rows
    its n0 tends to the same weight.

    Args:
        mixture: over D features.
        x: (N, D) query points, which may be spread over devices, see `em`.
        strength: m > 0, as how many rows the prior counts; may be traced.

    Returns:
        `mean` μ₀, `mean_precision` m, `scale` m Φ, and `dof` m + D + 1.

    Raises:
        TypeError: x is not numeric.
        ValueError: shapes don't agree, the strength isn't positive; where values are known, NaN or
            infinity in x.

    Source: Levine & Abbeel 2014.
    """
    check_mixture(mixture)
    x, _ = check_data(x, None)
    if x.shape[1] != mixture.n_features:
        raise ValueError(f"x must be (N, {mixture.n_features}), got shape {x.shape}")
    mixture, x = in_common_dtype(mixture, x)
    strength = check_number("strength", strength)
    if is_concrete(strength) and not strength > 0:
        raise ValueError(f"strength must be positive, got {strength!r}")
    count = as_float_array("strength", strength).astype(x.dtype)
    shares = jnp.mean(mixture.responsibilities(x), axis=0)
    mean = einsum("k,ki->i", shares, mixture.means)
    apart = mixture.means - mean[None]
    within = average(mixture.covariance, shares, mixture.n_features)
    covariance = within + einsum("ki,kj->ij", shares[:, None] * apart, apart)
    return NIWPrior(mean, count * covariance, count, count + x.shape[1] + 1)


def linear_dynamics(gaussian: GaussianMixture, indices: Indices) -> tuple[Array, Array, Array]:
    """A Gaussian's features as a linear function of some of them, with Gaussian noise.

    Args:
        gaussian: a mixture of one component over D features, for instance `NIWPrior.gaussian()`
            over (x, u, x').
        indices: of the d given features, for instance of (x, u); see `marginal`.

    Returns:
        The matrix (D - d, d), the offset (D - d,) and the covariance (D - d, D - d) of the noise,
        of the other features in ascending order.

    Raises:
        TypeError, ValueError: as for `regress`; several components.
    """
    check_mixture(gaussian)
    if gaussian.n_components != 1:
        raise ValueError(
            f"linear dynamics are those of one Gaussian, got {gaussian.n_components} components; "
            "regress takes mixtures"
        )
    return linear_parts(gaussian, indices)
