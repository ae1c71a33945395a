"""Starts: from a partition of the rows, or from responsibilities, to a mixture by one M-step."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from jaxgmm.arrays import shards
from jaxgmm.arrays.numerics import einsum, varying
from jaxgmm.covariances.traced import AnyStructure
from jaxgmm.fits.kmeans import Nearest, lloyd, plus_plus_seeds, scaled_within, subsample
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.operations.transport import assignment
from jaxgmm.steps.accumulation import accumulate_hard, accumulate_soft
from jaxgmm.steps.maximization import maximize, means_of
from jaxgmm.steps.rows import Rows, chunk_of
from jaxgmm.steps.statistics import SufficientStatistics

Responsibilities = Callable[[Array, Array], Array]

# Seeds may be outliers. After a few iterations of k-means hardly any of them still has a part of
# its own, from which EM would climb to a component of a handful of rows (benchmarks/spurious.py).
FEW_ITERATIONS = 5
MAX_ITERATIONS = 300

# Seeds are one after the other, so that no more rows are read for them than suffice.
SAMPLE_ROWS = 2**13
SAMPLE_ROWS_PER_SEED = 2**7


def by_plus_plus(key: Array, rows: Rows, active: Array, least: Array) -> Responsibilities:
    """The partition that k-means reaches from greedy seeds in twice a few iterations.

    The first few measure features by their deviation in all rows, which is large where clusters are
    far apart. The others measure them by the deviation within clusters that was found.
    """
    sample, partition = _seeds(key, rows, active)
    fewest = _least_in(sample, rows, least)

    def approach(number: Array, partition: Nearest) -> Nearest:
        found = lloyd(sample, sample, partition, fewest, FEW_ITERATIONS)
        return lax.cond(number < 1, lambda: scaled_within(sample, found), lambda: found)

    with shards.on_each_device():
        return lax.fori_loop(0, 2, approach, varying(partition, sample))


def by_kmeans(key: Array, rows: Rows, active: Array, least: Array) -> Responsibilities:
    """The partition that k-means converges to from greedy k-means++ seeds."""
    sample, partition = _seeds(key, rows, active)
    if sample is not rows:
        fewest = _least_in(sample, rows, least)
        with shards.on_each_device():
            partition = lloyd(sample, sample, partition, fewest, MAX_ITERATIONS)
    return lloyd(rows, sample, partition, least, MAX_ITERATIONS)


def _seeds(key: Array, rows: Rows, active: Array) -> tuple[Rows, Nearest]:
    """The rows from which greedy k-means++ seeds were chosen, and the partition by them."""
    sample = _sample(rows, active)
    with shards.on_each_device():
        return sample, _partition(plus_plus_seeds(key, sample, active.size), active)


def _sample(rows: Rows, active: Array) -> Rows:
    return subsample(rows, max(SAMPLE_ROWS, SAMPLE_ROWS_PER_SEED * active.size))


def _least_in(sample: Rows, rows: Rows, least: Array) -> Array:
    """The rows of a sample that a cluster must have, to have so many of all.

    One row alone may be an outlier, however many rows the sample stands for.
    """
    share = (jnp.sum(sample.weights > 0) / rows.n_present()).astype(rows.x.dtype)
    return jnp.maximum(least.astype(share.dtype) * share, jnp.minimum(least, 2).astype(share.dtype))


def by_random_rows(key: Array, rows: Rows, active: Array, least: Array) -> Responsibilities:
    """The nearest-seed partition of K different rows, drawn in proportion to their weights.

    Parts that are too small are dissolved, and others split in their place.
    """
    score = jnp.log(rows.weights) + _own_noise(key, rows.weights)
    if isinstance(score.size, int):
        _, drawn = lax.top_k(score, min(active.size, score.size))
    else:
        drawn = jnp.argsort(score, descending=True)[jnp.arange(active.size)]
    seeds = rows.standardization.standardize(rows.x[drawn], rows.weights[drawn])
    # Of all devices' best the best.
    best = lax.top_k(shards.gathered(score[drawn]), active.size)[1]
    partition = _partition(shards.gathered(seeds)[best], active)
    sample = _sample(rows, active)
    fewest = _least_in(sample, rows, least)
    with shards.on_each_device():
        return lloyd(sample, sample, partition, fewest, 0)


def _own_noise(key: Array, weights: Array) -> Array:
    """Gumbel noise for each row of this device, the same however rows are spread: (N,)."""
    axes = shards.row_axes()
    if not axes:
        return jax.random.gumbel(key, weights.shape, weights.dtype)
    noise = jax.random.gumbel(key, (lax.axis_size(axes) * weights.size,), weights.dtype)
    return lax.dynamic_slice_in_dim(noise, shards.first_row(weights.size), weights.size)


def by_random_responsibilities(
    key: Array, rows: Rows, active: Array, least: Array
) -> Responsibilities:
    """Uniform random numbers for each row and component, made to sum to 1.

    So all components have about as many rows.
    """

    def draw(number: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, number), active.shape, rows.x.dtype)

    def responsibilities(numbers: Array, _: Array) -> Array:
        drawn = jax.vmap(draw)(numbers + shards.first_row(rows.weights.size))
        drawn = jnp.where(active[None], drawn, 0)
        return drawn / jnp.sum(drawn, axis=1, keepdims=True)

    return responsibilities


def respecting(responsibilities: Responsibilities, rows: Rows) -> Responsibilities:
    """Responsibilities in which rows are where their prior wants them.

    The parts become the components of which their rows' priors say most, each another one. Where a
    prior rules out a row's own component, it chooses among the others.

    Args:
        responsibilities: of some rows.
        rows: with a prior.
    """
    assert rows.log_prior is not None
    log_prior = rows.log_prior
    n_components = log_prior.shape[1]

    def summand(numbers: Array, weights: Array, z: Array) -> Array:
        prior = jax.nn.softmax(chunk_of(log_prior, numbers, weights), axis=1)
        own = weights[:, None] * responsibilities(numbers, z)
        return einsum("nk,nj->kj", jnp.where(weights[:, None] != 0, own, 0), prior)

    common = rows.sum(summand, rows.chunk_rows(2 * n_components))
    # What rows without any preference say is the same of all.
    component_of = assignment(jnp.mean(common, axis=1, keepdims=True) - common)
    part_of = jnp.argsort(component_of)

    def moved(numbers: Array, z: Array) -> Array:
        own = responsibilities(numbers, z)[:, part_of]
        own = jnp.maximum(own, float(jnp.finfo(own.dtype).eps))
        logits = jnp.log(own) + log_prior[numbers]
        usable = jnp.isfinite(jnp.max(logits, axis=1, keepdims=True))
        return jax.nn.softmax(jnp.where(usable, logits, 0), axis=1)

    return moved


def as_given(responsibilities: Array) -> Responsibilities:
    """Responsibilities (N, K) that the caller brings."""
    return lambda numbers, _: responsibilities[numbers]


def _partition(seeds: Array, active: Array) -> Nearest:
    """The partition by the nearest of the active seeds: (K, D)."""
    return Nearest(jnp.where(active[:, None], seeds, jnp.inf), jnp.ones_like(seeds[0]))


STARTS: dict[str, Callable[[Array, Rows, Array, Array], Responsibilities]] = {
    "k-means++": by_plus_plus,
    "kmeans": by_kmeans,
    "random": by_random_responsibilities,
    "random_from_data": by_random_rows,
}


def least_rows(structure: AnyStructure, n_features: int) -> Array:
    """The rows that a part of a partition must have for a component to start from it: ().

    Twice as many as it takes to have a covariance of its own, or one where all have the same.

    Args:
        structure: the covariance type.
        n_features: D.
    """
    needed = jnp.where(structure.diagonal, 2, n_features + 1)
    return jnp.where(structure.shared, 1, 2 * needed)


def start_from(
    responsibilities: Responsibilities,
    rows: Rows,
    active: Array,
    structure: AnyStructure,
    regularization: Array,
    *,
    pseudocounts: bool,
) -> GaussianMixture:
    """A mixture in the coordinates of the rows, by one M-step.

    Args:
        responsibilities: of some rows, see `accumulation.accumulate_soft`.
        rows: the data.
        active: (K,) bool, which components there are; the others have no weight.
        structure: the covariance type.
        regularization: (D,) variances in standardized coordinates.
        pseudocounts: whether components too small for a covariance borrow, see `add_pseudocounts`.
    """
    full_second_moment = structure.full_second_moment
    if isinstance(responsibilities, Nearest):
        centers = responsibilities.reachable()
        statistics = accumulate_hard(rows, responsibilities, centers, full_second_moment)
        statistics = statistics.about(means_of(statistics))
    else:
        zero = jnp.zeros((active.size, rows.x.shape[1]), rows.x.dtype)
        means = means_of(accumulate_soft(rows, responsibilities, zero, full_second_moment=False))
        statistics = accumulate_soft(rows, responsibilities, means, full_second_moment)
    if pseudocounts:
        average_row = rows.total_weight() / rows.n_present().astype(rows.x.dtype)
        statistics = add_pseudocounts(statistics, jnp.where(active, average_row, 0))
    healthy = or_noise(statistics, active)
    added = jnp.where(jnp.isfinite(regularization), regularization, 0)
    return maximize(structure, healthy, None, added)


def or_noise(statistics: SufficientStatistics, active: Array) -> SufficientStatistics:
    """The statistics, or those of white noise about zero where they are of nothing or not finite.

    Args:
        statistics: of some rows.
        active: (K,) bool, which components have rows of the noise.
    """
    second = statistics.second
    square = jnp.eye(second.shape[-1]) if second.ndim == 3 else jnp.ones(second.shape[-1])
    noise = SufficientStatistics(
        log_likelihood=jnp.zeros_like(statistics.log_likelihood),
        count=active.astype(second.dtype),
        first=jnp.zeros_like(statistics.first),
        second=jnp.broadcast_to(square[None].astype(second.dtype), second.shape),
        origin=jnp.zeros_like(statistics.origin),
    )
    usable = jnp.all(jnp.isfinite(ravel_pytree(statistics)[0])) & (jnp.sum(statistics.count) > 0)
    return jax.tree.map(partial(jnp.where, usable), statistics, noise)


def add_pseudocounts(statistics: SufficientStatistics, weights: Array) -> SufficientStatistics:
    """Statistics to which each component has D + 1 rows added, spread like an average component.

    A start needs this where a part of the partition has too few rows for a covariance of its own:
    from a singular covariance no component ever recovers.

    Args:
        statistics: about the components' own means.
        weights: (K,) of an average row.
    """
    n_features = statistics.first.shape[1]
    pseudo = (n_features + 1) * weights
    average = jnp.sum(statistics.second, axis=0, keepdims=True) / jnp.sum(statistics.count)
    return replace(
        statistics,
        count=statistics.count + pseudo,
        second=statistics.second + pseudo.reshape(-1, *(1,) * (average.ndim - 1)) * average,
    )
