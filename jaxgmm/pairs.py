"""What two Gaussians have to do with each other, for all pairs of two mixtures' components.

Sums of covariances have factors, too, which come from the factors by orthogonal transformations.
"""

import math

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.covariance import (
    Covariance,
    Diagonal,
    Full,
    Spherical,
    diagonal_of_factors,
    factors,
)
from jaxgmm.densities import log_normalizer
from jaxgmm.mixture import GaussianMixture
from jaxgmm.numerics import at_least, einsum, factor_of_root
from jaxgmm.validation import check_mixture, in_common_dtype


def check_pair(p: GaussianMixture, q: GaussianMixture) -> tuple[GaussianMixture, GaussianMixture]:
    """Two mixtures over the same features, in the wider of their dtypes.

    Raises:
        ValueError: batches, or different numbers of features.
    """
    check_mixture(p)
    check_mixture(q)
    if p.n_features != q.n_features:
        raise ValueError(
            f"both mixtures must have the same features, got {p.n_features} and {q.n_features}"
        )
    p, q = in_common_dtype(p, q)
    return p, q


def side_by_side(
    p: GaussianMixture, q: GaussianMixture, of_p: Array, of_q: Array
) -> tuple[Array, Array]:
    """Arrays of p's and of q's components, for all pairs: (K₁·K₂, ...) each.

    Args:
        p: K₁ components.
        q: K₂ components.
        of_p: (K₁ or 1, ...).
        of_q: (K₂ or 1, ...); where both lead with 1 and stand for more, so do the results.
    """
    shared = of_p.shape[0] == of_q.shape[0] == 1
    lead = (1, 1) if shared else (p.n_components, q.n_components)
    left = jnp.broadcast_to(of_p[:, None], (*lead, *of_p.shape[1:]))
    right = jnp.broadcast_to(of_q[None], (*lead, *of_q.shape[1:]))
    return left.reshape(-1, *of_p.shape[1:]), right.reshape(-1, *of_q.shape[1:])


def sums_of_covariances(p: GaussianMixture, q: GaussianMixture) -> Covariance:
    """Σ_a + Σ_b of all pairs: with leading axis K₁·K₂, or 1."""
    n_features = p.n_features
    match p.covariance, q.covariance:
        case Spherical(first), Spherical(second):
            return Spherical(jnp.hypot(*side_by_side(p, q, first, second)))
        case (Full(), _) | (_, Full()):
            both = (factors(mixture.covariance, n_features) for mixture in (p, q))
            return Full(factor_of_root(jnp.concatenate(side_by_side(p, q, *both), axis=2)))
        case _:
            both = (diagonal_of_factors(mixture.covariance, n_features) for mixture in (p, q))
            return Diagonal(jnp.hypot(*side_by_side(p, q, *both)))


def log_overlaps(p: GaussianMixture, q: GaussianMixture) -> Array:
    """log ∫ f_a g_b = log N(μ_a | μ_b, Σ_a + Σ_b): (K₁, K₂)."""
    total = sums_of_covariances(p, q)
    square = _squared_distances(p, q, total)
    log_overlap = -square / 2 - log_normalizer(total, p.n_features)
    return log_overlap.reshape(p.n_components, q.n_components)


def bhattacharyya_distances(p: GaussianMixture, q: GaussianMixture) -> Array:
    """-log ∫ √(f_a g_b): (K₁, K₂).

    Source: Bhattacharyya 1943; with Σ = (Σ_a + Σ_b) / 2 it is
    ⅛ (μ_a - μ_b)ᵀ Σ⁻¹ (μ_a - μ_b) + ½ log(|Σ| / √(|Σ_a| |Σ_b|)).
    """
    total, n_features = sums_of_covariances(p, q), p.n_features
    square = _squared_distances(p, q, total)
    log_dets = (mixture.covariance.log_det(n_features) for mixture in (p, q))
    first, second = side_by_side(p, q, *log_dets)
    excess = total.log_det(n_features) - n_features * math.log(2) - (first + second) / 2
    distance = square / 4 + at_least(excess, 0) / 2
    return distance.reshape(p.n_components, q.n_components)


def kl_divergences(p: GaussianMixture, q: GaussianMixture) -> Array:
    """KL(f_a ‖ g_b): (K₁, K₂), accurate however close they are, see `kl_between_covariances`.

    However far, too: where a ratio of factors is not near 1 its logarithm is a difference.
    """
    first, second = (
        jnp.swapaxes(factors(mixture.covariance, p.n_features), 1, 2) for mixture in (p, q)
    )
    error = q.covariance.whiten(first[:, :, None] - jnp.swapaxes(second, 0, 1)[None])
    diagonal = jnp.einsum("aibi->abi", error)
    own, other = (
        jnp.log(diagonal_of_factors(mixture.covariance, p.n_features)) for mixture in (p, q)
    )
    near = jnp.abs(diagonal) < 0.5
    log_ratio = jnp.where(near, jnp.log1p(jnp.where(near, diagonal, 0)), own[:, None] - other[None])
    excess = jnp.sum(diagonal - log_ratio, axis=2)
    apart = q.covariance.whiten(p.means[:, None] - q.means[None])
    divergence = (jnp.sum(error**2, axis=(1, 3)) + jnp.sum(apart**2, axis=2)) / 2 + excess
    return jnp.broadcast_to(divergence, (p.n_components, q.n_components))


def squared_wasserstein_distances(p: GaussianMixture, q: GaussianMixture) -> Array:
    """W₂²(f_a, g_b): (K₁, K₂), squared units of the data.

    |μ_a - μ_b|² + |L_a - L_b U|², with the orthogonal U that makes it least, the polar factor of
    L_bᵀ L_a. As it is the best, a change of it changes nothing to first order: derivatives pass by.
    """
    first, second = (factors(mixture.covariance, p.n_features) for mixture in (p, q))
    cross = lax.stop_gradient(einsum("bij,ail->abjl", second, first))
    left, _, right = jnp.linalg.svd(cross, full_matrices=False)
    rotated = einsum("bij,abjl->abil", second, einsum("abij,abjl->abil", left, right))
    apart = jnp.sum((p.means[:, None] - q.means[None]) ** 2, axis=2)
    return apart + jnp.sum((first[:, None] - rotated) ** 2, axis=(2, 3))


def _squared_distances(p: GaussianMixture, q: GaussianMixture, covariance: Covariance) -> Array:
    """(μ_a - μ_b)ᵀ Σ⁻¹ (μ_a - μ_b) of all pairs, with their own Σ: (K₁·K₂,)."""
    first, second = side_by_side(p, q, p.means, q.means)
    return jnp.sum(covariance.whiten((first - second)[None])[0] ** 2, axis=1)
