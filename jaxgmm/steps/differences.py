"""The E-step by whitened differences, which never lose a digit."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.numerics import (
    FEW,
    einsum,
    largest_in_batch,
    shifted_exponentials,
    varying,
    weighted_sum,
)
from jaxgmm.covariances.storage import pick, precision_diagonal
from jaxgmm.mixtures.densities import log_density, log_normalizer, standardized
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.features import PRODUCTS, SQUARES, features_for, with_one
from jaxgmm.steps.forms import Forms, weighted_squares
from jaxgmm.steps.products import Apart
from jaxgmm.steps.rows import Rows
from jaxgmm.steps.statistics import SufficientStatistics

T = TypeVar("T")

# So many for each feature, at most, that a term of a logit by products has.
ROUNDINGS = 4


def by_differences_apart(
    mixture: GaussianMixture,
    full_second_moment: bool,
    forms: Forms,
    origin: Array | None = None,
    *,
    prior: bool = False,
) -> Apart:
    """The components that products lose, one after the other by differences.

    So only as many cost what differences do as have to, in a batch as many as any of its mixtures
    has; and one that has collapsed costs hardly anything, as in no digit any but a few rows are its
    own.

    Args:
        mixture: K components.
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
        forms: of which components products lose what.
        origin: (K, D) of their moments, by default the means.
        prior: whether something else, too, decides which component a row belongs to.
    """
    origin = mixture.means if origin is None else origin
    constants = mixture.log_weights - log_normalizer(mixture.covariance, mixture.n_features)
    features = features_for(mixture, full_second_moment)

    def logits(of_all: Array, z: Array) -> Array:
        # Features first, once and not anew for each component.
        columns = lax.optimization_barrier(z.T)
        may_have = None if prior else may_have_rows(mixture, forms, of_all, z)

        def of_one(number: Array, rows: Array | None) -> Array:
            own = columns.T if rows is None else z[rows]
            whitened = standardized(pick(mixture.covariance, number), mixture.means[number], own)
            found = constants[number][:, None] - einsum("kin,kin->kn", whitened, whitened) / 2
            return found if rows is None else row_of(of_all, number).at[:, rows].set(found)

        return _with_each(forms.logits_apart, may_have, of_one, varying(of_all, z, mixture))

    def sums(
        of_all: tuple[Array, ...], z: Array, responsibilities: Array, terms: Array
    ) -> tuple[Array, ...]:
        # Likewise with a one, whose origin is 0.
        columns = lax.optimization_barrier(with_one(z.T))
        origins = jnp.pad(origin, ((0, 0), (0, 1)))

        def has(number: Array) -> Array:
            return row_of(terms, number)[0] != 0

        def of_one(number: Array, rows: Array | None) -> tuple[Array, ...]:
            own = row_of(responsibilities, number)
            own = own if rows is None else own[:, rows]
            if z.shape[1] <= FEW:
                own_z = z if rows is None else z[rows]
                return sum_moments(own_z, own, row_of(origin, number), features is PRODUCTS)
            own_columns = columns if rows is None else with_one(z[rows].T)
            difference = own_columns - row_of(origins, number).T
            return _moments_of_one(difference, own, features is PRODUCTS)

        # On their own, so that a CPU does both at a time.
        n_components = mixture.n_components
        shapes = jax.eval_shape(lambda number: of_one(number, None), jnp.zeros(1, int))
        nothing = tuple(jnp.zeros((n_components, *own.shape[1:]), z.dtype) for own in shapes)
        nothing = varying(nothing, z, responsibilities, mixture)
        found = _with_each(forms.moments_apart, has, of_one, nothing)
        return features.put(of_all, forms.moments_apart, features.packed(*found))

    about = jnp.where(forms.moments_apart[:, None], origin, forms.origin[None])
    return Apart(logits, sums, about)


def row_of(array: Array, number: Array) -> Array:
    """The part (1, ...) of an array (K, ...) that belongs to the component with a number (1,)."""
    return lax.dynamic_slice_in_dim(array, number[0], 1)


def may_have_rows(
    mixture: GaussianMixture, forms: Forms, logits: Array, z: Array
) -> Callable[[Array], Array]:
    """Which rows may have a share in a component that is anything but zero.

    Those whose logit, with all that products may have lost of it, is so near the largest of the
    components that products don't lose that its exponential isn't zero. A sum of D² products is off
    by eps times their sizes for as many roundings as it may have, where |P_ij x_i x_j| is at most
    (P_ii x_i² + P_jj x_j²) / 2.

    Args:
        mixture: K components.
        forms: of which components products lose what.
        logits: (K, rows), by products.
        z: (rows, D).

    Returns:
        A function of the number (1,) of a component: (rows,) bool.
    """
    dtype = jnp.finfo(z.dtype)
    slack = float(ROUNDINGS * mixture.n_features * dtype.eps)
    steepness = jnp.max(precision_diagonal(mixture.covariance, mixture.n_features), axis=1)
    of_means = weighted_squares(mixture, mixture.means - forms.origin[None])
    squares = jnp.sum((z - forms.origin[None]) ** 2, axis=1)
    most = jnp.max(jnp.where(forms.logits_apart[:, None], -jnp.inf, logits), axis=0)
    negligible = most + float(np.log(dtype.smallest_subnormal)) - 1

    def may_have(number: Array) -> Array:
        lost = slack * (row_of(steepness, number) * squares + row_of(of_means, number))
        return ~(row_of(logits, number)[0] + lost < negligible)

    return may_have


def _with_each(
    chosen: Array,
    has_rows: Callable[[Array], Array] | None,
    of_one: Callable[..., T],
    of_all: T,
) -> T:
    """Arrays (K, ...) with those of the chosen components in their places.

    Args:
        chosen: (K,) bool.
        has_rows: from the number (1,) of a component: (rows,) bool, those that matter to it. Where
            none does, what there is of it stays. None for all rows of all components.
        of_one: from the number, and those of rows or None for all: (1, ...).
        of_all: (K, ...).
    """
    of_all_rows = partial(of_one, rows=None)
    sparseness = budget().sparseness
    if has_rows is None or sparseness is None:
        return _for_each(chosen, of_all_rows, of_all)
    n_rows = jax.eval_shape(has_rows, jnp.zeros(1, int)).size
    few = max(1, n_rows // sparseness)

    def of_few_rows(number: Array) -> T:
        return of_one(number, lax.top_k(has_rows(number).astype(jnp.float32), few)[1])

    def count(number: Array) -> Array:
        return jnp.sum(has_rows(number).astype(int), keepdims=True)

    counts = _for_each(chosen, count, varying(jnp.zeros(chosen.size, int), of_all))
    # Loops of their own, as XLA splits no work inside of a branch among cores.
    of_all = _for_each((counts > 0) & (counts <= few), of_few_rows, of_all)
    return _for_each(counts > few, of_all_rows, of_all)


def _for_each(chosen: Array, of_one: Callable[[Array], T], of_all: T) -> T:
    """`_with_each`, from the number (1,) of a component alone."""
    numbers, n_chosen = jnp.argsort(~chosen), jnp.sum(chosen)

    def put(i: Array, of_all: T) -> T:
        number = lax.dynamic_slice_in_dim(numbers, i, 1)

        def put_in(array: Array, own: Array) -> Array:
            # In a batch there are as many turns as any of its members needs.
            own = jnp.where(i < n_chosen, own, row_of(array, number))
            return lax.dynamic_update_slice_in_dim(array, own, number[0], axis=0)

        return jax.tree.map(put_in, of_all, of_one(number))

    return lax.fori_loop(0, largest_in_batch(n_chosen), put, of_all)


def _moments_of_one(
    difference: Array, responsibilities: Array, full_second_moment: bool
) -> tuple[Array, Array, Array]:
    """`sum_moments` of a single component, from differences and a one: (D + 1, rows)."""
    weighted = responsibilities * difference
    if full_second_moment:
        moments = einsum("in,jn->ij", weighted, difference)[None]
        return moments[:, -1, -1], moments[:, :-1, -1], moments[:, :-1, :-1]
    sums = einsum("in,n->i", weighted, jnp.ones_like(responsibilities[0]))[None]
    squares = einsum("in,in->i", weighted, difference)[None]
    return sums[:, -1], sums[:, :-1], squares[:, :-1]


def statistics_by_differences(
    rows: Rows,
    mixture: GaussianMixture,
    full_second_moment: bool,
    wanted: Array | None = None,
    origin: Array | None = None,
) -> SufficientStatistics:
    """The E-step by whitened differences, accurate everywhere.

    See `expected_statistics`; `wanted` is for `sum_over_chunks`. Statistics are about the origin
    (K, D), by default the means.
    """
    origin = mixture.means if origin is None else origin

    def summand(
        numbers: Array, weights: Array, z: Array
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        logits = log_density(mixture.covariance, mixture.means, z) + mixture.log_weights[:, None]
        logits, most = rows.with_prior(logits, numbers, weights)
        terms, total, top = shifted_exponentials(logits, axis=0)
        moments = sum_moments(z, terms * (weights[None] / total), origin, full_second_moment)
        log_prob = (jnp.log(total) + top)[0]
        return weighted_sum(weights, log_prob if most is None else log_prob + most), moments

    size = rows.chunk_rows(mixture.means.size)
    log_likelihood, (count, first, second) = rows.sum(summand, size, wanted)
    volume = jnp.sum(count) * rows.standardization.log_volume()
    return SufficientStatistics(log_likelihood - volume, count, first, second, origin)


def sum_moments(
    z: Array, responsibilities: Array, origin: Array, full_second_moment: bool
) -> tuple[Array, Array, Array]:
    """Count, first and second moments about the origin.

    Args:
        z: (N, D).
        responsibilities: (K, N), times the rows' weights.
        origin: (K, D).
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.

    Returns:
        (K,), (K, D), and (K, D, D) or (K, D).
    """
    if z.shape[1] <= FEW:
        return _sum_few_moments(z, responsibilities, origin, full_second_moment)
    difference = z[:, None, :] - origin[None]
    weighted = responsibilities.T[:, :, None] * difference
    square = "nki,nkj->kij" if full_second_moment else "nki,nki->ki"
    return (
        jnp.sum(responsibilities, axis=1),
        jnp.sum(weighted, axis=0),
        einsum(square, weighted, difference),
    )


def _sum_few_moments(
    z: Array, responsibilities: Array, origin: Array, full_second_moment: bool
) -> tuple[Array, Array, Array]:
    """`sum_moments` by products with ones, which on a CPU are many times faster than sums.

    The features are written out, because those that are gathered XLA keeps apart from their
    product with the responsibilities.
    """
    n_features = z.shape[1]
    difference = with_one(z.T[:, None, :] - origin.T[:, :, None])
    if full_second_moment:
        pairs = [(i, j) for i in range(n_features + 1) for j in range(i, n_features + 1)]
    else:
        squares = [(i, i) for i in range(n_features)]
        pairs = [*squares, *((i, n_features) for i in range(n_features + 1))]
    # In this order, so that what first moments lose the second lose too, and it cancels.
    values = [(responsibilities * difference[i]) * difference[j] for i, j in pairs]
    ones = jnp.ones_like(z[:, 0])
    sums = jnp.stack([einsum("kn,n->k", value, ones) for value in values])
    if full_second_moment:
        count, first, second = PRODUCTS.moments((sums,))
    else:
        count, first, second = SQUARES.moments((sums[-1], sums[:-1].T))
    return count, first, second
