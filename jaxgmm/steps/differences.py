"""The E-step by whitened differences, which never lose a digit."""

import math
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
    made_once,
    shifted_exponentials,
    varying,
    weighted_sum,
)
from jaxgmm.covariances.storage import pick, precision_diagonal
from jaxgmm.mixtures.densities import log_density, log_normalizer, standardized
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.features import PRODUCTS, SQUARES, Features, features_for, with_one
from jaxgmm.steps.forms import Forms, weighted_squares
from jaxgmm.steps.products import Apart
from jaxgmm.steps.rows import Rows
from jaxgmm.steps.statistics import SufficientStatistics

T = TypeVar("T")

# The smallest normal number of float32.
TINY = float(np.finfo(np.float32).tiny)


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
    has. On a CPU one that has collapsed costs hardly anything, unless there is a prior: of rows
    whose share in it is zero in every digit, what products say is good enough.

    Args:
        mixture: K components.
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
        forms: of which components products lose what.
        origin: (K, D) of their moments, by default the means.
        prior: whether something else, too, decides which component a row belongs to.
    """
    origin = mixture.means if origin is None else origin
    features = features_for(mixture, full_second_moment)
    about = jnp.where(forms.moments_apart[:, None], origin, forms.origin[None])
    return Apart(
        logits=partial(_logits_apart, mixture, forms, features, prior),
        sums=partial(_sums_apart, mixture, forms, features, origin),
        origin=about,
    )


def _picks_rows(features: Features, z: Array) -> bool:
    """Whether it is worth looking which rows of a chunk matter to a component."""
    n_products = z.size * (z.shape[1] if features is PRODUCTS else 1)
    return n_products >= budget().fewest_picked


def _logits_apart(
    mixture: GaussianMixture,
    forms: Forms,
    features: Features,
    prior: bool,
    of_all: Array,
    z: Array,
) -> Array:
    """`Apart.logits`."""
    constants = mixture.log_weights - log_normalizer(mixture.covariance, mixture.n_features)
    # Features first, once and not anew for each component.
    columns = lax.optimization_barrier(z.T)
    excess = None
    if not prior and _picks_rows(features, z):
        excess = excess_over_nothing(mixture, forms, features, of_all, z)

    def of_one(number: Array, rows: Array | None) -> Array:
        own = columns.T if rows is None else z[rows]
        whitened = standardized(pick(mixture.covariance, number), mixture.means[number], own)
        found = constants[number][:, None] - einsum("kin,kin->kn", whitened, whitened) / 2
        if rows is None:
            return found
        return of_component(of_all, number).at[:, rows].set(found, unique_indices=True)

    products = varying(of_all, z, mixture, as_rows=True)
    return _with_each(forms.logits_apart, excess, of_one, products)


def _sums_apart(
    mixture: GaussianMixture,
    forms: Forms,
    features: Features,
    origin: Array,
    of_all: tuple[Array, ...],
    z: Array,
    responsibilities: Array,
) -> tuple[Array, ...]:
    """`Apart.sums`."""
    # Features first, with a one, whose origin is 0.
    columns = lax.optimization_barrier(with_one(z.T))
    origins = jnp.pad(origin, ((0, 0), (0, 1)))
    share = partial(of_component, responsibilities)

    def of_one(number: Array, rows: Array | None) -> tuple[Array, ...]:
        own = share(number) if rows is None else share(number)[:, rows]
        if z.shape[1] <= FEW:
            own_z = z if rows is None else z[rows]
            return sum_moments(own_z, own, of_component(origin, number), features is PRODUCTS)
        own_columns = columns if rows is None else with_one(z[rows].T)
        difference = own_columns - of_component(origins, number).T
        return _moments_of_one(difference, own, features is PRODUCTS)

    # On their own, so that a CPU does both at a time.
    shapes = jax.eval_shape(lambda number: of_one(number, None), jnp.zeros(1, int))
    nothing = tuple(jnp.zeros((mixture.n_components, *own.shape[1:]), z.dtype) for own in shapes)
    nothing = varying(nothing, z, responsibilities, mixture, as_rows=True)
    excess = share if _picks_rows(features, z) else None
    found = _with_each(forms.moments_apart, excess, of_one, nothing)
    return features.put(of_all, forms.moments_apart, features.packed(*found))


def of_component(array: Array, number: Array) -> Array:
    """The part (1, ...) of an array (K, ...) that belongs to the component with a number (1,)."""
    return lax.dynamic_slice_in_dim(array, number[0], 1)


def excess_over_nothing(
    mixture: GaussianMixture, forms: Forms, features: Features, logits: Array, z: Array
) -> Callable[[Array], Array]:
    """The distance of logits from where a share in a component is zero, constant to derivatives.

    It is more than zero where the exponential, relative to the largest of the components that
    products don't lose, is more than zero if products have lost as much as they may. A sum of n
    terms is off by about √n eps times their sizes; twice that is allowed for. The largest are
    P_ii x_i², and off the diagonal of P |P_ij x_i x_j| is at most (P_ii x_i² + P_jj x_j²) / 2, D
    times in all.

    Args:
        mixture: K components.
        forms: of which components products lose what.
        features: whose products they are.
        logits: (K, rows), by products.
        z: (rows, D).

    Returns:
        A function of the number (1,) of a component: (1, rows).
    """
    mixture, logits, z = lax.stop_gradient((mixture, logits, z))
    dtype, n_features = jnp.finfo(z.dtype), mixture.n_features
    n_terms = features.count(n_features)
    n_times = 2 * math.sqrt(n_terms) * (n_features if features is PRODUCTS else 1)
    steepness = jnp.max(precision_diagonal(mixture.covariance, n_features), axis=1)
    of_means = weighted_squares(mixture, mixture.means - forms.origin[None])
    steepness = jnp.broadcast_to(steepness, of_means.shape)
    squares = jnp.sum((z - forms.origin[None]) ** 2, axis=1)[None]
    most = jnp.max(jnp.where(forms.logits_apart[:, None], -jnp.inf, logits), axis=0)[None]
    # The logarithm of the smallest number there is.
    nothing = most + float(np.log(dtype.tiny) + np.log(dtype.eps))

    def excess(number: Array) -> Array:
        terms = of_component(steepness, number)[:, None] * squares
        terms += of_component(of_means, number)[:, None]
        lost = n_times * float(dtype.eps) * terms
        return of_component(logits, number) + lost - nothing

    return excess


def _with_each(
    chosen: Array,
    excess: Callable[[Array], Array] | None,
    of_one: Callable[..., T],
    of_all: T,
) -> T:
    """Arrays (K, ...) with those of the chosen components in their places.

    Args:
        chosen: (K,) bool.
        excess: from the number (1,) of a component: (1, rows), more than 0, or NaN, of rows that
            matter to it. Where none does, what there is of it stays. None for all rows of all.
        of_one: from the number, and those of different rows or None for all: (1, ...). Rows that
            don't matter make no difference.
        of_all: (K, ...).
    """
    of_all_rows = partial(of_one, rows=None)
    if excess is None:
        return _for_each(chosen, of_all_rows, of_all)
    n_rows = jax.eval_shape(excess, jnp.zeros(1, int)).size
    few = max(1, n_rows // budget().sparseness)

    def count(number: Array) -> Array:
        return jnp.sum(~(excess(number) <= 0), axis=1)

    def of_few_rows(number: Array) -> T:
        found = excess(number)[0]
        # In float32, as for others a CPU has no fast way to find the largest.
        size = jnp.clip(jnp.where(jnp.isnan(found), jnp.inf, found), TINY, 1 / TINY)
        size = jnp.where(found <= 0, 0, size).astype(jnp.float32)
        return of_one(number, lax.top_k(size, few)[1])

    counts = _for_each(chosen, count, varying(jnp.zeros(chosen.size, int), of_all, as_rows=True))
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
            own = jnp.where(i < n_chosen, own, of_component(array, number))
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
    """The E-step by whitened differences, accurate everywhere: this device's statistics.

    See `expected_statistics`; `wanted` is for `sum_over_chunks`. Statistics are about the origin
    (K, D), by default the means.
    """
    origin = mixture.means if origin is None else origin

    def summand(
        numbers: Array, weights: Array, z: Array
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        z = made_once(z)
        logits = log_density(mixture.covariance, mixture.means, z) + mixture.log_weights[:, None]
        logits, most = rows.with_prior(logits, numbers, weights)
        terms, total, top = shifted_exponentials(logits, axis=0)
        moments = sum_moments(z, terms * (weights[None] / total), origin, full_second_moment)
        log_prob = (jnp.log(total) + top)[0]
        return weighted_sum(weights, log_prob if most is None else log_prob + most), moments

    size = rows.chunk_rows(mixture.means.size)
    log_likelihood, (count, first, second) = rows.own_sum(summand, size, wanted)
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
