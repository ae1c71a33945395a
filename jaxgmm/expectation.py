"""The pass over the data: densities and sufficient statistics of all rows, a chunk at a time."""

from collections.abc import Callable
from dataclasses import replace

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays.chunks import one_of_sums, rows_of_features
from jaxgmm.arrays.numerics import (
    FEW,
    einsum,
    largest_in_batch,
    logsumexp,
    shifted_exponentials,
    varying,
    weighted_sum,
)
from jaxgmm.covariances.storage import pick
from jaxgmm.frame import Rows, chunk_of
from jaxgmm.mixtures.densities import log_density
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.quadratic import (
    PRODUCTS,
    SQUARES,
    Apart,
    Reach,
    expect_by_products,
    is_accurate,
    with_one,
)
from jaxgmm.statistics import SufficientStatistics

# From so many components on, products go on for the others where they lose at most one in so many.
# That is one more pass to compile, a seventh of what `em` takes; with fewer components it saves
# less of a step, and one of them is seldom tight.
APART_FROM, SHARE_APART = 8, 4


def expect(
    rows: Rows,
    mixture: GaussianMixture,
    log_prior: Array | None,
    full_second_moment: bool,
    reach: Reach | None = None,
    smallest_gain: ArrayLike = jnp.inf,
) -> SufficientStatistics:
    """The E-step: statistics of the rows under the responsibilities of a mixture.

    Args:
        rows: the data; mixture and statistics are in their frame, the log-likelihood is of x.
        mixture: K components, whose weights needn't sum to 1.
        log_prior: (N, K) added to the logits, or None.
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
        reach: of the rows, for matrix products where they are accurate, of all components or of all
            but a few; None for never.
        smallest_gain: () that must not drown in their noise, see `is_accurate`.

    Returns:
        Statistics about any origin. With a `reach.square`, the second moments are the sum of those
        of all components, each about its own origin: (1, D, D) or (1, D).
    """
    if reach is None:
        return expect_by_differences(rows, mixture, log_prior, full_second_moment)
    square = reach.square

    def by_products(wanted: Array | None) -> SufficientStatistics:
        return expect_by_products(rows, mixture, log_prior, full_second_moment, square, wanted)

    def by_differences(wanted: Array | None) -> SufficientStatistics:
        found = expect_by_differences(rows, mixture, log_prior, full_second_moment, wanted)
        if square is None:
            return found
        return replace(found, second=jnp.sum(found.second, axis=0, keepdims=True))

    def by_both(wanted: Array | None) -> SufficientStatistics:
        apart = by_differences_apart(mixture, full_second_moment, inaccurate, most)
        return expect_by_products(rows, mixture, log_prior, full_second_moment, None, wanted, apart)

    inaccurate = ~is_accurate(mixture, reach.radius, smallest_gain)
    n_inaccurate = largest_in_batch(jnp.sum(inaccurate))
    most = most_apart(mixture.n_components) if square is None else 0
    if not most:
        return one_of_sums((n_inaccurate > 0).astype(int), [by_products, by_differences])
    number = (n_inaccurate > 0).astype(int) + (n_inaccurate > most).astype(int)
    return one_of_sums(number, [by_products, by_both, by_differences])


def most_apart(n_components: int) -> int:
    """How many components the products may leave to differences, before these take all."""
    return n_components // SHARE_APART if n_components >= APART_FROM else 0


