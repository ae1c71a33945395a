"""Sufficient statistics: what an E-step leaves of the data. They are small, and they add."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.numerics import einsum
from jaxgmm.validation import is_concrete


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SufficientStatistics:
    """Sums over rows n with weight w_n and responsibility r_nk, about an origin.

    Attributes:
        log_likelihood: () Σ w_n log p(x_n), in nats.
        count: (K,) Σ w_n r_nk.
        first: (K, D) Σ w_n r_nk (x_n - origin_k).
        second: (K, D, D) Σ w_n r_nk (x_n - origin_k)(x_n - origin_k)ᵀ, or (K, D) its diagonals;
            inside fits with one covariance for all components (1, ...), their sum.
        origin: (K, D) what the moments are about: the means of the mixture that the E-step was
            given, so that nothing cancels far from zero or in tight components.
    """

    log_likelihood: Array
    count: Array
    first: Array
    second: Array
    origin: Array

    def __add__(self, other: "SufficientStatistics") -> "SufficientStatistics":
        """Statistics of both sets of rows.

        Raises:
            ValueError: the kinds of second moment differ, or, where values are known, the origins.
        """
        if self.second.shape != other.second.shape:
            raise ValueError(
                f"second moments differ in shape: {self.second.shape} and {other.second.shape}; "
                "gather both with the same mixture and covariance_type"
            )
        known = is_concrete(self.origin, other.origin)
        if known and not np.array_equal(self.origin, other.origin):
            raise ValueError(
                "statistics about different origins don't add; use other.about(self.origin)"
            )
        return SufficientStatistics(
            log_likelihood=self.log_likelihood + other.log_likelihood,
            count=self.count + other.count,
            first=self.first + other.first,
            second=self.second + other.second,
            origin=self.origin,
        )

    def about(self, origin: Array) -> "SufficientStatistics":
        """The same statistics about another origin.

        Args:
            origin: (K, D).
        """
        shift = origin - self.origin
        moved = self.count[:, None] * shift
        if self.second.ndim == 3:
            cross = einsum("ki,kj->kij", self.first, shift)
            square = einsum("ki,kj->kij", moved, shift)
            change = square - cross - jnp.swapaxes(cross, 1, 2)
        else:
            change = moved * shift - 2 * self.first * shift
        if self.second.shape[0] != change.shape[0]:
            change = jnp.sum(change, axis=0, keepdims=True)
        return SufficientStatistics(
            log_likelihood=self.log_likelihood,
            count=self.count,
            first=self.first - moved,
            second=self.second + change,
            origin=origin,
        )
