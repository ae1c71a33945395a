"""Mixtures of other components: products, reductions, and a common order."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays.numerics import einsum, log_softmax, square_root, varying
from jaxgmm.arrays.reflections import factor_of_root
from jaxgmm.arrays.validation import check_count, check_mixture
from jaxgmm.covariances.storage import (
    Full,
    diagonal_of_factors,
    factors,
    is_isotropic,
)
from jaxgmm.covariances.transformations import of_diagonals
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.operations.pairs import (
    are_diagonal,
    bhattacharyya_distances,
    check_pair,
    is_shared,
    log_overlaps_of_sums,
    numbers_of_sums,
    over_blocks,
    side_by_side,
    sums_of_covariances,
)
from jaxgmm.operations.transport import assignment


def product(p: GaussianMixture, q: GaussianMixture) -> GaussianMixture:
    """The mixture whose density is proportional to p(x) q(x): what two opinions agree on.

    Args:
        p: K₁ components.
        q: K₂ components over the same features.

    Returns:
        K₁ K₂ components, those of q in a row for each of p. However far apart p and q are, weights
        are finite; equal, where no product can be represented.

    Raises:
        ValueError: batches, or different numbers of features.

    Example:
        >>> import jaxgmm as jg
        >>> p = jg.GaussianMixture.create([1.0], [[0.0]], [1.0], "spherical")
        >>> q = jg.GaussianMixture.create([1.0], [[2.0]], [1.0], "spherical")
        >>> jg.product(p, q).means.round(4).tolist()
        [[1.0]]
    """
    return _product(*check_pair(p, q))


def reduce(mixture: GaussianMixture, n_components: int) -> GaussianMixture:
    """A mixture of fewer components, with the same mean and covariance.

    Again and again the two components are merged for which a bound on the change, as a
    Kullback-Leibler divergence, is smallest.

    Args:
        mixture: K components.
        n_components: L ≤ K. Static.

    Returns:
        L components with full covariances, in the order of the first that each is made of; the
        mixture itself if L = K.

    Raises:
        ValueError: a batch, or not so many components.

    Source: Runnalls 2007.
    """
    check_mixture(mixture)
    n_components = check_count("n_components", n_components, 1)
    if n_components > mixture.n_components:
        raise ValueError(
            f"n_components must be at most {mixture.n_components}, which the mixture has, got "
            f"{n_components}"
        )
    return mixture if n_components == mixture.n_components else _reduce(mixture, n_components)


def match(p: GaussianMixture, q: GaussianMixture) -> GaussianMixture:
    """q with its components in the order of those of p that they are most like.

    The order is the one for which the sum of Bhattacharyya distances between components is least,
    so that the units of the data make no difference. It undoes the switching of labels between
    fits.

    Args:
        p: K components.
        q: K components over the same features.

    Returns:
        The same mixture as q.

    Raises:
        ValueError: batches, or different numbers of features or components.
    """
    p, q = check_pair(p, q)
    if p.n_components != q.n_components:
        raise ValueError(
            "both mixtures must have as many components, got "
            f"{p.n_components} and {q.n_components}; see reduce"
        )
    return _match(p, q)


@jax.jit
def _product(p: GaussianMixture, q: GaussianMixture) -> GaussianMixture:
    def of_some(some: GaussianMixture) -> GaussianMixture:
        """With the pairs in two axes; where one of p's shares q's covariance, with it repeated."""
        shape = (some.n_components, q.n_components)

        def by_pair(leaf: Array) -> Array:
            repeated = jnp.broadcast_to(leaf, (shape[0] * shape[1], *leaf.shape[1:]))
            return repeated.reshape(*shape, *leaf.shape[1:])

        return jax.tree.map(by_pair, _products(some, q))

    if is_shared(p) and is_shared(q):
        both = _products(p, q)
    else:
        found = over_blocks(of_some, p, 2 * numbers_of_sums(p, q))
        both = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
    return replace(both, log_weights=log_softmax(both.log_weights))


def _products(p: GaussianMixture, q: GaussianMixture) -> GaussianMixture:
    """w_a f_a w_b f_b of all pairs: K₁·K₂ components, with weights that needn't sum to 1."""
    n_features = p.n_features
    first, second = side_by_side(p, q, p.means, q.means)
    apart = (second - first)[None]
    if are_diagonal(p, q):
        total = sums_of_covariances(p, q)
        z = total.whiten(apart)[0]
        both = (diagonal_of_factors(mixture.covariance, n_features) for mixture in (p, q))
        of_p, of_q = side_by_side(p, q, *both)
        share = of_p / jnp.hypot(of_p, of_q)
        step = of_p * share * z
        covariance = of_diagonals(of_q * share, is_isotropic(total))
    else:
        # Of b = a + noise, once it is known to be zero, a has the product's distribution.
        both = (factors(mixture.covariance, n_features) for mixture in (p, q))
        of_p, of_q = side_by_side(p, q, *both)
        below = jnp.concatenate([of_p, jnp.zeros_like(of_p)], axis=2)
        root = jnp.concatenate([jnp.concatenate([of_p, of_q], axis=2), below], axis=1)
        factor = factor_of_root(root)
        total = Full(factor[:, :n_features, :n_features])
        z = total.whiten(apart)[0]
        across = factor[:, n_features:, :n_features]
        step = jnp.broadcast_to(einsum("kij,kj->ki", across, z), first.shape)
        covariance = Full(factor[:, n_features:, n_features:])
    log_weights = p.log_weights[:, None] + q.log_weights[None]
    log_weights += log_overlaps_of_sums(p, q, total, z)
    return GaussianMixture(log_weights.ravel(), first + step, covariance)