def by_differences_apart(
    mixture: GaussianMixture, full_second_moment: bool, inaccurate: Array, most: int
) -> Apart:
    """The components that products lose, one after the other by differences.

    So only as many cost what differences do as have to. In a batch as many as any of its mixtures
    has, and the first of the others where one has fewer.

    Args:
        mixture: K components.
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
        inaccurate: (K,) bool, which of them products lose.
        most: M, no fewer than these.
    """
    n_components, n_features = mixture.means.shape
    numbers = jnp.argsort(~inaccurate)[:most]
    count = largest_in_batch(jnp.sum(inaccurate))
    square = (most, n_features, n_features) if full_second_moment else (most, n_features)
    shapes = ((most,), (most, n_features), square)

    def component(i: Array) -> GaussianMixture:
        number = lax.dynamic_slice_in_dim(numbers, i, 1)
        covariance = pick(mixture.covariance, number)
        return GaussianMixture(mixture.log_weights[number], mixture.means[number], covariance)

    def logits(of_all: Array, z: Array) -> Array:
        def put(i: Array, of_all: Array) -> Array:
            one = component(i)
            own = log_density(one.covariance, one.means, z) + one.log_weights[:, None]
            return lax.dynamic_update_slice_in_dim(of_all, own, numbers[i], axis=0)

        return lax.fori_loop(0, count, put, varying(of_all, z, mixture))

    def moments(z: Array, responsibilities: Array) -> tuple[Array, ...]:
        def put(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            own = lax.dynamic_slice_in_dim(responsibilities, numbers[i], 1)
            found = sum_moments(z, own, component(i).means, full_second_moment)
            return tuple(
                lax.dynamic_update_slice_in_dim(of_all, of_one, i, axis=0)
                for of_all, of_one in zip(sums, found, strict=True)
            )

        nothing = tuple(jnp.zeros(shape, z.dtype) for shape in shapes)
        return lax.fori_loop(0, count, put, varying(nothing, z, responsibilities, mixture))

    def statistics(found: SufficientStatistics, sums: tuple[Array, ...]) -> SufficientStatistics:
        places = jnp.where(jnp.arange(most) < count, numbers, n_components)
        of_apart = dict(zip(("count", "first", "second"), sums, strict=True))
        of_apart["origin"] = mixture.means[numbers]
        put = {
            name: getattr(found, name).at[places].set(value, mode="drop")
            for name, value in of_apart.items()
        }
        return replace(found, **put)

    return Apart(logits, moments, statistics)


def expect_by_differences(
    rows: Rows,
    mixture: GaussianMixture,
    log_prior: Array | None,
    full_second_moment: bool,
    wanted: Array | None = None,
) -> SufficientStatistics:
    """The E-step by whitened differences, accurate wherever it is: statistics about the means.

    See `expect`; `wanted` is for `sum_over_chunks`.
    """

    def summand(
        numbers: Array, weights: Array, z: Array
    ) -> tuple[Array, tuple[Array, Array, Array]]:
        logits = log_density(mixture.covariance, mixture.means, z) + mixture.log_weights[:, None]
        if log_prior is not None:
            logits += chunk_of(log_prior, numbers, weights).T
        terms, total, top = shifted_exponentials(logits, axis=0)
        moments = sum_moments(z, terms * (weights[None] / total), mixture.means, full_second_moment)
        return weighted_sum(weights, (jnp.log(total) + top)[0]), moments

    size = rows.chunk_rows(mixture.means.size)
    log_likelihood, (count, first, second) = rows.sum(summand, size, wanted)
    volume = jnp.sum(count) * rows.frame.log_volume()
    return SufficientStatistics(log_likelihood - volume, count, first, second, mixture.means)


def collect(
    rows: Rows,
    responsibilities: Callable[[Array, Array], Array],
    origin: Array,
    full_second_moment: bool,
) -> SufficientStatistics:
    """Statistics of the rows under responsibilities from elsewhere; the log-likelihood is 0.

    Args:
        rows: the data; origin and statistics are in their frame.
        responsibilities: called with the numbers of some rows: (rows,) int, and with the rows
            themselves in the frame: (rows, D). Returns (rows, K).
        origin: (K, D).
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
    """

    def summand(numbers: Array, weights: Array, z: Array) -> tuple[Array, Array, Array]:
        weights = weights[:, None]
        weighted = jnp.where(weights != 0, weights * responsibilities(numbers, z), 0)
        return sum_moments(z, weighted.T, origin, full_second_moment)

    count, first, second = rows.sum(summand, rows.chunk_rows(origin.size))
    return SufficientStatistics(jnp.zeros_like(count[0]), count, first, second, origin)


def collect_partition(
    rows: Rows,
    partition: Callable[[Array, Array], Array],
    origin: Array,
    full_second_moment: bool,
) -> SufficientStatistics:
    """`collect` for responsibilities that are 0 or 1: each row has one difference, from its own.

    Args:
        rows: the data; origin and statistics are in their frame.
        partition: called as by `collect`, returns one-hot rows.
        origin: (K, D).
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
    """
    features = PRODUCTS if full_second_moment else SQUARES

    def summand(numbers: Array, weights: Array, z: Array) -> tuple[Array, ...]:
        own = partition(numbers, z).T
        difference = z.T - einsum("kd,kn->dn", origin, own)
        return features.sum(features.of(difference.T), weights[None] * own)

    size = rows_of_features(rows.x, features.count(rows.x.shape[1]), origin.shape[0])
    count, first, second = features.moments(rows.sum(summand, size))
    return SufficientStatistics(jnp.zeros_like(count[0]), count, first, second, origin)


def total_log_prob(rows: Rows, mixture: GaussianMixture, *log_weights: Array) -> tuple[Array, ...]:
    """Σ w_n log p(x_n) of x, for each of several sets of mixing weights.

    Args:
        rows: the data.
        mixture: K components in the frame of the rows.
        log_weights: each (K,), in place of the mixture's own.

    Returns:
        () for each of them.
    """

    def summand(_: Array, weights: Array, z: Array) -> Array:
        of_components = log_density(mixture.covariance, mixture.means, z)
        log_probs = [logsumexp(of_components + given[:, None], axis=0) for given in log_weights]
        values = jnp.stack([jnp.ones_like(weights), *log_probs])
        return einsum("n,fn->f", weights, jnp.where(weights[None] != 0, values, 0))

    count, *totals = rows.sum(summand, rows.chunk_rows(mixture.means.size))
    return tuple(total - count * rows.frame.log_volume() for total in totals)


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
