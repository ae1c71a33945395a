"""Sufficient statistics for responsibilities that come from elsewhere."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.chunks import rows_of_features
from jaxgmm.arrays.numerics import (
    einsum,
)
from jaxgmm.steps.differences import (
    sum_moments,
)
from jaxgmm.steps.features import PRODUCTS, SQUARES
from jaxgmm.steps.rows import Rows
from jaxgmm.steps.statistics import SufficientStatistics


def accumulate_soft(
    rows: Rows,
    responsibilities: Callable[[Array, Array], Array],
    origin: Array,
    full_second_moment: bool,
) -> SufficientStatistics:
    """Statistics of the rows under responsibilities from elsewhere; the log-likelihood is 0.

    Args:
        rows: the data; origin and statistics are in their coordinates.
        responsibilities: called with the numbers of some rows: (rows,) int, and with the rows
            themselves, standardized: (rows, D). Returns (rows, K).
        origin: (K, D).
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
    """

    def summand(numbers: Array, weights: Array, z: Array) -> tuple[Array, Array, Array]:
        weights = weights[:, None]
        weighted = jnp.where(weights != 0, weights * responsibilities(numbers, z), 0)
        return sum_moments(z, weighted.T, origin, full_second_moment)

    count, first, second = rows.sum(summand, rows.chunk_rows(origin.size))
    return SufficientStatistics(jnp.zeros_like(count[0]), count, first, second, origin)


def accumulate_hard(
    rows: Rows,
    partition: Callable[[Array, Array], Array],
    origin: Array,
    full_second_moment: bool,
) -> SufficientStatistics:
    """Statistics for responsibilities that are 0 or 1: each row has one difference, from its own.

    Args:
        rows: the data; origin and statistics are in their coordinates.
        partition: called as by `accumulate_soft`, returns one-hot rows.
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
