"""k-means in standardized coordinates: greedy k-means++ seeds, and Lloyd's iterations from them."""

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays import shards
from jaxgmm.arrays.budgets import budget, by_platform
from jaxgmm.arrays.numerics import all_in_batch, contract, einsum, varying
from jaxgmm.steps.rows import Rows

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2

# Passes in which clusters are split for those that are too small, after k-means itself has ended.
SPLITTINGS = 10

# Of the deviation in all rows. A feature of few different values may have none within clusters.
SMALLEST_DEVIATION = 1e-3


def squared_distances(z: Array, centers: Array) -> Array:
    """|z_n - c_k|²: (N, D), (K, D) -> (K, N).

    XLA's CPU backend makes fast loops of vectors of rows, and slow ones of sums over many features.
    """
    columns = z.T

    def add_feature(number: Array, sums: Array) -> Array:
        return sums + (columns[number][None] - centers[:, number][:, None]) ** 2

    def distances() -> Array:
        if budget().feature_by_feature:
            nothing = varying(jnp.zeros_like(centers, shape=(len(centers), len(z))), z, centers)
            return lax.fori_loop(0, z.shape[1], add_feature, nothing)
        return jnp.sum((columns[None] - centers[:, :, None]) ** 2, axis=1)

    return by_platform(distances)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nearest:
    """The partition of rows by their nearest center, the lowest of equals.

    Attributes:
        centers: (K, D) in standardized coordinates; those at infinity are nearest to nothing.
        precision: (D,) what squared differences of each feature count for in the distance.
    """

    centers: Array
    precision: Array

    def __call__(self, _: Array, z: Array) -> Array:
        """One-hot, of the rows' numbers and the rows: (rows, D) -> (rows, K)."""
        number = jnp.arange(self.centers.shape[0])
        return (self.labels(z)[None] == number[:, None]).astype(z.dtype).T

    def labels(self, z: Array) -> Array:
        """The numbers of the nearest centers: (rows, D) -> (rows,) int."""
        weighted = self.precision[None] * self.reachable()
        half = jnp.sum(self.precision[None] * self.centers**2, axis=1) / 2
        distance = half[:, None] - contract("kd,nd->kn", weighted, z)
        nearest = distance == jnp.min(distance, axis=0, keepdims=True)
        number = jnp.arange(self.centers.shape[0])
        return jnp.min(jnp.where(nearest, number[:, None], number.size), axis=0)

    def reachable(self) -> Array:
        """(K, D) centers, those at infinity replaced by zeros."""
        return jnp.where(jnp.isfinite(self.centers), self.centers, 0)


def running_count(present: Array) -> Array:
    """The number of rows present up to each one, itself included: (N,) bool -> (N,) int."""

    def add_before(level: Array, count: Array) -> Array:
        # Made in each turn, as an array of their own places would be kept beside the weights.
        place = jnp.arange(present.size)
        distance = 1 << level
        return count + jnp.where(place >= distance, jnp.roll(count, distance), 0)

    n_levels = (present.size - 1).bit_length()
    return lax.fori_loop(0, n_levels, add_before, present.astype(jnp.arange(0).dtype))


def subsample(rows: Rows, size: int) -> Rows:
    """At most so many rows, evenly spread: all of them where there aren't more.

    Rows of weight 0 are never among them, so that they change nothing. The rows come from strata of
    equal size, from places that follow multiples of the golden ratio, which meet no period of
    the data. Where rows are spread over devices, each of these has the whole sample.

    Args:
        rows: the data.
        size: number of rows; behind the rows there are, rows of weight 0 fill up.
    """
    standardization, x, weights = rows.standardization, rows.x, rows.weights
    if isinstance(x.shape[0], int) and x.shape[0] <= size and not shards.row_axes():
        return rows
    present, own = rows.n_present(), jnp.sum(weights > 0)
    place = jnp.arange(size)
    within = (place.astype(x.dtype) * GOLDEN_RATIO) % 1
    stratum = (place.astype(x.dtype) + within) * (present.astype(x.dtype) / size)
    rank = jnp.where(present > size, stratum.astype(place.dtype), place)
    last = jnp.minimum(rank, present - 1) - shards.before(own).astype(rank.dtype)
    is_own = (last >= 0) & (last < own)
    last = jnp.clip(last, 0, jnp.maximum(own - 1, 0))

    def by_rank() -> Array:
        if isinstance(x.shape[0], int):
            drawn = jnp.searchsorted(running_count(weights > 0), last, side="right")
        else:
            # The symbol of an export has no number of bits, which a search goes through.
            drawn = jnp.argsort(weights <= 0, stable=True)[last]
        return drawn.astype(last.dtype)

    # Where all rows are present their ranks are their numbers.
    drawn = lax.cond(all_in_batch(own == x.shape[0]), lambda: last, by_rank)
    sampled = (x[drawn], jnp.where(rank < present, weights[drawn], 0))
    if shards.row_axes():
        sampled = shards.total(jax.tree.map(partial(_where_row, is_own), sampled))
    return Rows(standardization, *sampled)


