"""The stopping rule: judge progress from the parameters, and extrapolate what is left to gain.

Near a maximum EM is linear: the gains of successive steps form a sum of geometric series, one for
each direction, and the slowest dominates in the end. With ρ² the ratio of successive gains g, what
a step leaves to gain is ρ² g / (1 - ρ): the step covers the share 1 - ρ of the way, and the
log-likelihood has 1 - ρ of the curvature of the expected log-likelihood in which g is measured.

EM also slows near saddle points, where the ratio of gains climbs through 1, at first unnoticeably.
The extrapolation spans about 1 / (1 - ρ) steps; the climb of the ratio is carried forward over
`HORIZONS` times as many before the ratio is used, and the result has to be small enough
`CONFIRMATIONS` times in a row. What is reported to remain is by the slowest rate of as many steps.

Noise hides both. Where it is a share η of the gains, the ratio is known to about η, and a climb
that is wrong by as much, carried forward over 4 / (1 - ρ) steps, says nothing unless η is below
(1 - ρ)²: the slower the fit, the more exact it would have to be. So ratio and climb are averages
with exponentially falling weights, of which the last step has the share α: three in a row, the
ratio of ratios averaged twice, and the climb of its changes. As the noise of successive ratios has
opposite signs, it changes the climb by some η α^(5/2), and α is as large as leaves that a fraction
of (1 - ρ)²: 1 where all is exact. But however loud the noise is, what is averaged is on average no
older than half of the steps that the extrapolation spans.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.numerics import at_least
from jaxgmm.covariances.storage import inverse_correlation_trace, kl_between_covariances
from jaxgmm.mixtures.mixture import GaussianMixture

HORIZONS = 4
CONFIRMATIONS = 5
# The share of the last step in averages, in units of 1 - ρ, at least.
FORGETTING = 4
# 1 - ρ, at which a gain too small to be seen leaves less than the tolerance, and below which
# averages aren't over more steps.
SLOWEST_GAP = 1e-3


class Gain(NamedTuple):
    """The gain of a step in expected log-likelihood per unit of weight, component by component.

    What a component seems to gain by no more than rounding says nothing about it, and nothing
    about the others: a component that is nearly singular makes much of such noise, and must
    neither hide what its neighbors still have to gain nor be taken for progress. Nor does it hide
    what its own mixing weight has to gain, which is as exact as that of others.

    Attributes:
        of_each: (2, K) by mixing weights, and by means and covariances; see `expected_gain`.
        rounding: (2, K) what rounding alone may bring about, see `gain_by_rounding`.
        of_form: () what products may bring about in all components together, see `Forms`.
        n_directions: () number of parameters that noise is spread over.
    """

    of_each: Array
    rounding: Array
    of_form: ArrayLike = 0.0
    n_directions: ArrayLike = 1.0

    def visible(self) -> Array:
        """Mask of the gains that are more than rounding, or NaN: (2, K) bool."""
        return ~(self.of_each <= self.rounding)

    def total(self) -> Array:
        """() of the gains that are more than rounding."""
        return jnp.sum(jnp.where(self.visible(), self.of_each, 0))

    def noise(self) -> Array:
        """() what of the total may be rounding."""
        return jnp.sum(jnp.where(self.visible(), self.rounding, 0))


class Step(NamedTuple):
    """A step of EM.

    Attributes:
        mixture: the new one.
        objective: () of the one that went in.
        gain: of the step.
    """

    mixture: GaussianMixture
    objective: Array
    gain: Gain


class Progress(NamedTuple):
    """The progress of a loop: what the stopping rule remembers of the steps so far.

    Attributes:
        of_each: (2, K) gains of the last step.
        gain: () the sum of those that are more than rounding.
        recent: () average ratio of a gain to the one before, of the same parameters.
        ratio: () average of that.
        climb: () average of its changes from step to step.
        share: () of the last step in these averages.
        forecasts: (CONFIRMATIONS,) to what the ratio was going to climb, by the last steps.
        remaining: () gain of the objective still to come, by the highest of these.
        confirmed: () int, how many times in a row the latest of these left less than the tolerance.
    """

    of_each: Array
    gain: Array
    recent: Array
    ratio: Array
    climb: Array
    share: Array
    forecasts: Array
    remaining: Array
    confirmed: Array

    @classmethod
    def begin(cls, log_weights: Array) -> "Progress":
        """Before the first step nothing is known; log_weights (K,) are those of the start."""
        of_each = jnp.zeros((2, *log_weights.shape), log_weights.dtype)
        unknown = jnp.asarray(jnp.inf, of_each.dtype)
        return cls(
            of_each=of_each,
            gain=jnp.zeros_like(unknown),
            recent=unknown,
            ratio=unknown,
            climb=unknown,
            share=jnp.ones_like(unknown),
            forecasts=jnp.ones(CONFIRMATIONS, of_each.dtype),
            remaining=unknown,
            confirmed=jnp.asarray(0, jnp.int32),
        )

    @classmethod
    def known(cls, log_weights: Array, remaining: Array, tol: Array) -> "Progress":
        """Progress where something else than the gains of steps says what remains."""
        confirmed = jnp.where(remaining < tol, CONFIRMATIONS, 0).astype(jnp.int32)
        return cls.begin(log_weights)._replace(remaining=remaining, confirmed=confirmed)

    def update(self, gain: Gain, tol: Array) -> "Progress":
        """After a step.

        Where no component gains more than rounding there is nothing left that could be seen; nor
        where all together don't, if so little can't leave more than the tolerance at any rate that
        matters. What remains is then taken from the noise, which is no less than the gain in it, at
        the rate that was seen last. Of components whose noise is larger than the tolerance it can't
        be told; nor of any by tolerances that are finer than the dtype is, for which to be unseen
        is enough.

        Args:
            gain: of the step.
            tol: () what may remain.
        """
        total, visible = gain.total(), gain.visible()
        # Those seen now alone are likelier to have gained by chance than before.
        twice = visible & ~(self.of_each <= gain.rounding)
        before = jnp.sum(jnp.where(twice, self.of_each, 0))
        now = jnp.sum(jnp.where(twice, gain.of_each, 0))
        last = jnp.where(before > 0, now / jnp.where(before > 0, before, 1), self.recent)
        share = self.share_of_last(gain)
        # By logarithms: what noise does to gains cancels between the ratios to their neighbors.
        recent = jnp.exp(averaged(jnp.log(self.recent), jnp.log(last), share))
        ratio = jnp.exp(averaged(jnp.log(self.ratio), jnp.log(recent), share))
        known = jnp.isfinite(self.ratio)
        change = jnp.where(known, ratio - jnp.where(known, self.ratio, 0), jnp.inf)
        climb = averaged(self.climb, change, share)
        gap = rate_gap(ratio)
        ahead = HORIZONS * at_least(climb, 0) / jnp.where(gap > 0, gap, 1)
        forecast = jnp.where(gap > 0, jnp.minimum(1, ratio + ahead), 1)
        forecasts = jnp.concatenate([self.forecasts[1:], forecast[None]])
        enough = (before > 0) & (remaining_gain(total, forecast) < tol)
        once_more = jnp.where(enough, self.confirmed + 1, 0)
        seen = Progress(
            of_each=gain.of_each,
            gain=total,
            recent=recent,
            ratio=ratio,
            climb=climb,
            share=share,
            forecasts=forecasts,
            remaining=remaining_gain(total, jnp.max(forecasts)),
            confirmed=once_more.astype(jnp.int32),
        )
        finest = float(jnp.finfo(total.dtype).eps) / 4
        most = jnp.maximum(tol, finest)
        told = gain.rounding <= most
        noise = jnp.sum(jnp.where(told, gain.of_each, 0))
        remaining = jnp.where(self.ratio < 1, remaining_gain(noise, self.ratio), noise)
        arrived = (remaining < tol) | ((tol > 0) & (tol < finest))
        unseen = self._replace(
            gain=total,
            remaining=remaining,
            confirmed=jnp.where(arrived, CONFIRMATIONS, 0).astype(jnp.int32),
        )
        rounding = jnp.sum(gain.rounding)
        together = (jnp.sum(gain.of_each) <= rounding) & (rounding <= SLOWEST_GAP * most)
        return jax.tree.map(partial(jnp.where, jnp.any(visible) & ~together), seen, unseen)

    def share_of_last(self, gain: Gain) -> Array:
        """The share that the last step has in averages: ().

        No less than in a mean over all steps, and no more than leaves noise a fraction of what the
        climb may be. A gain is the square of a step, to which noise in the same direction adds: the
        root of the noise, shared by all directions, is what is relative to the root of the gain.
        """
        in_one = (gain.noise() + gain.of_form) / gain.n_directions
        quiet = jnp.where(in_one > 0, gain.total() / jnp.where(in_one > 0, in_one, 1), jnp.inf)
        gap = jnp.clip(jnp.abs(1 - jnp.sqrt(self.ratio)), SLOWEST_GAP, 1)
        exact = (gap * jnp.sqrt(jnp.sqrt(quiet))) ** 0.8 / 3
        exact = jnp.maximum(exact, FORGETTING * gap)
        share = jnp.minimum(1, jnp.maximum(exact, self.share / (1 + self.share)))
        return jnp.where(share > 0, share, 1)

    def converged(self) -> Array:
        """() bool."""
        return self.confirmed >= CONFIRMATIONS


def averaged(average: Array, last: Array, share: Array) -> Array:
    """An average with another value, which has a share in it; the value, where there was none."""
    known = jnp.isfinite(average)
    return jnp.where(known, average + share * (last - jnp.where(known, average, 0)), last)


def rate_gap(ratio: Array) -> Array:
    """1 - ρ for a ratio ρ² of successive gains; 0 where they don't fall."""
    return 1 - jnp.sqrt(jnp.clip(ratio, 0, 1))


