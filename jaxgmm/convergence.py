"""The stopping rule: judge progress from the parameters, and extrapolate what is left to gain.

Near a maximum EM is linear: the gains of successive steps form a sum of geometric series, one for
each direction, and the slowest dominates in the end. With ρ² the ratio of successive gains g, what
a step leaves to gain is ρ² g / (1 - ρ): the step covers the share 1 - ρ of the way, and the
log-likelihood has 1 - ρ of the curvature of the expected log-likelihood in which g is measured.

EM also slows near saddle points, where the ratio of gains climbs through 1, at first unnoticeably.
The extrapolation spans about 1 / (1 - ρ) steps; the climb of the ratio is carried forward over
`HORIZONS` times as many before the ratio is used, and the result has to hold `CONFIRMATIONS` times
in a row.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxgmm.covariance import kl_between_covariances
from jaxgmm.mixture import GaussianMixture
from jaxgmm.numerics import at_least

HORIZONS = 4
CONFIRMATIONS = 5


class Step(NamedTuple):
    """What a step did.

    Attributes:
        mixture: the new one.
        objective: () of the one that went in.
        gain: () see `expected_gain`.
        rounding: () see `gain_by_rounding`.
    """

    mixture: GaussianMixture
    objective: Array
    gain: Array
    rounding: Array


class Progress(NamedTuple):
    """What the stopping rule remembers of the steps so far.

    Attributes:
        gain: () of the last step, in expected log-likelihood per unit of weight.
        ratio: () of the last gain to the one before.
        remaining: () extrapolated gain of the objective still to come.
        confirmed: () int, how many times in a row that was below the tolerance.
    """

    gain: Array
    ratio: Array
    remaining: Array
    confirmed: Array

    @classmethod
    def begin(cls, dtype: jnp.dtype) -> "Progress":
        """Before the first step nothing is known."""
        unknown = jnp.asarray(jnp.inf, dtype)
        return cls(jnp.zeros_like(unknown), unknown, unknown, jnp.asarray(0, jnp.int32))

    @classmethod
    def known(cls, remaining: Array, tol: Array) -> "Progress":
        """Where something else than the gains of steps says what remains."""
        confirmed = jnp.where(remaining < tol, CONFIRMATIONS, 0).astype(jnp.int32)
        return cls.begin(remaining.dtype)._replace(remaining=remaining, confirmed=confirmed)

    def update(self, gain: Array, rounding: Array, tol: Array) -> "Progress":
        """After a step.

        Args:
            gain: () of the step, see `expected_gain`.
            rounding: () a gain that says nothing, see `gain_by_rounding`: nothing remains.
            tol: () what may remain.
        """
        ratio = jnp.where(self.gain > 0, gain / jnp.where(self.gain > 0, self.gain, 1), jnp.inf)
        known = jnp.isfinite(self.ratio)
        climb = jnp.where(known, at_least(ratio - jnp.where(known, self.ratio, 0), 0), jnp.inf)
        gap = rate_gap(ratio)
        ahead = jnp.where(gap > 0, HORIZONS * climb / jnp.where(gap > 0, gap, 1), jnp.inf)
        remaining = remaining_gain(gain, jnp.minimum(1, ratio + ahead))
        arrived = gain <= rounding
        remaining = jnp.where(arrived, 0, remaining)
        once_more = jnp.where(arrived, CONFIRMATIONS, self.confirmed + 1)
        confirmed = jnp.where(remaining < tol, once_more, 0).astype(jnp.int32)
        return Progress(gain, ratio, remaining, confirmed)

    def converged(self) -> Array:
        """() bool."""
        return self.confirmed >= CONFIRMATIONS


def rate_gap(ratio: Array) -> Array:
    """1 - ρ for a ratio ρ² of successive gains; 0 where they don't fall."""
    return 1 - jnp.sqrt(jnp.clip(ratio, 0, 1))


def remaining_gain(gain: Array, ratio: Array) -> Array:
    """ρ² g / (1 - ρ), and infinity where the gains don't fall."""
    falls = ratio < 1
    return jnp.where(falls, ratio * gain / jnp.where(falls, rate_gap(ratio), 1), jnp.inf)


def expected_gain(new: GaussianMixture, old: GaussianMixture) -> Array:
    """What an EM step gained in the expected log-likelihood, per unit of weight: ().

    KL(w' ‖ w) + Σ w'_k KL(new_k ‖ old_k), a sum of terms that are not negative, each accurate
    however small it is. Components without weight don't count.
    """
    n_features = new.n_features
    weights = new.weights
    alive = weights > 0
    log_ratio = jnp.where(alive, new.log_weights - jnp.where(alive, old.log_weights, 0), 0)
    change = jnp.expm1(log_ratio)
    of_weights = jnp.sum(old.weights * ((1 + change) * log_ratio - change))
    shift = old.covariance.whiten((new.means - old.means)[None])[0]
    spread = kl_between_covariances(new.covariance, old.covariance, n_features)
    divergence = jnp.sum(shift**2, axis=-1) / 2 + spread
    return of_weights + jnp.sum(weights * divergence)


def gain_by_rounding(mixture: GaussianMixture) -> Array:
    """The expected gain that a step seems to have when rounding alone moves the parameters: ().

    Rounding moves means by some eps of their size, and a covariance by some eps of its diagonal,
    which the inverse of the correlation matrix blows up.
    """
    eps = 4 * float(jnp.finfo(mixture.means.dtype).eps)
    covariance, n_features = mixture.covariance, mixture.n_features
    shift = covariance.whiten(eps * mixture.means[None])[0]
    scale = jnp.sqrt(jnp.einsum("kii->ki", covariance.dense(n_features)))
    columns = jnp.eye(n_features, dtype=scale.dtype)[:, None, :] * scale[None]
    spread = eps * jnp.sum(covariance.whiten(columns) ** 2, axis=(0, 2))
    return jnp.sum(mixture.weights * (jnp.sum(shift**2, axis=-1) / 2 + spread**2 / 16))
