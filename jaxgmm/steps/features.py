"""Bases in which log densities are linear, and so are the moments."""

import operator
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.numerics import at_least, contract, einsum
from jaxgmm.covariances.storage import is_diagonal
from jaxgmm.mixtures.mixture import GaussianMixture

# From so many coordinates on two products of them are faster than one of features that are put
# together first.
IN_TWO_FROM = 16
# Features that are multiplied in blocks are no more than so many, each of which is compiled.
BLOCKS = 16


class LogitCoefficients(NamedTuple):
    """K functions that are linear in features.

    Attributes:
        coefficients: (K, F).
        constants: (K,), or None where they are the coefficients of a feature that is 1.
    """

    coefficients: Array
    constants: Array | None

    def at(self, values: tuple[Array, ...]) -> Array:
        """The functions, (K, rows), from the features in blocks (rows, F_b)."""
        ends = np.cumsum([block.shape[1] for block in values])
        parts = jnp.split(self.coefficients, ends[:-1], axis=1)
        products = (contract("kf,nf->kn", *pair) for pair in zip(parts, values, strict=True))
        total = reduce(operator.add, products)
        return total if self.constants is None else total + self.constants[:, None]


class Features(NamedTuple):
    """A basis in which log densities are linear.

    Attributes:
        count: F, of D.
        of: the values for a chunk: (rows, D) -> blocks (rows, F_b) of the F features.
        coefficients: of log densities: from precisions P_k (K, D, D), or their diagonals (K, D)
            where all else is zero, slopes P_k μ_k (K, D) and constants (K,).
        sum: of the values under responsibilities (K, rows): (F_b, K) or (K, F), whichever product
            is the faster one.
        moments: from what `sum` returns: counts (K,), the first moments (K, D), and the second
            (K, D, D) or (K, D) where the features tell them.
        packed: what `sum` would have, as numbers (K, S): from what `moments` returns.
        put: what `sum` returns with the numbers of some components, (K,) bool, from (K, S).
    """

    count: Callable[[int], int]
    of: Callable[[Array], tuple[Array, ...]]
    coefficients: Callable[[Array, Array, Array], LogitCoefficients]
    sum: Callable[[tuple[Array, ...], Array], tuple[Array, ...]]
    moments: Callable[[tuple[Array, ...]], tuple[Array, ...]]
    packed: Callable[[Array, Array, Array], Array]
    put: Callable[[tuple[Array, ...], Array, Array], tuple[Array, ...]]


def with_one(z: Array) -> Array:
    """(D, rows) -> (D + 1, rows)."""
    return jnp.concatenate([z, jnp.ones_like(z[:1])])


