"""The form in which each component's part of a pass is made: products where these are accurate.

What products lose hangs on the origin: coordinates of rows z and means μ are differences from it. A
logit of a component with precision P is a sum of terms of which the largest are some P_ii z_i² and
P_ii μ_i², and rounding takes its share of these. Of a component's own rows z_i² is Σ_ii + μ_i² on
average, and the sum of these terms is tr R⁻¹ + 2 Σ_i P_ii μ_i², R being its correlations: products
lose components that are tight beside their distance from the origin, or nearly singular. One that
is tight can be the origin, which wide ones don't mind.

Rows far away have large logits of all components. What is lost of one matters if it is near the
largest, and then in proportion to it. So the rows that are farthest in a feature are looked at
themselves; a bound for the corner of all features would be hundreds of times too large
where tails are heavy.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.chunks import rows_of_features
from jaxgmm.arrays.numerics import einsum
from jaxgmm.covariances.storage import inverse_correlation_trace, precision_diagonal
from jaxgmm.covariances.traced import AnyStructure
from jaxgmm.mixtures.densities import log_density
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.products import products_in_pass
from jaxgmm.steps.rows import Rows, farthest_rows

# What a logit may lose, and for each feature that of a typical row; by bits.
LOGIT_ERROR = {32: 1e-2, 64: 1e-7}
NOISE = {32: 2.0**-15, 64: 2.0**-32}
# The typical loss, beyond that of differences, with which the moments are still accurate.
MOMENT_ERROR = {32: 2.0**-8, 64: 2.0**-28}
# The error of a step that is due to logits, in terms of that due to moments, at most.
OF_LOGITS = 1 / 64
# So much of a gain that has to be seen may be the error of a step.
SHARE_OF_GAIN = 1 / 4
# A logit of a far row may lose as much again for so many nats that the row's largest is below zero,
# and for each nat that it is itself below that.
DEPTH = 1e3
# The most that any row near a component loses, in terms of what its typical rows lose at most.
NEAR = 4
# So many of the farthest rows are looked at, and of the tightest components as origins.
FARTHEST, CANDIDATES = 16, 8


class DataExtent(NamedTuple):
    """What the products have to know of standardized data, and no step changes.

    Attributes:
        farthest: (M, D) those of the rows that are farthest from the center in any feature.
        second_moment: where all components share a covariance, that of all rows of this device:
            (D, D), or its diagonal (D,).
    """

    farthest: Array
    second_moment: Array | None


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
    farthest = farthest_rows(rows, FARTHEST)
    if structure is None or not structure.stores_one:
        return DataExtent(farthest, None)
    subscripts = "ni,nj->ij" if structure.full_second_moment else "ni,ni->i"

    def summand(_: Array, weights: Array, z: Array) -> Array:
        return einsum(subscripts, weights[:, None] * z, z)

    return DataExtent(farthest, rows.own_sum(summand, rows_of_features(rows.x, n_features, 1)))


class Forms(NamedTuple):
    """Which components products are accurate for, and about which origin.

    Attributes:
        origin: (D,) of the products.
        logits_apart: (K,) bool, whose logits products lose; where components share a covariance,
            all or none.
        moments_apart: (K,) bool, likewise whose moments they lose.
        error: () that products leave in the next parameters, in expected log-likelihood per unit of
            weight, beyond that of differences.
    """

    origin: Array
    logits_apart: Array
    moments_apart: Array
    error: Array

    @property
    def apart(self) -> Array:
        """Mask of the components that products don't make alone: (K,) bool."""
        return self.logits_apart | self.moments_apart


