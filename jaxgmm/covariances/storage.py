"""Storage of covariances: linear maps that turn white noise into the components' noise.

Each class answers the same four questions. The leading axis is K, or 1 where all components share
one covariance. `whiten` and `unwhiten` act on the last two axes, `(..., K or 1, D)`, and broadcast;
`log_det` and `dense` are told D, which a spherical covariance doesn't know.
How a covariance is *estimated* is another matter: see `structures.py`.
"""

import operator
from dataclasses import dataclass
from functools import reduce

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.matrices import inverse_of_lower, is_positive_definite
from jaxgmm.arrays.numerics import align, einsum


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Full:
    """Any positive definite covariance, stored as its lower Cholesky factor.

    Attributes:
        scale_tril: (K or 1, D, D) lower triangular with positive diagonal, Σ = L Lᵀ.
        inverse: (K or 1, D, D) L⁻¹ where it is at hand, see `with_inverse`.
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
        return as_matrices(variances(self, n_features))


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
        return as_matrices(variances(self, n_features))


Covariance = Full | Diagonal | Spherical


def with_inverse(covariance: Covariance) -> Covariance:
    """The same covariance, for much whitening: with L⁻¹ at hand."""
    match covariance:
        case Full(scale_tril, None):
            return Full(scale_tril, inverse_of_lower(scale_tril))
        case _:
            return covariance


def without_inverse(covariance: Covariance) -> Covariance:
    """The same covariance, with nothing at hand that follows from the rest."""
    return Full(covariance.scale_tril) if isinstance(covariance, Full) else covariance


def is_diagonal(covariance: Covariance) -> bool:
    """Whether features are independent within components, whatever the numbers are."""
    return not isinstance(covariance, Full)


def is_isotropic(covariance: Covariance) -> bool:
    """Whether components are spheres, whatever the numbers are."""
    return isinstance(covariance, Spherical)


def scale_shape(covariance: Covariance, n_features: int) -> tuple[int, ...]:
    """The shape of what is stored for one component: (D, D), (D,) or ()."""
    return {Full: (n_features,) * 2, Diagonal: (n_features,), Spherical: ()}[type(covariance)]


def pick(covariance: Covariance, numbers: Array) -> Covariance:
    """The covariances of some components, (M,) int: with leading axis M."""
    return jax.tree.map(lambda leaf: leaf[numbers % leaf.shape[0]], covariance)


def factors(covariance: Covariance, n_features: int) -> Array:
    """L as matrices: (K or 1, D, D)."""
    match covariance:
        case Full(scale_tril):
            return scale_tril
        case _:
            return as_matrices(diagonal_of_factors(covariance, n_features))


def diagonal_of_factors(covariance: Covariance, n_features: int) -> Array:
    """The diagonals of L: (K or 1, D)."""
    match covariance:
        case Full(scale_tril):
            return jnp.diagonal(scale_tril, axis1=1, axis2=2)
        case Diagonal(scale):
            return scale
        case Spherical(scale):
            return jnp.broadcast_to(scale[:, None], (scale.size, n_features))


def variances(covariance: Covariance, n_features: int) -> Array:
    """The diagonal of Σ: (K or 1, D)."""
    match covariance:
        case Full(scale_tril):
            return jnp.sum(scale_tril**2, axis=2)
        case _:
            return diagonal_of_factors(covariance, n_features) ** 2


def precision(covariance: Covariance, n_features: int) -> Array:
    """Σ⁻¹: (K or 1, D, D)."""
    match covariance:
        case Full():
            inverse = covariance.inverse_factor()
            return einsum("kmi,kmj->kij", inverse, inverse)
        case _:
            return as_matrices(precision_diagonal(covariance, n_features))


def precision_diagonal(covariance: Covariance, n_features: int) -> Array:
    """The diagonal of Σ⁻¹: (K or 1, D)."""
    match covariance:
        case Full():
            return jnp.sum(covariance.inverse_factor() ** 2, axis=1)
        case _:
            return (1 / diagonal_of_factors(covariance, n_features)) ** 2


def average(covariance: Covariance, shares: Array, n_features: int) -> Array:
    """Σ_k s_k Σ_k: (D, D), from shares (K,)."""
    match covariance:
        case Full():
            matrices = covariance.dense(n_features)
            return einsum("k,kij->ij", _of_leading_axis(shares, matrices), matrices)
        case _:
            diagonals = variances(covariance, n_features)
            of_all = einsum("k,ki->i", _of_leading_axis(shares, diagonals), diagonals)
            return as_matrices(of_all[None])[0]


def _of_leading_axis(shares: Array, like: Array) -> Array:
    """The shares (K,), or their sum (1,) where all components have the same."""
    return shares if like.shape[0] == shares.size else jnp.sum(shares, keepdims=True)


def as_matrices(diagonals: Array) -> Array:
    """Diagonal matrices: (K, D) -> (K, D, D)."""
    return diagonals[:, :, None] * jnp.eye(diagonals.shape[1], dtype=diagonals.dtype)[None]


def whiten_columns(covariance: Covariance, difference: Array) -> Array:
    """L_k⁻¹ d with rows last, which is fastest: (K, D, N) -> (K, D, N)."""
    match covariance:
        case Full():
            shape = (*difference.shape[:2], difference.shape[1])
            inverse = jnp.broadcast_to(covariance.inverse_factor(), shape)
            return einsum("kij,kjn->kin", inverse, difference)
        case Diagonal(scale):
            return difference / scale[:, :, None]
        case Spherical(scale):
            return difference / scale[:, None, None]


def whiten_few(covariance: Covariance, difference: list[Array]) -> list[Array]:
    """`whiten_columns` of few features, written out: D arrays (K, N) -> D arrays (K, N).

    XLA's CPU backend fuses it with what is around it, without any number made twice.
    """
    match covariance:
        case Full():
            inverse = covariance.inverse_factor()[:, :, :, None]
            return [
                reduce(operator.add, (inverse[:, i, j] * difference[j] for j in range(i + 1)))
                for i in range(len(difference))
            ]
        case Diagonal(scale):
            return [column / scale[:, i, None] for i, column in enumerate(difference)]
        case Spherical(scale):
            return [column / scale[:, None] for column in difference]


def exceeds(covariance: Covariance, added: Array) -> Array:
    """Whether Σ - diag(added) is positive definite: (K or 1,) bool.

    Args:
        covariance: Σ.
        added: (K or 1, D) variances.
    """
    n_features = added.shape[1]
    match covariance:
        case Full():
            root = jnp.sqrt(added)
            shares = root[:, :, None] * precision(covariance, n_features) * root[:, None, :]
            return is_positive_definite(jnp.eye(n_features, dtype=added.dtype)[None] - shares)
        case _:
            return jnp.all(added * precision_diagonal(covariance, n_features) < 1, axis=1)


def inverse_correlation_trace(covariance: Covariance, n_features: int) -> Array:
    """tr R⁻¹ of the correlation matrices R: (K or 1,).

    With Σ = S R S, S the diagonal matrix of standard deviations, R⁻¹ = (L⁻¹ S)ᵀ (L⁻¹ S).
    """
    match covariance:
        case Full():
            of_features = variances(covariance, n_features)
            return jnp.sum(covariance.inverse_factor() ** 2 * of_features[:, None, :], axis=(1, 2))
        case Diagonal(scale):
            return jnp.full_like(scale[:, 0], n_features)
        case Spherical(scale):
            return jnp.full_like(scale, n_features)


def kl_between_covariances(new: Covariance, old: Covariance, n_features: int) -> Array:
    """KL(N(0, Σ_new) ‖ N(0, Σ_old)), accurate however close they are.

    With E = L_old⁻¹ (L_new - L_old), lower triangular, the usual formula
    ½ [tr(Σ_old⁻¹ Σ_new) - D - log |Σ_old⁻¹ Σ_new|] is ½ Σ E_ij² + Σ (E_ii - log(1 + E_ii)):
    no large terms cancel.

    Args:
        new: of a leading axis K or 1.
        old: stored by the same class, with as long an axis or one of length 1.
        n_features: D.

    Returns:
        (K or 1,).
    """
    match new, old:
        case Full(), Full():
            moved = new.scale_tril - old.scale_tril
            error = einsum("kij,kjl->kil", old.inverse_factor(), moved)
            diagonal = jnp.diagonal(error, axis1=1, axis2=2)
            square = jnp.sum(error**2, axis=(1, 2))
        case _:
            first, second = (diagonal_of_factors(of, n_features) for of in (new, old))
            diagonal = (first - second) / second
            square = jnp.sum(diagonal**2, axis=1)
    return square / 2 + jnp.sum(diagonal - jnp.log1p(diagonal), axis=1)
