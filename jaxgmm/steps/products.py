"""The pass over the data as two matrix products, where that is accurate.

log N(z | μ_k, Σ_k) is linear in the products of pairs of coordinates of (z, 1). So the logits of a
chunk are one matrix product of such features with K rows of coefficients, and the moments are
another, of the same features with the responsibilities: half the arithmetic of whitening each
difference, and nothing of size N·K·D. Where all components share a covariance, the quadratic part
is the same for all: features of first order are enough, and the second moment of all rows, which no
step changes, is gathered once.

The price is cancellation: a logit is a difference of terms as large as (|z| / σ)², and loses as
many digits. `forms.py` says for which components that is tolerable, and `differences.py` has the
form that never loses any, for the others or for all. On a GPU `kernels/em_pass.py` makes both
products of a tile of rows at once.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.chunks import rows_of_features, sum_over_chunks
from jaxgmm.arrays.numerics import shifted_exponentials, weighted_sum
from jaxgmm.covariances.storage import is_diagonal, precision, precision_diagonal
from jaxgmm.kernels.em_pass import Logits, Plan, fused_moments, plan_of
from jaxgmm.kernels.launching import runs_with
from jaxgmm.mixtures.densities import log_normalizer
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.features import (
    LINEAR,
    PRODUCTS,
    SQUARES,
    Features,
    LogitCoefficients,
    features_for,
)
from jaxgmm.steps.rows import Rows
from jaxgmm.steps.statistics import SufficientStatistics

# A launch of a kernel goes through so many rows at most, as each of its sums is a plain one; and
# numbers in it are counted by 32 bits.
LONGEST_LAUNCH, MOST_NUMBERS = 2**24, 2**31 - 1


def products_in_pass(x: Array, n_components: int) -> int:
    """The size of a pass over rows (..., N, D): its products of features, counts included."""
    n_rows, n_features = x.shape[-2:]
    return n_rows * n_components * PRODUCTS.count(n_features)


def _precisions(mixture: GaussianMixture, features: Features) -> Array:
    """(K or 1, D, D), or their diagonals (K or 1, D) where all else is zero, or not wanted."""
    if features is PRODUCTS or not is_diagonal(mixture.covariance):
        return precision(mixture.covariance, mixture.n_features)
    return precision_diagonal(mixture.covariance, mixture.n_features)


def logits_of(mixture: GaussianMixture, features: Features) -> Logits:
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
    return Logits(of_all, slopes, constants)


def logit_coefficients(mixture: GaussianMixture, features: Features) -> LogitCoefficients:
    """`logits_of`, as functions of the features."""
    return features.coefficients(*logits_of(mixture, features))


class Apart(NamedTuple):
    """Components of which logits and moments are made in another way, because products lose them.

    Attributes:
        logits: of (K, rows) and the rows (rows, D), the first with those of these components; but
            for rows whose share in them is zero anyway.
        sums: of what `Features.sum` returns, the rows, and weighted responsibilities (K, rows), the
            first with the moments of these components, about another origin.
        origin: (K, D) of all moments; None for that of the products.
    """

    logits: Callable[[Array, Array], Array]
    sums: Callable[[tuple[Array, ...], Array, Array], tuple[Array, ...]]
    origin: Array | None


NONE_APART = Apart(
    logits=lambda logits, z: logits, sums=lambda sums, z, responsibilities: sums, origin=None
)


def statistics_by_products(
    rows: Rows,
    mixture: GaussianMixture,
    full_second_moment: bool,
    second_moment: Array | None,
    wanted: Array | None = None,
    apart: Apart = NONE_APART,
    origin: Array | None = None,
) -> SufficientStatistics:
    """The E-step by matrix products: this device's statistics, about one origin for all components.

    Args:
        rows: the data; mixture and statistics are in their coordinates, the log-likelihood is of x.
        mixture: K components, whose weights needn't sum to 1.
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
        second_moment: of a `DataExtent`; the second moments are then those of all components
            together, with a leading axis of 1.
        wanted: see `sum_over_chunks`.
        apart: components whose statistics are about another origin.
        origin: (D,) what the features are products of the differences from, zero by default; where
            there is a `second_moment` it has to be zero.
    """
    features = LINEAR if second_moment is not None else features_for(mixture, full_second_moment)
    origin = jnp.zeros_like(mixture.means[0]) if origin is None else origin
    about_origin = replace(mixture, means=mixture.means - origin[None])
    plan = kernel_plan(rows, mixture.n_components, features) if apart is NONE_APART else None
    if plan is None:
        found = _moments(features, apart, rows, about_origin, origin, wanted)
    else:
        found = _moments_by_kernel(plan, features, rows, about_origin, origin, wanted)
    log_likelihood, count, first, *moments = found
    if second_moment is None:
        second = moments[0]
    else:
        # Σ_k Σ_n r_nk z zᵀ is Σ_n z zᵀ, whatever the responsibilities, and so is the quadratic
        # part of the log-likelihood, -½ tr(P Σ_n z zᵀ).
        second = second_moment[None]
        log_likelihood -= jnp.sum(_precisions(mixture, features)[0] * second_moment) / 2
    if second.ndim == 3 and not full_second_moment:
        second = jnp.diagonal(second, axis1=1, axis2=2)
    volume = jnp.sum(count) * rows.standardization.log_volume()
    about = jnp.broadcast_to(origin[None], first.shape) if apart.origin is None else apart.origin
    return SufficientStatistics(log_likelihood - volume, count, first, second, about)


def _moments(
    features: Features,
    apart: Apart,
    rows: Rows,
    mixture: GaussianMixture,
    origin: Array,
    wanted: Array | None,
) -> tuple[Array, ...]:
    """Σ w log p of this device's rows in the coordinates they are read in, and their moments.

    Args:
        features: that are multiplied.
        apart, origin, wanted: see `statistics_by_products`.
        rows: the data.
        mixture: about the origin.
    """
    coefficients = logit_coefficients(mixture, features)
    # Finite coefficients make dead components unlikely only: a prior that rules out all others
    # would revive them.
    dead = jnp.where(jnp.isneginf(mixture.log_weights), -jnp.inf, 0)

    def summand(numbers: Array, weights: Array, z: Array) -> tuple[Any, ...]:
        # Once, and not anew for each use.
        z = lax.optimization_barrier(z)
        values = features.of(z - origin[None])
        logits = apart.logits(coefficients.at(values), z)
        logits, most = rows.with_prior(logits, numbers, weights)
        if most is not None:
            logits += dead[:, None]
        by_product = budget().sums_are_products
        terms, total, top = shifted_exponentials(logits, axis=0, by_product=by_product)
        log_prob = (jnp.log(total) + top)[0]
        log_prob = log_prob if most is None else log_prob + most
        responsibilities = terms * (weights[None] / total)
        sums = apart.sums(features.sum(values, responsibilities), z, responsibilities)
        return weighted_sum(weights, log_prob), sums

    size = rows_of_features(rows.x, features.count(mixture.n_features), mixture.n_components)
    log_likelihood, sums = rows.own_sum(summand, size, wanted)
    return log_likelihood, *features.moments(sums)


def kernel_plan(rows: Rows, n_components: int, features: Features) -> Plan | None:
    """The sizes with which a kernel goes through rows; None where there is none that would."""
    if rows.log_prior is not None or not runs_with(budget().kernels, rows.x, rows.weights):
        return None
    second_order = {PRODUCTS: 2, SQUARES: 1, LINEAR: 0}[features]
    return plan_of(rows.x.shape[1], n_components, second_order)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _moments_by_kernel(
    plan: Plan,
    features: Features,
    rows: Rows,
    mixture: GaussianMixture,
    origin: Array,
    wanted: Array | None,
) -> tuple[Array, ...]:
    """`_moments`, in one launch for all rows of which the numbers can be counted."""
    frame = (rows.standardization.center, rows.standardization.scale, origin)
    logits = logits_of(mixture, features)
    how = budget().kernels
    assert how is not None

    def summand(start: Array, fresh: Array) -> tuple[Array, ...]:
        x, weights = (
            lax.dynamic_slice_in_dim(of, start, fresh.size) for of in (rows.x, rows.weights)
        )
        return fused_moments(plan, how, x, jnp.where(fresh, weights, 0), frame, logits)

    most = min(rows.x.shape[0], MOST_NUMBERS // plan.n_features, LONGEST_LAUNCH)
    return sum_over_chunks(summand, rows.x.shape[0], most, wanted)


@_moments_by_kernel.defjvp
def _differentiate_moments(
    plan: Plan, features: Features, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    return jax.jvp(partial(_moments, features, NONE_APART), primals, tangents)