def _where_row(chosen: Array, array: Array) -> Array:
    """An array (N, ...) with zeros but in the chosen rows: (N,) bool."""
    return jnp.where(chosen.reshape(-1, *(1,) * (array.ndim - 1)), array, 0)


def running_sum(values: Array) -> Array:
    """Σ of the values up to each one, itself included: (N,) -> (N,), by matrix products."""
    width = 1 << (values.size.bit_length() + 1) // 2
    blocks = jnp.pad(values, (0, -values.size % width)).reshape(-1, width)
    within = einsum("bw,wv->bv", blocks, jnp.triu(jnp.ones((width, width), values.dtype)))
    n_blocks = blocks.shape[0]
    earlier = jnp.triu(jnp.ones((n_blocks, n_blocks), values.dtype), 1)
    before = einsum("b,bc->c", within[:, -1], earlier)
    return (within + before[:, None]).reshape(-1)[: values.size]


def draw_rows(uniform: Array, density: Array) -> Array:
    """Row numbers in proportion to a density over rows, one for each draw: (draws,).

    Rows of density 0 are not drawn, and those behind all others change nothing.

    Args:
        uniform: (draws,) in [0, 1).
        density: (N,), not normalized.
    """
    ends = running_sum(density)
    drawn = jnp.searchsorted(ends, uniform * ends[-1], side="right")
    return jnp.minimum(drawn, jnp.argmax(ends == ends[-1]).astype(drawn.dtype))


