"""Overlaps and divergences of all pairs of two mixtures' components.

Sums of covariances have factors, too, which come from the factors by orthogonal transformations.
Pairs are many: what is made on the way to a number of each is made for a block of them at a time.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.conversion import in_common_dtype
from jaxgmm.arrays.numerics import at_least, einsum
from jaxgmm.arrays.reflections import factor_of_root
from jaxgmm.arrays.validation import check_mixture
from jaxgmm.covariances.storage import (
    Covariance,
    Full,
    diagonal_of_factors,
    factors,
    is_diagonal,
    is_isotropic,
)
from jaxgmm.covariances.transformations import of_diagonals
from jaxgmm.mixtures.densities import log_normalizer
from jaxgmm.mixtures.mixture import GaussianMixture

T = TypeVar("T")


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


def over_blocks(
    function: Callable[[GaussianMixture], T],
    p: GaussianMixture,
    numbers: int,
) -> T:
    """A function of some components of p, for all of them, a block at a time.

    Args:
        function: maps a mixture of L of the components (whose weights don't sum to 1) to a pytree
            of (L, ...), each component by itself.
        p: K components.
        numbers: that the function's largest intermediate array has for each component.

    Returns:
        (K, ...) each.
    """
    n_components = p.n_components
    n_blocks = -(-n_components // max(1, budget().block // numbers))
    if n_blocks <= 1:
        return function(p)
    in_block = -(-n_components // n_blocks)
    # The last one is filled up with the last component, over and over.
    places = jnp.minimum(jnp.arange(n_blocks * in_block), n_components - 1)

    # Where derivatives go backward, what a block made on its way is made again.
    @jax.checkpoint
    def of_block(places: Array) -> T:
        return function(
            jax.tree.map(lambda leaf: leaf[places] if leaf.shape[0] == n_components else leaf, p)
        )

    found = lax.map(of_block, places.reshape(n_blocks, in_block))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n_components], found)


def over_sums(
    function: Callable[[GaussianMixture, Covariance], T], p: GaussianMixture, q: GaussianMixture
) -> T:
    """`over_blocks` of p's components and the `sums_of_covariances` of theirs and q's."""
    if is_shared(p) and is_shared(q):
        total = sums_of_covariances(p, q)
        return over_blocks(lambda some: function(some, total), p, q.means.size)
    return over_blocks(
        lambda some: function(some, sums_of_covariances(some, q)), p, numbers_of_sums(p, q)
    )


def is_shared(mixture: GaussianMixture) -> bool:
    """Whether there is one covariance, of all components."""
    return jax.tree.leaves(mixture.covariance)[0].shape[0] == 1


def are_diagonal(p: GaussianMixture, q: GaussianMixture) -> bool:
    """Whether features are independent within the components of both."""
    return is_diagonal(p.covariance) and is_diagonal(q.covariance)


def numbers_of_sums(p: GaussianMixture, q: GaussianMixture) -> int:
    """The size of the largest array on the way to sums of one covariance of p's and all of q's."""
    return q.means.size * (1 if are_diagonal(p, q) else 2 * p.n_features)


def sums_of_covariances(p: GaussianMixture, q: GaussianMixture) -> Covariance:
    """Σ_a + Σ_b of all pairs: with leading axis K₁·K₂, or 1."""
    n_features = p.n_features
    if are_diagonal(p, q):
        both = (diagonal_of_factors(mixture.covariance, n_features) for mixture in (p, q))
        isotropic = is_isotropic(p.covariance) and is_isotropic(q.covariance)
        return of_diagonals(jnp.hypot(*side_by_side(p, q, *both)), isotropic)
    both = (factors(mixture.covariance, n_features) for mixture in (p, q))
    return Full(factor_of_root(jnp.concatenate(side_by_side(p, q, *both), axis=2)))


def log_overlaps(p: GaussianMixture, q: GaussianMixture) -> Array:
    """log ∫ f_a g_b = log N(μ_a | μ_b, Σ_a + Σ_b): (K₁, K₂)."""

    def of_some(some: GaussianMixture, total: Covariance) -> Array:
        return log_overlaps_of_sums(some, q, total, _whitened_differences(some, q, total))

    return over_sums(of_some, p, q)


def log_overlaps_of_sums(
    p: GaussianMixture, q: GaussianMixture, total: Covariance, z: Array
) -> Array:
    """`log_overlaps`, of sums of covariances and differences that these whiten: (K₁·K₂, D)."""
    log_overlap = -jnp.sum(z**2, axis=1) / 2 - log_normalizer(total, p.n_features)
    return log_overlap.reshape(p.n_components, q.n_components)


def bhattacharyya_distances(p: GaussianMixture, q: GaussianMixture) -> Array:
    """-log ∫ √(f_a g_b): (K₁, K₂).

    Source: Bhattacharyya 1943; with Σ = (Σ_a + Σ_b) / 2 it is
    ⅛ (μ_a - μ_b)ᵀ Σ⁻¹ (μ_a - μ_b) + ½ log(|Σ| / √(|Σ_a| |Σ_b|)).
    """
    n_features = p.n_features

    def of_some(some: GaussianMixture, total: Covariance) -> Array:
        square = jnp.sum(_whitened_differences(some, q, total) ** 2, axis=1)
        log_dets = (mixture.covariance.log_det(n_features) for mixture in (some, q))
        first, second = side_by_side(some, q, *log_dets)
        excess = total.log_det(n_features) - n_features * math.log(2) - (first + second) / 2
        distance = square / 4 + at_least(excess, 0) / 2
        return distance.reshape(some.n_components, q.n_components)

    return over_sums(of_some, p, q)


def kl_divergences(p: GaussianMixture, q: GaussianMixture) -> Array:
    """KL(f_a ‖ g_b): (K₁, K₂), accurate however close they are.

    With E = L_b⁻¹ (L_a - L_b) it is ½ |E|² + ½ |L_b⁻¹ (μ_a - μ_b)|² + Σ (E_ii - log(1 + E_ii)), see
    `kl_between_covariances`. However far, too: where a ratio of factors is not near 1 its logarithm
    is a difference.
    """
    independent = are_diagonal(p, q)

    def of_some(some: GaussianMixture) -> Array:
        own, other = (diagonal_of_factors(m.covariance, p.n_features) for m in (some, q))
        if independent:
            diagonal = (own[:, None] - other[None]) / other[None]
            square = jnp.sum(diagonal**2, axis=2)
        else:
            columns = (jnp.swapaxes(factors(m.covariance, p.n_features), 1, 2) for m in (some, q))
            first, second = columns
            error = q.covariance.whiten(first[:, :, None] - jnp.swapaxes(second, 0, 1)[None])
            diagonal = jnp.einsum("aibi->abi", error)
            square = jnp.sum(error**2, axis=(1, 3))
        near = jnp.abs(diagonal) < 0.5
        log_ratio = jnp.where(
            near,
            jnp.log1p(jnp.where(near, diagonal, 0)),
            jnp.log(own)[:, None] - jnp.log(other)[None],
        )
        excess = jnp.sum(diagonal - log_ratio, axis=2)
        apart = q.covariance.whiten(some.means[:, None] - q.means[None])
        divergence = (square + jnp.sum(apart**2, axis=2)) / 2 + excess
        return jnp.broadcast_to(divergence, (some.n_components, q.n_components))

    return over_blocks(of_some, p, q.means.size * (1 if independent else p.n_features))


def squared_wasserstein_distances(p: GaussianMixture, q: GaussianMixture) -> Array:
    """W₂²(f_a, g_b): (K₁, K₂), squared units of the data.

    |μ_a - μ_b|² + |L_a - L_b U|², with the orthogonal U that makes it least, the polar factor of
    L_bᵀ L_a; of diagonal factors it is the identity. As it is the best, a change of it changes
    nothing to first order: derivatives pass by.
    """
    independent = are_diagonal(p, q)

    def of_some(some: GaussianMixture) -> Array:
        if independent:
            first, second = (diagonal_of_factors(m.covariance, p.n_features) for m in (some, q))
            between = jnp.sum((first[:, None] - second[None]) ** 2, axis=2)
        else:
            first, second = (factors(m.covariance, p.n_features) for m in (some, q))
            cross = lax.stop_gradient(einsum("bij,ail->abjl", second, first))
            left, _, right = jnp.linalg.svd(cross, full_matrices=False)
            rotated = einsum("bij,abjl->abil", second, einsum("abij,abjl->abil", left, right))
            between = jnp.sum((first[:, None] - rotated) ** 2, axis=(2, 3))
        return jnp.sum((some.means[:, None] - q.means[None]) ** 2, axis=2) + between

    return over_blocks(of_some, p, q.means.size * (1 if independent else p.n_features))


def _whitened_differences(p: GaussianMixture, q: GaussianMixture, covariance: Covariance) -> Array:
    """L⁻¹ (μ_a - μ_b) of all pairs, with their own L: (K₁·K₂, D)."""
    first, second = side_by_side(p, q, p.means, q.means)
    return covariance.whiten((first - second)[None])[0]