def forms_of(
    rows: Rows,
    mixture: GaussianMixture,
    extent: DataExtent,
    smallest_gain: ArrayLike | None = jnp.inf,
    shares: Array | None = None,
) -> Forms:
    """The forms of a pass over the rows, constant to derivatives.

    Logits may lose no more than `LOGIT_ERROR`, and those of a typical row no more than `NOISE` for
    each feature, so that the noise of the objective is that of a sum of log densities anyway. Most
    of that is another rounding for each row, which hardly moves the next parameters. Sums over rows
    do: their rounding is blown up when what the origin's distance makes of them is subtracted. So
    where a gain has to be seen, it is the moments of the noisiest components that are lost first.

    Args:
        rows: the data.
        mixture: in the coordinates of the rows.
        extent: of the rows.
        smallest_gain: () that has to be seen, in expected log-likelihood per unit of weight; None
            where each component's statistics are for any use, as exact as those of differences.
        shares: (K,) of all weight that the components have, by default those of the mixture.
    """
    shares = jax.nn.softmax(mixture.log_weights) if shares is None else shares
    mixture, shares = lax.stop_gradient((mixture, shares))
    n_features = mixture.n_features
    bits = jnp.finfo(mixture.means.dtype).bits
    dead = jnp.isneginf(mixture.log_weights)
    together = extent.second_moment is not None
    origin = jnp.zeros_like(mixture.means[0]) if together else best_origin(mixture)
    of_each = typical = typical_loss(mixture, origin)
    excess = loss_of_moments(mixture, origin)
    if together:
        # They have one covariance and one form, so the average counts. A single one that is far
        # away loses the same of all its rows: there is no rest to leave room for, as `NEAR` does.
        typical, excess = (
            jnp.sum(shares * jnp.where(dead, 0, losses))[None] for losses in (typical, excess)
        )
        shares = jnp.ones_like(typical)
    accurate = is_accurate_near(typical, n_features) & (of_each <= LOGIT_ERROR[bits])
    accurate &= is_accurate_far(rows, mixture, origin, extent)
    errors = errors_of_step(shares, excess, n_features)
    if smallest_gain is None:
        exact = 16 * typical**2 <= float(jnp.finfo(typical.dtype).eps)
        seen_by_logits = seen_by_moments = exact
    else:
        noise, most = up_to(errors), SHARE_OF_GAIN * smallest_gain
        seen_by_logits, seen_by_moments = OF_LOGITS * noise <= most, noise <= most
    # A dead one has no rows to lose, if only its logits aren't infinite of both signs.
    nothing_to_lose = dead & jnp.isfinite(of_each)
    if together:
        kept = jnp.all((accurate & seen_by_moments) | nothing_to_lose)
        apart = jnp.broadcast_to(~kept, dead.shape)
        return Forms(origin, apart, apart, jnp.where(kept, errors[0], 0))
    logits = (accurate & seen_by_logits) | nothing_to_lose
    moments = ((excess <= MOMENT_ERROR[bits]) & seen_by_moments) | nothing_to_lose
    error = jnp.sum(jnp.where(moments, errors, jnp.where(logits, OF_LOGITS * errors, 0)))
    return Forms(origin, ~logits, ~moments, error)


def errors_of_step(shares: Array, losses: Array, n_features: int) -> Array:
    """The errors of a step by products, in expected log-likelihood per unit of weight: (K,).

    A long sum is rounded by some eps of itself, moments in each feature by their own, so that the
    squares of D errors add, where a loss is the sum of D terms. Beside float64, the error was 0.01
    to 1.5 times this, for 3 to 32 features.

    Args:
        shares: (K,) of all weight that components have.
        losses: (K,) of their moments, see `loss_of_moments`.
        n_features: D.
    """
    return jnp.where(shares > 0, shares * losses**2, 0) / n_features


def up_to(values: Array) -> Array:
    """Of values (K,) that aren't negative, the sum up to each of them in ascending order: (K,)."""
    numbers = jnp.arange(values.size)
    own, other = numbers[:, None], numbers[None]
    first, second = values[:, None], values[None]
    comes_before = (second < first) | ((second == first) & (other < own)) | (other == own)
    return jnp.sum(jnp.where(comes_before, second, 0), axis=1)