def plus_plus_seeds(key: Array, rows: Rows, n_seeds: int) -> Array:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): (K, D) seeds in standardized coordinates.

    Each seed is the best, by the sum of squared distances it leaves, of 2 + ⌊log K⌋ rows drawn in
    proportion to their squared distance from the seeds before.
    """
    n_candidates = 2 + int(math.log(n_seeds))
    dtype = rows.x.dtype
    tiny = float(jnp.finfo(dtype).tiny)
    z = rows.standardization.standardize(rows.x, rows.weights)

    def draws_of(index: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, index), (n_candidates,), dtype)

    def add_seed(closest: Array, draws: Array) -> tuple[Array, Array]:
        density = rows.weights * ((closest + tiny) / (jnp.max(closest) + tiny))
        candidates = z[draw_rows(draws, density)]
        distances = jnp.minimum(squared_distances(z, candidates), closest[None])
        best = jnp.argmin(einsum("cn,n->c", distances, rows.weights))
        return distances[best], candidates[best]

    far = varying(jnp.full_like(rows.weights, float(jnp.finfo(dtype).max) ** 0.5), rows, key)
    return lax.scan(add_seed, far, jax.vmap(draws_of)(jnp.arange(n_seeds)))[1]


def lloyd(rows: Rows, sample: Rows, start: Nearest, least: ArrayLike, max_iter: int) -> Nearest:
    """The partition after at most `max_iter` iterations of k-means from a given one.

    In each iteration clusters that are too small are dissolved, and others split in their place:
    their centers move to rows of clusters that have more than twice as many as are needed. After
    the last iteration this goes on alone until no cluster is too small, or for `SPLITTINGS` passes.
    Centers at infinity stay there.

    Args:
        rows: the data.
        sample: rows of which some become new centers.
        start: the partition to begin with, whose precision stays.
        least: () rows that a cluster must have, see `effective_rows`; but never more than half of
            what an average one has.
        max_iter: number of iterations.
    """
    dtype = rows.x.dtype
    present = jnp.all(jnp.isfinite(start.centers), axis=1)
    average = rows.n_present() / jnp.maximum(jnp.sum(present), 1)
    least = jnp.minimum(jnp.asarray(least, dtype), average.astype(dtype) / 2)

    def summand(partition: Nearest, numbers: Array, weights: Array, z: Array) -> Array:
        own = weights[:, None]
        of_rows = jnp.concatenate([own, own**2, own * z], axis=1)
        return einsum("nk,nf->kf", partition(numbers, z), of_rows)

    def next_centers(centers: Array, n_iter: Array) -> Array:
        partition = replace(start, centers=centers)
        sums = rows.sum(partial(summand, partition), rows.chunk_rows(centers.size))
        count, square, first = sums[:, 0], sums[:, 1], sums[:, 2:]
        stays = ((count == 0) | (n_iter >= max_iter))[:, None]
        means = jnp.where(stays, centers, first / jnp.where(count > 0, count, 1)[:, None])
        effective = effective_rows(count, square)
        small = present & (effective < least)
        within = (n_iter.astype(means.dtype) * GOLDEN_RATIO) % 1
        return lax.cond(
            all_in_batch(~jnp.any(small)),
            lambda: means,
            lambda: _moved_into(sample, partition, effective > 2 * least, small, within, means),
        )

    def goes_on(carry: tuple[Array, Array, Array]) -> Array:
        _, moved, n_iter = carry
        return moved & (n_iter < max_iter + SPLITTINGS)

    def some_go_on(carry: tuple[Array, Array, Array]) -> Array:
        return ~all_in_batch(~goes_on(carry))

    def advance(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, _, n_iter = carry
        new = jnp.where(goes_on(carry), next_centers(old, n_iter), old)
        return new, jnp.any(old != new), n_iter + 1

    initial = varying((start.centers, jnp.asarray(True), jnp.asarray(0)), rows, sample)
    return replace(start, centers=lax.while_loop(some_go_on, advance, initial)[0])


def effective_rows(weight: Array, square: Array) -> Array:
    """The effective number of rows (Σ w)² / Σ w², and 0 where there are none.

    Args:
        weight: Σ w of the weights of some rows.
        square: Σ w².

    Source: Kish 1965.
    """
    return jnp.where(square > 0, weight**2 / jnp.where(square > 0, square, 1), 0)


def _moved_into(
    sample: Rows, partition: Nearest, large: Array, small: Array, within: Array, centers: Array
) -> Array:
    """Centers (K, D), of which those of small clusters are rows of the large ones.

    The rows come from strata of equal size, so that no cluster gets more than its share.

    Args:
        sample: the rows to choose from.
        partition: of the clusters.
        large: (K,) bool.
        small: (K,) bool.
        within: () in [0, 1), the place in each stratum.
        centers: (K, D).
    """
    z = sample.standardization.standardize(sample.x, sample.weights)
    density = large[partition.labels(z)] & (sample.weights > 0)
    number, n_small = jnp.cumsum(small) - 1, jnp.maximum(jnp.sum(small), 1)
    place = (number.astype(z.dtype) + within) / n_small.astype(z.dtype)
    chosen = draw_rows(place, density.astype(z.dtype))
    return jnp.where((small & jnp.any(density))[:, None], z[chosen], centers)


def scaled_within(rows: Rows, partition: Nearest) -> Nearest:
    """The partition by the same centers, each feature measured by its deviation from them.

    Features whose scale is tied to that of others keep a common one.
    """

    def summand(numbers: Array, weights: Array, z: Array) -> Array:
        own_center = einsum("nk,kd->nd", partition(numbers, z), partition.reachable())
        return einsum("n,nd->d", weights, (z - own_center) ** 2)

    squares = rows.sum(summand, rows.chunk_rows(partition.centers.size))
    variance = squares / rows.total_weight()
    variance = jnp.where(rows.standardization.isotropic, jnp.mean(variance), variance)
    return replace(partition, precision=1 / jnp.maximum(variance, SMALLEST_DEVIATION**2))
