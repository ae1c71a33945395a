"""The stopping rule: judge progress from the parameters, and extrapolate what is left to gain.

Near a maximum EM is linear: the gains of successive steps form a sum of geometric series, one for
each direction, and the slowest dominates in the end. With ρ² the ratio of successive gains g, what
a step leaves to gain is ρ² g / (1 - ρ): the step covers the share 1 - ρ of the way, and the
log-likelihood has 1 - ρ of the curvature of the expected log-likelihood in which g is measured.

EM also slows near saddle points, where the ratio of gains climbs through 1. A climbing ratio is
therefore carried forward `LOOK_AHEAD` steps before it is used.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxgmm.covariance import kl_between_covariances
from jaxgmm.mixture import GaussianMixture

LOOK_AHEAD = 10


class Progress(NamedTuple):
    """What the stopping rule remembers of the steps so far.

    Attributes:
        gain: () of the last step, in expected log-likelihood per unit of weight.
        ratio: () of the last gain to the one before.
        remaining: () extrapolated gain of the objective still to come.
    """

    gain: Array
    ratio: Array
    remaining: Array

    @classmethod
    def begin(cls, dtype: jnp.dtype) -> "Progress":
        """Before the first step nothing is known."""
        unknown = jnp.asarray(jnp.inf, dtype)
        return cls(gain=jnp.zeros_like(unknown), ratio=unknown, remaining=unknown)

    def update(self, gain: Array, rounding: Array) -> "Progress":
        """After a step.

        Args:
            gain: () of the step, see `expected_gain`.
            rounding: () a gain that says nothing, see `gain_by_rounding`.
        """
        ratio = gain / jnp.where(self.gain > 0, self.gain, jnp.finfo(gain.dtype).tiny)
        climb = ratio - jnp.where(jnp.isfinite(self.ratio), self.ratio, 0)
        ahead = ratio + LOOK_AHEAD * jnp.maximum(climb, 0)
        rate = jnp.sqrt(jnp.clip(ahead, 0, 1))
        extrapolated = jnp.where(ahead < 1, ahead * gain / (1 - rate), jnp.inf)
        return Progress(gain, ratio, jnp.where(gain <= rounding, 0, extrapolated))


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
    """The expected gain that a step seems to have when rounding alone moves the parameters: ()."""
    eps = 4 * float(jnp.finfo(mixture.means.dtype).eps)
    shift = mixture.covariance.whiten(eps * mixture.means[None])[0]
    divergence = jnp.sum(shift**2, axis=-1) / 2 + mixture.n_features * eps**2
    return jnp.sum(mixture.weights * divergence)
