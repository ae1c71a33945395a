"""k-means in the frame: greedy k-means++ seeds, and Lloyd's iterations from them."""

import math
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.frame import Rows
from jaxgmm.numerics import agreed, contract, einsum, varying

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2

# Of the deviation in all rows. A feature of few different values may have none within clusters.
SMALLEST_DEVIATION = 1e-3


def squared_distances(z: Array, centers: Array) -> Array:
    """|z_n - c_k|²: (N, D), (K, D) -> (K, N), in vectors of rows, of which XLA makes fast loops."""
    columns = z.T
    return lax.map(lambda center: jnp.sum((columns - center[:, None]) ** 2, axis=0), centers)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nearest:
    """The partition of rows by their nearest center, the lowest of equals.

    Attributes:
        centers: (K, D) in the frame; those at infinity are nearest to nothing.
        precision: (D,) what squared differences of each feature count for in the distance.
    """

    centers: Array
    precision: Array

    def __call__(self, _: Array, z: Array) -> Array:
        """One-hot, of the rows' numbers and the rows: (rows, D) -> (rows, K)."""
        weighted = self.precision[None] * self.reachable()
        half = jnp.sum(self.precision[None] * self.centers**2, axis=1) / 2
        distance = half[:, None] - contract("kd,nd->kn", weighted, z)
        nearest = distance == jnp.min(distance, axis=0, keepdims=True)
        number = jnp.arange(self.centers.shape[0])
        label = jnp.min(jnp.where(nearest, number[:, None], number.size), axis=0)
        return (label[None] == number[:, None]).astype(z.dtype).T

    def reachable(self) -> Array:
        """(K, D) centers, those at infinity replaced by zeros."""
        return jnp.where(jnp.isfinite(self.centers), self.centers, 0)


def running_count(present: Array) -> Array:
    """How many of the rows up to each one, itself included, are present: (N,) bool -> (N,) int."""

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
    the data.

    Args:
        rows: the data.
        size: number of rows; behind the rows there are, rows of weight 0 fill up.
    """
    frame, x, weights = rows
    if isinstance(x.shape[0], int) and x.shape[0] <= size:
        return rows
    present = jnp.sum(weights > 0)
    place = jnp.arange(size)
    within = (place.astype(x.dtype) * GOLDEN_RATIO) % 1
    stratum = (place.astype(x.dtype) + within) * (present.astype(x.dtype) / size)
    rank = jnp.where(present > size, stratum.astype(place.dtype), place)
    last = jnp.minimum(rank, present - 1)

    def by_rank() -> Array:
        if isinstance(x.shape[0], int):
            drawn = jnp.searchsorted(running_count(weights > 0), last, side="right")
        else:
            # The symbol of an export has no number of bits, which a search goes through.
            drawn = jnp.argsort(weights <= 0, stable=True)[last]
        return drawn.astype(last.dtype)

    # Where all rows are present their ranks are their numbers.
    drawn = lax.cond(agreed(present == x.shape[0]), lambda: last, by_rank)
    return Rows(frame, x[drawn], jnp.where(rank < present, weights[drawn], 0))


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
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): (K, D) seeds in the frame.

    Each seed is the best, by the sum of squared distances it leaves, of 2 + ⌊log K⌋ rows drawn in
    proportion to their squared distance from the seeds before.
    """
    n_candidates = 2 + int(math.log(n_seeds))
    dtype = rows.x.dtype
    tiny = float(jnp.finfo(dtype).tiny)
    z = rows.frame.read(rows.x, rows.weights)
    relative = rows.weights / jnp.max(rows.weights)

    def draws_of(index: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, index), (n_candidates,), dtype)

    def add_seed(closest: Array, draws: Array) -> tuple[Array, Array]:
        density = relative * ((closest + tiny) / (jnp.max(closest) + tiny))
        candidates = z[draw_rows(draws, density)]
        distances = jnp.minimum(squared_distances(z, candidates), closest[None])
        best = jnp.argmin(einsum("cn,n->c", distances, rows.weights))
        return distances[best], candidates[best]

    far = varying(jnp.full_like(rows.weights, float(jnp.finfo(dtype).max) ** 0.5), rows, key)
    return lax.scan(add_seed, far, jax.vmap(draws_of)(jnp.arange(n_seeds)))[1]


def lloyd(rows: Rows, sample: Rows, start: Nearest, max_iter: int) -> Nearest:
    """The partition after at most `max_iter` iterations of k-means from a given one.

    An empty cluster is moved to the row that is farthest from its center, one in each iteration.
    Centers at infinity stay there.

    Args:
        rows: the data.
        sample: rows of which the farthest is searched.
        start: the partition to begin with, whose precision stays.
        max_iter: number of passes.
    """

    def summand(
        partition: Nearest, numbers: Array, weights: Array, z: Array
    ) -> tuple[Array, Array]:
        own = weights[:, None] * partition(numbers, z)
        return jnp.sum(own, axis=0), einsum("nk,nd->kd", own, z)

    def next_centers(centers: Array) -> Array:
        partition = replace(start, centers=centers)
        count, total = rows.sum(partial(summand, partition), rows.chunk_rows(centers.size))
        without_rows = (count == 0)[:, None]
        means = jnp.where(without_rows, centers, total / jnp.where(without_rows, 1, count[:, None]))
        empty = jnp.any(without_rows & jnp.isfinite(centers), axis=1)
        moved = empty & (jnp.arange(empty.size) == jnp.argmax(empty))
        return lax.cond(
            agreed(~jnp.any(empty)),
            lambda: means,
            lambda: jnp.where(moved[:, None], farthest_row(sample, partition)[None], means),
        )

    def goes_on(carry: tuple[Array, Array, Array]) -> Array:
        _, moved, n_iter = carry
        return moved & (n_iter < max_iter)

    def some_go_on(carry: tuple[Array, Array, Array]) -> Array:
        return ~agreed(~goes_on(carry))

    def advance(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        old, _, n_iter = carry
        new = jnp.where(goes_on(carry), next_centers(old), old)
        return new, jnp.any(old != new), n_iter + 1

    initial = varying((start.centers, jnp.asarray(True), jnp.asarray(0)), rows, sample)
    return replace(start, centers=lax.while_loop(some_go_on, advance, initial)[0])


def scaled_within(rows: Rows, partition: Nearest) -> Nearest:
    """The partition by the same centers, each feature measured by its deviation from them.

    Features whose scale is tied to that of others keep a common one.
    """

    def summand(numbers: Array, weights: Array, z: Array) -> Array:
        own_center = einsum("nk,kd->nd", partition(numbers, z), partition.reachable())
        return einsum("n,nd->d", weights, (z - own_center) ** 2)

    total = rows.sum(summand, rows.chunk_rows(partition.centers.size))
    variance = total / jnp.sum(rows.weights)
    variance = jnp.where(rows.frame.isotropic, jnp.mean(variance), variance)
    return replace(partition, precision=1 / jnp.maximum(variance, SMALLEST_DEVIATION**2))


def farthest_row(rows: Rows, partition: Nearest) -> Array:
    """The row, of positive weight, that is farthest from the nearest center: (D,)."""
    z = rows.frame.read(rows.x, rows.weights)

    def add_center(closest: Array, center: Array) -> tuple[Array, None]:
        distance = jnp.sum(partition.precision[None] * (z - center[None]) ** 2, axis=-1)
        return jnp.minimum(closest, distance), None

    far = varying(jnp.full_like(rows.weights, jnp.inf), z, partition)
    closest, _ = lax.scan(add_center, far, partition.centers)
    return z[jnp.argmax(jnp.where(rows.weights > 0, closest, -1))]
