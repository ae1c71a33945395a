"""The pass over the data as two matrix products, where that is accurate.

log N(z | μ_k, Σ_k) is linear in the products of pairs of coordinates of (z, 1). So the logits of a
chunk are one matrix product of such features with K rows of coefficients, and the moments are
another, of the same features with the responsibilities: half the arithmetic of whitening each
difference, and nothing of size N·K·D. Where all components share a covariance, the quadratic part
is the same for all: features of first order are enough, and the second moment of all rows, which no
step changes, is gathered once.

The price is cancellation: a logit is a difference of terms as large as (|z| / σ)², and loses as
many digits. `is_accurate` says whether that is tolerable; `expectation.py` has the form that never
loses any.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.covariance import Full, precision, precision_diagonal
from jaxgmm.densities import log_normalizer
from jaxgmm.frame import Rows, chunk_of
from jaxgmm.mixture import GaussianMixture
from jaxgmm.numerics import einsum, rows_of_features, shifted_exponentials, weighted_sum
from jaxgmm.statistics import SufficientStatistics
from jaxgmm.structures import Structure

# With fewer products than this a pass is so short that a second one isn't worth compiling.
SMALLEST_PASS = 2**20

# What a logit of the farthest row may lose, and for each feature that of a typical one; by bits.
LOGIT_ERROR = {32: 1e-2, 64: 1e-7}
NOISE = {32: 2.0**-15, 64: 2.0**-32}


class Features(NamedTuple):
    """A basis in which log densities are linear, but for constants.

    Attributes:
        count: F, of D.
        of: the values for a chunk: (D, rows) -> (F, rows).
        coefficients: of log densities: from precisions P_k (K, D, D), or their diagonals (K, D)
            where all else is zero, and slopes P_k μ_k (K, D) -> (K, F).
        moments: of rows under responsibilities, from the sums of the features (F, K): the first
            moments (K, D), and the second (K, D, D) or (K, D) where the features tell them.
    """

    count: Callable[[int], int]
    of: Callable[[Array], Array]
    coefficients: Callable[[Array, Array], Array]
    moments: Callable[[Array], tuple[Array, ...]]


def with_one(z: Array) -> Array:
    """(D, rows) -> (D + 1, rows)."""
    return jnp.concatenate([z, jnp.ones_like(z[:1])])


def _no_constant(coefficients: Array) -> Array:
    return jnp.pad(coefficients, ((0, 0), (0, 1)))


def _products(z: Array) -> Array:
    first, second = np.triu_indices(z.shape[0] + 1)
    augmented = with_one(z)
    return augmented[first] * augmented[second]


def _coefficients_of_products(precisions: Array, slopes: Array) -> Array:
    quadratic = jnp.concatenate([-precisions, slopes[:, :, None]], axis=2)
    first, second = np.triu_indices(slopes.shape[1], m=slopes.shape[1] + 1)
    # Off the diagonal each product stands for two.
    half = np.where(first == second, 0.5, 1.0).astype(slopes.dtype)
    return _no_constant(quadratic[:, first, second] * half[None])


def _moments_of_products(sums: Array) -> tuple[Array, ...]:
    n_augmented = int((2 * sums.shape[0]) ** 0.5)
    upper = np.triu_indices(n_augmented)
    place = np.zeros((n_augmented, n_augmented), int)
    place[upper] = np.arange(sums.shape[0])
    place = np.maximum(place, place.T)
    moments = jnp.moveaxis(sums[place], -1, 0)
    return moments[:, :-1, -1], moments[:, :-1, :-1]


PRODUCTS = Features(
    count=lambda d: (d + 1) * (d + 2) // 2,
    of=_products,
    coefficients=_coefficients_of_products,
    moments=_moments_of_products,
)

SQUARES = Features(
    count=lambda d: 2 * d + 1,
    of=lambda z: jnp.concatenate([z**2, with_one(z)]),
    coefficients=lambda precisions, slopes: _no_constant(
        jnp.concatenate([-precisions / 2, slopes], axis=1)
    ),
    moments=lambda sums: (sums[sums.shape[0] // 2 : -1].T, sums[: sums.shape[0] // 2].T),
)

LINEAR = Features(
    count=lambda d: d + 1,
    of=with_one,
    coefficients=lambda precisions, slopes: _no_constant(slopes),
    moments=lambda sums: (sums[:-1].T,),
)


def features_for(mixture: GaussianMixture, full_second_moment: bool) -> Features:
    """The smallest basis that holds the log densities and the second moments that are wanted."""
    needs_products = full_second_moment or isinstance(mixture.covariance, Full)
    return PRODUCTS if needs_products else SQUARES


class Reach(NamedTuple):
    """What the products have to know of the data, and no step changes.

    Attributes:
        radius: (D,) the largest |z_i| of any row.
        square: where all components share a covariance, the second moment (D, D) of all rows, or
            its diagonal (D,).
    """

    radius: Array
    square: Array | None


def reach_of(rows: Rows, n_components: int, structure: Structure | None) -> Reach | None:
    """The reach of the rows; None where a pass is too short for a second form to be worth it.

    Args:
        rows: the data.
        n_components: K.
        structure: of the fit; None where the components' own second moments are wanted.
    """
    n_rows, n_features = rows.x.shape
    if n_rows * n_components * PRODUCTS.count(n_features) < SMALLEST_PASS:
        return None
    distance = jnp.abs(rows.x - rows.frame.center[None])
    present = (rows.weights != 0)[:, None]
    radius = jnp.max(jnp.where(present, distance, 0), axis=0) / rows.frame.scale
    if structure is None or not structure.shared:
        return Reach(radius, None)
    subscripts = "ni,nj->ij" if structure.full_second_moment else "ni,ni->i"

    def summand(_: Array, weights: Array, z: Array) -> Array:
        return einsum(subscripts, weights[:, None] * z, z)

    return Reach(radius, rows.sum(summand, rows_of_features(n_rows, n_features + 1)))


def _precisions(mixture: GaussianMixture, features: Features) -> Array:
    """(K or 1, D, D), or their diagonals (K or 1, D) where all else is zero, or not wanted."""
    if features is PRODUCTS or isinstance(mixture.covariance, Full):
        return precision(mixture.covariance, mixture.n_features)
    return precision_diagonal(mixture.covariance, mixture.n_features)


def linear_form(mixture: GaussianMixture, features: Features) -> tuple[Array, Array]:
    """Coefficients (K, F) of the features and constants (K,): log w_k + log N(z | μ_k, Σ_k).

    Of `LINEAR` features, without the quadratic part, which is the same for all components.
    """
    n_components, n_features = mixture.means.shape
    precisions = _precisions(mixture, features)
    if precisions.ndim == 3:
        slopes = jnp.sum(precisions * mixture.means[:, None, :], axis=2)
    else:
        slopes = precisions * mixture.means
    of_all = jnp.broadcast_to(precisions, (n_components, *precisions.shape[1:]))
    constants = mixture.log_weights - log_normalizer(mixture.covariance, n_features)
    constants -= jnp.sum(slopes * mixture.means, axis=1) / 2
    return features.coefficients(of_all, slopes), constants


def expect_by_products(
    rows: Rows,
    mixture: GaussianMixture,
    log_prior: Array | None,
    full_second_moment: bool,
    square: Array | None,
) -> SufficientStatistics:
    """The E-step by matrix products: statistics about zero.

    Args:
        rows: the data; mixture and statistics are in their frame, the log-likelihood is of x.
        mixture: K components, whose weights needn't sum to 1.
        log_prior: (N, K) added to the logits, or None.
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
        square: of a `Reach`; the second moments are then those of all components together, with a
            leading axis of 1.
    """
    n_features = mixture.n_features
    features = LINEAR if square is not None else features_for(mixture, full_second_moment)
    coefficients, constants = linear_form(mixture, features)

    def summand(numbers: Array, weights: Array, z: Array) -> tuple[Array, Array]:
        values = features.of(z.T)
        logits = einsum("kf,fn->kn", coefficients, values) + constants[:, None]
        if log_prior is not None:
            logits += chunk_of(log_prior, numbers, weights).T
        terms, total, top = shifted_exponentials(logits, axis=0)
        log_prob = (jnp.log(total) + top)[0]
        sums = einsum("fn,kn->fk", values, terms * (weights[None] / total))
        return weighted_sum(weights, log_prob), sums

    size = rows_of_features(rows.x.shape[0], features.count(n_features))
    log_likelihood, sums = rows.sum(summand, size)
    first, *moments = features.moments(sums)
    if square is None:
        second = moments[0]
    else:
        second = square[None]
        log_likelihood -= jnp.sum(_precisions(mixture, features)[0] * square) / 2
    if second.ndim == 3 and not full_second_moment:
        second = jnp.diagonal(second, axis1=1, axis2=2)
    return SufficientStatistics(
        log_likelihood=log_likelihood - jnp.sum(sums[-1]) * rows.frame.log_volume(),
        count=sums[-1],
        first=first,
        second=second,
        origin=jnp.zeros_like(first),
    )


def is_accurate(
    mixture: GaussianMixture, radius: Array, smallest_gain: ArrayLike = jnp.inf
) -> Array:
    """Whether the products are accurate enough for the rows and the mixture: () bool.

    Every rounding takes a share of Σ_i P_kii (z_i² + μ_ki²). Logits of the farthest row must lose
    less than `LOGIT_ERROR`, and those of a typical one, where z_i² is 1, less than `NOISE` for each
    feature, so that the noise of the objective is that of a sum of log densities anyway. The step
    to the next parameters has an error, in expected log-likelihood per unit of weight, that is the
    square of the latter, and which must be a thousand times smaller than the gains of which the
    stopping rule takes ratios.

    Args:
        mixture: in the frame of the rows.
        radius: (D,) of a `Reach`.
        smallest_gain: () that has to be seen, in expected log-likelihood per unit of weight.
    """
    dtype = jnp.finfo(radius.dtype)
    square = mixture.means**2
    diagonal = precision_diagonal(mixture.covariance, mixture.n_features)
    of_farthest = float(dtype.eps) * jnp.max(
        jnp.sum(diagonal * (radius[None] ** 2 + square), axis=1)
    )
    of_typical = float(dtype.eps) * jnp.max(jnp.sum(diagonal * (1 + square), axis=1))
    return (
        (of_farthest <= LOGIT_ERROR[dtype.bits])
        & (of_typical <= NOISE[dtype.bits] * mixture.n_features)
        & (1000 * of_typical**2 <= smallest_gain)
    )