class _Component(NamedTuple):
    """One or several: weights (), means (D,) and lower factors (D, D) of covariances."""

    weight: Array
    mean: Array
    factor: Array

    def with_other(self, other: "_Component") -> "_Component":
        """Both in one, with their mean and covariance."""
        total = self.weight + other.weight
        share = other.weight / jnp.where(total > 0, total, 1)
        apart = other.mean - self.mean
        roots = (
            square_root(1 - share) * self.factor,
            square_root(share) * other.factor,
            (square_root(share * (1 - share)) * apart)[:, None],
        )
        factor = factor_of_root(jnp.concatenate(roots, axis=1))
        return _Component(total, self.mean + share * apart, factor)

    def log_volume(self) -> Array:
        """The weight times log |Σ|: ()."""
        return self.weight * Full(self.factor[None]).log_det(self.mean.size)[0]

    def cost_of(self, other: "_Component") -> Array:
        """The bound on what merging two changes: ()."""
        both = self.with_other(other).log_volume()
        return (both - self.log_volume() - other.log_volume()) / 2


@partial(jax.jit, static_argnames="n_components")
def _reduce(mixture: GaussianMixture, n_components: int) -> GaussianMixture:
    n_all, n_features = mixture.means.shape
    matrices = factors(mixture.covariance, n_features)
    matrices = jnp.broadcast_to(matrices, (n_all, n_features, n_features))

    def pick(components: _Component, i: Array) -> _Component:
        return jax.tree.map(lambda leaf: leaf[i], components)

    def costs_with(components: _Component, gone: Array, i: Array) -> Array:
        """Of merging each with number i: (K,)."""
        cost = jax.vmap(pick(components, i).cost_of)(components)
        impossible = gone | gone[i] | (jnp.arange(n_all) == i)
        return jnp.where(impossible, jnp.inf, cost)

    def merge(_: Array, carry: tuple[_Component, Array, Array]) -> tuple[_Component, Array, Array]:
        components, gone, costs = carry
        place = jnp.argmin(costs)
        one, other = jnp.divmod(place, n_all)
        i, j = jnp.minimum(one, other), jnp.maximum(one, other)
        new = pick(components, i).with_other(pick(components, j))
        components = jax.tree.map(lambda leaf, value: leaf.at[i].set(value), components, new)
        gone = gone.at[j].set(True)
        row = costs_with(lax.stop_gradient(components), gone, i)
        costs = costs.at[i].set(row).at[:, i].set(row)
        return components, gone, jnp.where(gone[:, None] | gone[None], jnp.inf, costs)

    components = _Component(mixture.weights, mixture.means, matrices)
    gone = jnp.zeros(n_all, bool)
    fixed = lax.stop_gradient(components)
    costs = lax.map(partial(costs_with, fixed, gone), jnp.arange(n_all))
    start = varying((components, gone, costs))
    components, gone, _ = lax.fori_loop(0, n_all - n_components, merge, start)
    left = pick(components, jnp.argsort(gone, stable=True)[:n_components])
    alive = left.weight > 0
    log_weights = jnp.where(alive, jnp.log(jnp.where(alive, left.weight, 1)), -jnp.inf)
    return GaussianMixture(log_weights, left.mean, Full(left.factor))


@jax.jit
def _match(p: GaussianMixture, q: GaussianMixture) -> GaussianMixture:
    order = assignment(lax.stop_gradient(bhattacharyya_distances(p, q)))

    def reordered(leaf: Array) -> Array:
        return leaf[order] if leaf.shape[0] == order.size else leaf

    return jax.tree.map(reordered, q)