def remaining_gain(gain: Array, ratio: Array) -> Array:
    """ρ² g / (1 - ρ), and infinity where the gains don't fall."""
    falls = ratio < 1
    return jnp.where(falls, ratio * gain / jnp.where(falls, rate_gap(ratio), 1), jnp.inf)


def gain_of(new: GaussianMixture, old: GaussianMixture, of_form: ArrayLike = 0.0) -> Gain:
    """The gain of an EM step from one mixture to another; see `Gain`."""
    # Those of diagonal covariances, whatever the type: little hangs on it, and nothing on padding.
    of_component = jnp.asarray(1 + 2 * new.n_features, old.means.dtype)
    n_directions = jnp.sum(jnp.where(old.weights > 0, of_component, 0))
    return Gain(expected_gain(new, old), gain_by_rounding(old), of_form, n_directions)


def expected_gain(new: GaussianMixture, old: GaussianMixture) -> Array:
    """The gain of an EM step in the expected log-likelihood, per unit of weight: (2, K).

    KL(w' ‖ w) + Σ w'_k KL(new_k ‖ old_k), with KL(w' ‖ w) = Σ w_k (r_k log r_k - r_k + 1) and
    r = w' / w: terms that are not negative, each accurate however small it is. Components without
    weight don't count.

    Returns:
        The terms of the mixing weights, and those of means and covariances.
    """
    n_features = new.n_features
    weights = new.weights
    alive = weights > 0
    log_ratio = jnp.where(alive, new.log_weights - jnp.where(alive, old.log_weights, 0), 0)
    change = jnp.expm1(log_ratio)
    of_weights = old.weights * ((1 + change) * log_ratio - change)
    shift = old.covariance.whiten((new.means - old.means)[None])[0]
    spread = kl_between_covariances(new.covariance, old.covariance, n_features)
    of_shapes = weights * (jnp.sum(shift**2, axis=-1) / 2 + spread)
    return jnp.stack([at_least(of_weights, 0), of_shapes])


def gain_by_rounding(mixture: GaussianMixture) -> Array:
    """The expected gain that a step seems to have when rounding alone moves the parameters: (2, K).

    Rounding moves means by some eps of their size, and a covariance by some eps of its diagonal,
    which the inverse of the correlation matrix blows up. It moves mixing weights as far as it moves
    their components, but by no more than some eps of their size.
    """
    eps = 4 * float(jnp.finfo(mixture.means.dtype).eps)
    covariance = mixture.covariance
    shift = covariance.whiten(eps * mixture.means[None])[0]
    spread = eps * inverse_correlation_trace(covariance, mixture.n_features)
    of_shapes = jnp.sum(shift**2, axis=-1) / 2 + spread**2 / 16
    of_weights = jnp.minimum(of_shapes + eps**2 / 2, 16 * eps**2)
    return mixture.weights[None] * jnp.stack([of_weights, of_shapes])
