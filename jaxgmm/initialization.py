"""Starts: from a partition of the rows, or from responsibilities, to a mixture by one M-step."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.expectation import collect
from jaxgmm.frame import Rows
from jaxgmm.kmeans import draw_rows, lloyd, nearest, plus_plus_seeds
from jaxgmm.mixture import GaussianMixture
from jaxgmm.statistics import SufficientStatistics
from jaxgmm.steps import maximize, means_of
from jaxgmm.structures import structure_named

Responsibilities = Callable[[Array, Array], Array]


def by_plus_plus(key: Array, rows: Rows, n_components: int) -> Responsibilities:
    """The nearest-seed partition of greedy k-means++ seeds."""
    seeds = plus_plus_seeds(key, rows, n_components)
    return lambda _, z: nearest(z, seeds)


def by_kmeans(key: Array, rows: Rows, n_components: int) -> Responsibilities:
    """The partition that k-means converges to from greedy k-means++ seeds."""
    centers = lloyd(rows, plus_plus_seeds(key, rows, n_components))
    return lambda _, z: nearest(z, centers)


def by_random_rows(key: Array, rows: Rows, n_components: int) -> Responsibilities:
    """The nearest-seed partition of K different rows, drawn in proportion to their weights."""
    noise = jax.random.gumbel(key, rows.weights.shape, rows.weights.dtype)
    _, drawn = lax.top_k(jnp.log(rows.weights) + noise, n_components)
    seeds = rows.frame.read(rows.x[drawn], rows.weights[drawn])
    return lambda _, z: nearest(z, seeds)


def by_random_responsibilities(key: Array, rows: Rows, n_components: int) -> Responsibilities:
    """Uniform random numbers for each row and component, made to sum to 1."""

    def draw(number: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, number), (n_components,), rows.x.dtype)

    def responsibilities(numbers: Array, _: Array) -> Array:
        drawn = jax.vmap(draw)(numbers)
        return drawn / jnp.sum(drawn, axis=1, keepdims=True)

    return responsibilities


STARTS: dict[str, Callable[[Array, Rows, int], Responsibilities]] = {
    "k-means++": by_plus_plus,
    "kmeans": by_kmeans,
    "random": by_random_responsibilities,
    "random_from_data": by_random_rows,
}


def start_from(
    responsibilities: Responsibilities,
    rows: Rows,
    n_components: int,
    covariance_type: str,
    regularization: Array,
    *,
    lend: bool,
) -> GaussianMixture:
    """A mixture in the frame of the rows, by one M-step.

    Args:
        responsibilities: of some rows, see `expectation.collect`.
        rows: the data.
        n_components: K.
        covariance_type: of the mixture.
        regularization: (D,) variances in the frame.
        lend: whether components too small for a covariance borrow, see `with_pseudo_rows`.
    """
    zero = jnp.zeros((n_components, rows.x.shape[1]), rows.x.dtype)
    means = means_of(collect(rows, responsibilities, zero, full_second_moment=False))
    full_second_moment = structure_named(covariance_type).full_second_moment
    statistics = collect(rows, responsibilities, means, full_second_moment)
    if lend:
        present = jnp.sum(rows.weights > 0).astype(rows.x.dtype)
        statistics = with_pseudo_rows(statistics, rows.total_weight() / present)
    return maximize(statistics, covariance_type, None, regularization)


def with_pseudo_rows(statistics: SufficientStatistics, weight: Array) -> SufficientStatistics:
    """Statistics to which each component has D + 1 rows added, spread like an average component.

    A start needs this where a part of the partition has too few rows for a covariance of its own:
    from a singular covariance no component ever recovers.

    Args:
        statistics: about the components' own means.
        weight: () of an average row.
    """
    n_features = statistics.first.shape[1]
    pseudo = (n_features + 1) * weight
    average = jnp.sum(statistics.second, axis=0, keepdims=True) / jnp.sum(statistics.count)
    return replace(
        statistics,
        count=statistics.count + pseudo,
        second=statistics.second + pseudo * average,
    )
