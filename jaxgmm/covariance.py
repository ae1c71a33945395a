"""How covariances are stored: as the linear map that turns white noise into the component's noise.

Each class answers the same four questions. The leading axis is K, or 1 where all components share
one covariance. `whiten` and `unwhiten` act on the last two axes, `(..., K or 1, D)`, and broadcast;
`log_det` and `dense` are told D, which a spherical covariance doesn't know.
How a covariance is *estimated* is another matter: see `structures.py`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.numerics import align, einsum, inverse_of_lower


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Full:
    """Any positive definite covariance, stored as its lower Cholesky factor.

    Attributes:
        scale_tril: (K or 1, D, D) lower triangular with positive diagonal, Σ = L Lᵀ.
        inverse: (K or 1, D, D) L⁻¹ where it is at hand, see `prepared`.
    """

    scale_tril: Array
    inverse: Array | None = None

    def whiten(self, difference: Array) -> Array:
        """L⁻¹ d: (..., K or 1, D) -> (..., K, D)."""
        return einsum("kij,...kj->...ki", self.inverse_factor(), difference)

    def inverse_factor(self) -> Array:
        """L⁻¹: (K or 1, D, D)."""
        return inverse_of_lower(self.scale_tril) if self.inverse is None else self.inverse

    def unwhiten(self, noise: Array) -> Array:
        """L z: (..., K or 1, D) -> (..., K, D)."""
        return einsum("kij,...kj->...ki", self.scale_tril, noise)

    def log_det(self, n_features: int) -> Array:
        """log |Σ|: (K or 1,)."""
        diagonal = jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1)
        return 2 * jnp.sum(jnp.log(diagonal), axis=-1)

    def dense(self, n_features: int) -> Array:
        """Σ: (K or 1, D, D)."""
        return einsum("kij,klj->kil", self.scale_tril, self.scale_tril)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Diagonal:
    """Independent features, stored as standard deviations.

    Attributes:
        scale: (K or 1, D) positive, Σ = diag(scale²).
    """

    scale: Array

    def whiten(self, difference: Array) -> Array:
        """d / scale: (..., K or 1, D) -> (..., K, D)."""
        return difference / align(self.scale, difference)

    def unwhiten(self, noise: Array) -> Array:
        """scale · z: (..., K or 1, D) -> (..., K, D)."""
        return noise * align(self.scale, noise)

    def log_det(self, n_features: int) -> Array:
        """log |Σ|: (K or 1,)."""
        return 2 * jnp.sum(jnp.log(self.scale), axis=-1)

    def dense(self, n_features: int) -> Array:
        """Σ: (K or 1, D, D)."""
        return (self.scale**2)[:, :, None] * jnp.eye(n_features, dtype=self.scale.dtype)[None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Spherical:
    """The same standard deviation in every direction.

    Attributes:
        scale: (K or 1,) positive, Σ = scale² I.
    """

    scale: Array

    def whiten(self, difference: Array) -> Array:
        """d / scale: (..., K or 1, D) -> (..., K, D)."""
        return difference / align(self.scale[:, None], difference)

    def unwhiten(self, noise: Array) -> Array:
        """scale · z: (..., K or 1, D) -> (..., K, D)."""
        return noise * align(self.scale[:, None], noise)

    def log_det(self, n_features: int) -> Array:
        """log |Σ|: (K or 1,)."""
        return 2 * n_features * jnp.log(self.scale)

    def dense(self, n_features: int) -> Array:
        """Σ: (K or 1, D, D)."""
        variance = (self.scale**2)[:, None, None]
        return variance * jnp.eye(n_features, dtype=self.scale.dtype)[None]


Covariance = Full | Diagonal | Spherical


def prepared(covariance: Covariance) -> Covariance:
    """The same covariance, for much whitening: with L⁻¹ at hand."""
    match covariance:
        case Full(scale_tril, None):
            return Full(scale_tril, inverse_of_lower(scale_tril))
        case _:
            return covariance


def unprepared(covariance: Covariance) -> Covariance:
    """The same covariance, with nothing at hand that follows from the rest."""
    return Full(covariance.scale_tril) if isinstance(covariance, Full) else covariance


def of_components(covariance: Covariance, components: Array) -> Covariance:
    """The covariances of some components, in the order of their numbers (J,)."""
    return jax.tree.map(lambda leaf: leaf[components % leaf.shape[0]], covariance)


def factors(covariance: Covariance, n_features: int) -> Array:
    """L as matrices: (K or 1, D, D)."""
    identity = jnp.eye(n_features, dtype=jax.tree.leaves(covariance)[0].dtype)
    return jnp.moveaxis(covariance.unwhiten(identity[:, None, :]), 0, -1)


def diagonal_of_factors(covariance: Covariance, n_features: int) -> Array:
    """The diagonals of L: (K or 1, D)."""
    match covariance:
        case Full(scale_tril):
            return jnp.diagonal(scale_tril, axis1=1, axis2=2)
        case Diagonal(scale):
            return scale
        case Spherical(scale):
            return jnp.broadcast_to(scale[:, None], (scale.size, n_features))


def precision(covariance: Covariance, n_features: int) -> Array:
    """Σ⁻¹: (K or 1, D, D)."""
    columns = _whitened_axes(covariance, n_features)
    return einsum("ikm,jkm->kij", columns, columns)


def precision_diagonal(covariance: Covariance, n_features: int) -> Array:
    """The diagonal of Σ⁻¹: (K or 1, D)."""
    return jnp.sum(_whitened_axes(covariance, n_features) ** 2, axis=2).T


def _whitened_axes(covariance: Covariance, n_features: int) -> Array:
    """L⁻¹ e_i: (D, K or 1, D)."""
    identity = jnp.eye(n_features, dtype=jax.tree.leaves(covariance)[0].dtype)
    return covariance.whiten(identity[:, None, :])


def inverse_correlation_trace(covariance: Covariance, n_features: int) -> Array:
    """tr R⁻¹ of the correlation matrices R: (K or 1,).

    With Σ = S R S, S the diagonal matrix of standard deviations, R⁻¹ = (L⁻¹ S)ᵀ (L⁻¹ S).
    """
    match covariance:
        case Full(scale_tril):
            variance = jnp.sum(scale_tril**2, axis=2)
            return jnp.sum(covariance.inverse_factor() ** 2 * variance[:, None, :], axis=(1, 2))
        case Diagonal(scale):
            return jnp.full_like(scale[:, 0], n_features)
        case Spherical(scale):
            return jnp.full_like(scale, n_features)


def kl_between_covariances(new: Covariance, old: Covariance, n_features: int) -> Array:
    """KL(N(0, Σ_new) ‖ N(0, Σ_old)), accurate however close they are.

    With E = L_old⁻¹ (L_new - L_old), lower triangular, the usual formula
    ½ [tr(Σ_old⁻¹ Σ_new) - D - log |Σ_old⁻¹ Σ_new|] is ½ Σ E_ij² + Σ (E_ii - log(1 + E_ii)):
    no large terms cancel.

    Returns:
        (K or 1,).
    """
    identity = jnp.eye(n_features, dtype=jax.tree.leaves(new)[0].dtype)[:, None, :]
    error = old.whiten(new.unwhiten(identity) - old.unwhiten(identity))
    diagonal = jnp.einsum("iki->ki", error)
    excess = diagonal - jnp.log1p(diagonal)
    return jnp.sum(error**2, axis=(0, 2)) / 2 + jnp.sum(excess, axis=-1)
