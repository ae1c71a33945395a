"""The pass over the data as two matrix products, where that is accurate.

log N(z | μ_k, Σ_k) is linear in the products of pairs of coordinates of (z, 1). So the logits of a
chunk are one matrix product of such features with K rows of coefficients, and the moments are
another, of the same features with the responsibilities: half the arithmetic of whitening each
difference, and nothing of size N·K·D. Where all components share a covariance, the quadratic part
is the same for all: features of first order are enough, and the second moment of all rows, which no
step changes, is gathered once.

The price is cancellation: a logit is a difference of terms as large as (|z| / σ)², and loses as
many digits. `is_accurate` says for which components that is tolerable; `differences.py` has the
form that never loses any, for the others or for all.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.chunks import rows_of_features
from jaxgmm.arrays.numerics import einsum, shifted_exponentials, weighted_sum
from jaxgmm.covariances.storage import is_diagonal, precision, precision_diagonal
from jaxgmm.covariances.traced import AnyStructure
from jaxgmm.mixtures.densities import log_normalizer
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.features import (
    LINEAR,
    PRODUCTS,
    Features,
    LogitCoefficients,
    features_for,
)
from jaxgmm.steps.rows import Rows, largest_distance
from jaxgmm.steps.statistics import SufficientStatistics

# What a logit of the farthest row may lose, and for each feature that of a typical one; by bits.
LOGIT_ERROR = {32: 1e-2, 64: 1e-7}
NOISE = {32: 2.0**-15, 64: 2.0**-32}


class DataExtent(NamedTuple):
    """Sizes of standardized data that the products have to know, and no step changes.

    Attributes:
        max_abs: (D,) the largest |z_i| of any row.
        second_moment: where all components share a covariance, that of all rows: (D, D), or its
            diagonal (D,).
    """

    max_abs: Array
    second_moment: Array | None


def products_in_pass(x: Array, n_components: int) -> int:
    """The size of a pass over rows (..., N, D): its products of features, counts included."""
    n_rows, n_features = x.shape[-2:]
    return n_rows * n_components * PRODUCTS.count(n_features)


def extent_of(rows: Rows, n_components: int, structure: AnyStructure | None) -> DataExtent | None:
    """The extent of the rows; None where a pass is too short for a second form to be worth it.

    Args:
        rows: the data.
        n_components: K.
        structure: of the fit; None where the components' own second moments are wanted.
    """
    n_rows, n_features = rows.x.shape
    if not isinstance(n_rows, int):
        # A symbol of an export, all of whose rows are one chunk.
        return None
    if products_in_pass(rows.x, n_components) < budget().smallest_pass:
        return None
    center, scale = rows.standardization.center, rows.standardization.scale
    max_abs = largest_distance(rows.x, rows.weights, center) / scale
    if structure is None or not structure.stores_one:
        return DataExtent(max_abs, None)
    subscripts = "ni,nj->ij" if structure.full_second_moment else "ni,ni->i"

    def summand(_: Array, weights: Array, z: Array) -> Array:
        return einsum(subscripts, weights[:, None] * z, z)

    return DataExtent(max_abs, rows.sum(summand, rows_of_features(rows.x, n_features, 1)))


def _precisions(mixture: GaussianMixture, features: Features) -> Array:
    """(K or 1, D, D), or their diagonals (K or 1, D) where all else is zero, or not wanted."""
    if features is PRODUCTS or not is_diagonal(mixture.covariance):
        return precision(mixture.covariance, mixture.n_features)
    return precision_diagonal(mixture.covariance, mixture.n_features)


def logit_coefficients(mixture: GaussianMixture, features: Features) -> LogitCoefficients:
    """log w_k + log N(z | μ_k, Σ_k).

    Of `LINEAR` features, without the quadratic part, which is the same for all components.
    """
    # -½ (z - μ)ᵀ P (z - μ) = -½ zᵀ P z + (P μ)ᵀ z - ½ μᵀ P μ: coefficients of the products of
    # coordinates, slopes P μ for the coordinates, and what is constant.
    n_components, n_features = mixture.means.shape
    precisions = _precisions(mixture, features)
    if precisions.ndim == 3:
        slopes = jnp.sum(precisions * mixture.means[:, None, :], axis=2)
    else:
        slopes = precisions * mixture.means
    of_all = jnp.broadcast_to(precisions, (n_components, *precisions.shape[1:]))
    constants = mixture.log_weights - log_normalizer(mixture.covariance, n_features)
    constants -= jnp.sum(slopes * mixture.means, axis=1) / 2
    return features.form(of_all, slopes, constants)


class Apart(NamedTuple):
    """Components of which logits and moments are made in another way, because products lose them.

    Attributes:
        logits: of (K, rows) and the rows (rows, D), the first with those of these components.
        moments: of the rows and weighted responsibilities (K, rows), sums for these components.
        statistics: of statistics and these sums, the first with those of these components.
    """

    logits: Callable[[Array, Array], Array]
    moments: Callable[[Array, Array], tuple[Array, ...]]
    statistics: Callable[[SufficientStatistics, tuple[Array, ...]], SufficientStatistics]


NONE_APART = Apart(
    logits=lambda logits, z: logits,
    moments=lambda z, responsibilities: (),
    statistics=lambda statistics, sums: statistics,
)


def statistics_by_products(
    rows: Rows,
    mixture: GaussianMixture,
    full_second_moment: bool,
    second_moment: Array | None,
    wanted: Array | None = None,
    apart: Apart = NONE_APART,
) -> SufficientStatistics:
    """The E-step by matrix products: statistics about zero.

    Args:
        rows: the data; mixture and statistics are in their coordinates, the log-likelihood is of x.
        mixture: K components, whose weights needn't sum to 1.
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
        second_moment: of a `DataExtent`; the second moments are then those of all components
            together, with a leading axis of 1.
        wanted: see `sum_over_chunks`.
        apart: components whose statistics are about another origin.
    """
    n_features = mixture.n_features
    features = LINEAR if second_moment is not None else features_for(mixture, full_second_moment)
    form = logit_coefficients(mixture, features)
    # Finite coefficients make dead components unlikely only: a prior that rules out all others
    # would revive them.
    dead = jnp.where(jnp.isneginf(mixture.log_weights), -jnp.inf, 0)

    def summand(numbers: Array, weights: Array, z: Array) -> tuple[Any, ...]:
        values = features.of(z)
        logits = apart.logits(form.at(values), z)
        logits, most = rows.with_prior(logits, numbers, weights)
        if most is not None:
            logits += dead[:, None]
        by_product = budget().sums_are_products
        terms, total, top = shifted_exponentials(logits, axis=0, by_product=by_product)
        log_prob = (jnp.log(total) + top)[0]
        log_prob = log_prob if most is None else log_prob + most
        responsibilities = terms * (weights[None] / total)
        sums = features.sum(values, responsibilities)
        return weighted_sum(weights, log_prob), sums, apart.moments(z, responsibilities)

    size = rows_of_features(rows.x, features.count(n_features), mixture.n_components)
    log_likelihood, sums, of_apart = rows.sum(summand, size, wanted)
    count, first, *moments = features.moments(sums)
    if second_moment is None:
        second = moments[0]
    else:
        # Σ_k Σ_n r_nk z zᵀ is Σ_n z zᵀ, whatever the responsibilities, and so is the quadratic
        # part of the log-likelihood, -½ tr(P Σ_n z zᵀ).
        second = second_moment[None]
        log_likelihood -= jnp.sum(_precisions(mixture, features)[0] * second_moment) / 2
    if second.ndim == 3 and not full_second_moment:
        second = jnp.diagonal(second, axis1=1, axis2=2)
    found = SufficientStatistics(log_likelihood, count, first, second, jnp.zeros_like(first))
    found = apart.statistics(found, of_apart)
    volume = jnp.sum(found.count) * rows.standardization.log_volume()
    return replace(found, log_likelihood=log_likelihood - volume)


def is_accurate(
    mixture: GaussianMixture, max_abs: Array, smallest_gain: ArrayLike = jnp.inf
) -> Array:
    """Whether the products are accurate enough for the rows, of each component: (K,) bool.

    Every rounding takes a share of Σ_i P_kii (z_i² + μ_ki²). Logits of the farthest row must lose
    less than `LOGIT_ERROR`, and those of a typical one, where z_i² is 1, less than `NOISE` for each
    feature, so that the noise of the objective is that of a sum of log densities anyway. The step
    to the next parameters has an error, in expected log-likelihood per unit of weight, that is the
    square of the latter, and which must be a thousand times smaller than the gains of which the
    stopping rule takes ratios.

    Args:
        mixture: in the coordinates of the rows.
        max_abs: (D,) of a `DataExtent`.
        smallest_gain: () that has to be seen, in expected log-likelihood per unit of weight.
    """
    dtype = jnp.finfo(max_abs.dtype)
    square = mixture.means**2
    diagonal = precision_diagonal(mixture.covariance, mixture.n_features)
    of_farthest = float(dtype.eps) * jnp.sum(diagonal * (max_abs[None] ** 2 + square), axis=1)
    of_typical = float(dtype.eps) * jnp.sum(diagonal * (1 + square), axis=1)
    return (
        (of_farthest <= LOGIT_ERROR[dtype.bits])
        & (of_typical <= NOISE[dtype.bits] * mixture.n_features)
        & (1000 * of_typical**2 <= smallest_gain)
    )