def _pairs(n_features: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of (z, 1) that the products are of; the last is 1 · 1."""
    return np.triu_indices(n_features + 1)


def _products(z: Array) -> tuple[Array, ...]:
    first, second = _pairs(z.shape[1])
    augmented = with_one(z.T)
    if not budget().gathers_features:
        by_first = [augmented[i : i + 1] * augmented[i:] for i in range(augmented.shape[0])]
        return (jnp.concatenate(by_first).T,)
    n_blocks = min(BLOCKS, -(-first.size // (budget().features_in_block or first.size)))
    blocks = zip(np.array_split(first, n_blocks), np.array_split(second, n_blocks), strict=True)
    return tuple((augmented[i] * augmented[j]).T for i, j in blocks)


def _logits_in_products(precisions: Array, slopes: Array, constants: Array) -> LogitCoefficients:
    quadratic = jnp.concatenate([-precisions, slopes[:, :, None]], axis=2)
    first, second = (of_pairs[:-1] for of_pairs in _pairs(slopes.shape[1]))
    # Off the diagonal each product stands for two.
    half = np.where(first == second, 0.5, 1.0).astype(slopes.dtype)
    # An infinity may become NaN where matrix products split numbers into shorter ones.
    finite = at_least(constants, float(jnp.finfo(constants.dtype).min) / 4)
    columns = [quadratic[:, first, second] * half[None], finite[:, None]]
    return LogitCoefficients(jnp.concatenate(columns, axis=1), None)


def _sum_of_products(values: tuple[Array, ...], responsibilities: Array) -> tuple[Array, ...]:
    return tuple(einsum("nf,kn->fk", block, responsibilities) for block in values)


def _moments_of_products(sums: tuple[Array, ...]) -> tuple[Array, ...]:
    of_pairs = jnp.concatenate(sums)
    n_features = int((2 * of_pairs.shape[0]) ** 0.5) - 1
    pairs = _pairs(n_features)
    place = np.zeros((n_features + 1, n_features + 1), int)
    place[pairs] = np.arange(of_pairs.shape[0])
    moments = jnp.moveaxis(of_pairs[np.maximum(place, place.T)], -1, 0)
    return moments[:, -1, -1], moments[:, :-1, -1], moments[:, :-1, :-1]


def _packed_products(count: Array, first: Array, second: Array) -> Array:
    below = jnp.concatenate([first, count[:, None]], axis=1)[:, None, :]
    beside = jnp.concatenate([second, first[:, :, None]], axis=2)
    of_pairs = jnp.concatenate([beside, below], axis=1)
    first_of_pairs, second_of_pairs = _pairs(first.shape[1])
    return of_pairs[:, first_of_pairs, second_of_pairs]


def _put_in_products(sums: tuple[Array, ...], chosen: Array, packed: Array) -> tuple[Array, ...]:
    ends = np.cumsum([block.shape[0] for block in sums])
    parts = jnp.split(packed.T, ends[:-1])
    return tuple(jnp.where(chosen[None], *pair) for pair in zip(parts, sums, strict=True))


def _squares(z: Array) -> tuple[Array, ...]:
    """z² and z: in one block with features first where there are few of them, else in two.

    XLA's CPU backend joins arrays slowly, and multiplies few of them by a choice fast.
    """
    n_rows, n_features = z.shape
    if n_features >= IN_TWO_FROM:
        return z * z, z
    squared = np.array([True, False])[:, None, None]
    return ((z.T[None] * jnp.where(squared, z.T[None], 1)).reshape(-1, n_rows).T,)


def _logits_in_squares(precisions: Array, slopes: Array, constants: Array) -> LogitCoefficients:
    return LogitCoefficients(jnp.concatenate([-precisions / 2, slopes], axis=1), constants)


def _counts_and_sums(values: tuple[Array, ...], responsibilities: Array) -> tuple[Array, ...]:
    count = einsum("kn,n->k", responsibilities, jnp.ones_like(responsibilities[0]))
    sums = [einsum("kn,nf->kf", responsibilities, block) for block in values]
    return count, jnp.concatenate(sums, axis=1)


def _moments_of_squares(sums: tuple[Array, ...]) -> tuple[Array, ...]:
    count, of_features = sums
    second, first = jnp.split(of_features, 2, axis=1)
    return count, first, second


def _packed_squares(count: Array, first: Array, second: Array) -> Array:
    return jnp.concatenate([count[:, None], second, first], axis=1)


def _put_in_squares(sums: tuple[Array, ...], chosen: Array, packed: Array) -> tuple[Array, ...]:
    count, of_features = sums
    return (
        jnp.where(chosen, packed[:, 0], count),
        jnp.where(chosen[:, None], packed[:, 1:], of_features),
    )


PRODUCTS = Features(
    count=lambda d: (d + 1) * (d + 2) // 2,
    of=_products,
    coefficients=_logits_in_products,
    sum=_sum_of_products,
    moments=_moments_of_products,
    packed=_packed_products,
    put=_put_in_products,
)

SQUARES = Features(
    count=lambda d: 2 * d,
    of=_squares,
    coefficients=_logits_in_squares,
    sum=_counts_and_sums,
    moments=_moments_of_squares,
    packed=_packed_squares,
    put=_put_in_squares,
)

LINEAR = Features(
    count=lambda d: d,
    of=lambda z: (z,),
    coefficients=lambda precisions, slopes, constants: LogitCoefficients(slopes, constants),
    sum=_counts_and_sums,
    moments=lambda sums: sums,
    packed=lambda count, first, second: jnp.concatenate([count[:, None], first], axis=1),
    put=_put_in_squares,
)


def features_for(mixture: GaussianMixture, full_second_moment: bool) -> Features:
    """The smallest basis that holds the log densities and the second moments that are wanted."""
    needs_products = full_second_moment or not is_diagonal(mixture.covariance)
    return PRODUCTS if needs_products else SQUARES