def typical_loss(mixture: GaussianMixture, origin: Array) -> Array:
    """What logits of a component's own rows lose by products about an origin (D,): (K,).

    Every rounding takes a share of Σ_i P_ii (z_i² + μ_i²), z and μ as differences from the origin,
    where z_i² is Σ_ii + μ_i² on average. An estimate, two to ten times what was seen.
    """
    of_width, of_distance = _losses(mixture, origin)
    return of_width + of_distance


def loss_of_moments(mixture: GaussianMixture, origin: Array) -> Array:
    """What is lost as `typical_loss`, beyond what differences lose: (K,).

    Their sums are rounded, too, by shares of Σ_ii; what that does can't be avoided.
    """
    of_width, of_distance = _losses(mixture, origin)
    return jnp.sqrt(of_distance * (of_distance + 2 * of_width))


def _losses(mixture: GaussianMixture, origin: Array) -> tuple[Array, Array]:
    """The parts of a `typical_loss` by widths, and by distances from the origin: (K,), (K,)."""
    eps = float(jnp.finfo(origin.dtype).eps)
    of_width = inverse_correlation_trace(mixture.covariance, mixture.n_features)
    of_distance = weighted_squares(mixture, mixture.means - origin[None])
    return eps * of_width, 2 * eps * of_distance


def weighted_squares(mixture: GaussianMixture, difference: Array) -> Array:
    """Σ_i P_kii d_ki² for differences (K, D): (K,)."""
    diagonal = precision_diagonal(mixture.covariance, mixture.n_features)
    return jnp.sum(diagonal * difference**2, axis=1)


def is_accurate_near(typical: Array, n_features: int) -> Array:
    """Whether the logits of rows near a component lose little enough, from a `typical_loss`."""
    bits = jnp.finfo(typical.dtype).bits
    return typical <= min(NOISE[bits] * n_features, LOGIT_ERROR[bits] / NEAR)


def best_origin(mixture: GaussianMixture) -> Array:
    """(D,) about which products lose the fewest components: zero, or the mean of a tight one."""
    n_components, n_features = mixture.means.shape

    def accurate_about(origin: Array) -> Array:
        return is_accurate_near(typical_loss(mixture, origin), n_features)

    zero = jnp.zeros_like(mixture.means[0])
    tightness = weighted_squares(mixture, jnp.ones_like(mixture.means))
    kept = accurate_about(zero) | jnp.isneginf(mixture.log_weights)
    lost = jnp.where(kept, 0, tightness)
    tightest = lax.top_k(lost, min(n_components, CANDIDATES))[1]
    candidates = jnp.concatenate([zero[None], mixture.means[tightest]])
    n_kept = jnp.sum(jax.vmap(accurate_about)(candidates), axis=1)
    return candidates[jnp.argmax(n_kept)]


def is_accurate_far(
    rows: Rows, mixture: GaussianMixture, origin: Array, extent: DataExtent
) -> Array:
    """Whether logits of far rows lose little enough for what hangs on them: (K,) bool.

    That is the less, the farther a component's logit is below the largest one; and where all are
    far from zero, so is the row's log density, whose relative error counts. With a prior, something
    else may decide which component a row belongs to, and neither is said.

    Args:
        rows: the data.
        mixture: K components.
        origin: (D,) of the products.
        extent: of the rows.
    """
    far = extent.farthest
    dtype = jnp.finfo(far.dtype)
    diagonal = precision_diagonal(mixture.covariance, mixture.n_features)
    squares = einsum("ki,mi->km", diagonal, (far - origin[None]) ** 2)
    of_means = weighted_squares(mixture, mixture.means - origin[None])[:, None]
    # Features of first order aren't multiplied by each other.
    terms = squares if extent.second_moment is None else 2 * jnp.sqrt(squares * of_means)
    logits = log_density(mixture.covariance, mixture.means, far) + mixture.log_weights[:, None]
    most = jnp.max(logits, axis=0, keepdims=True)
    matters_less = (most - logits) + jnp.abs(most) / DEPTH if rows.log_prior is None else 0
    tolerable = LOGIT_ERROR[dtype.bits] * (1 + matters_less)
    return jnp.all(float(dtype.eps) * (terms + of_means) <= tolerable, axis=1)
