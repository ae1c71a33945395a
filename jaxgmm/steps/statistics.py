"""Sufficient statistics: what an E-step leaves of the data. They are small, and they add."""

from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.tree_util import GetAttrKey
from jax.typing import ArrayLike

from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.numerics import einsum

LEAVES = ("log_likelihood", "count", "first", "second", "multiple", "scaled_origin")


class Origin:
    """The origin of statistics, stored as a multiple of it and the same multiple of one.

    So all leaves are linear in the rows. Of zeros, which are statistics of nothing, it is 0; of
    others without a multiple, such as differences, NaN.
    """

    def __get__(self, statistics: Any, owner: Any = None) -> Array:
        if statistics is None:
            raise AttributeError("the origin has no default")
        nothing = (statistics.multiple == 0) & (statistics.count == 0)
        multiple = jnp.where(nothing, 1, statistics.multiple)
        return statistics.scaled_origin / multiple[..., None]

    def __set__(self, statistics: Any, origin: Array) -> None:
        # What stands for an array in a tree, such as an axis of `jax.vmap`, stands for both.
        multiple: Any = origin
        if hasattr(origin, "dtype"):
            multiple = np.ones(origin.shape[:-1], origin.dtype)
        object.__setattr__(statistics, "multiple", multiple)
        object.__setattr__(statistics, "scaled_origin", origin)


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False, repr=False)
class SufficientStatistics:
    """Sums over rows n with weight w_n and responsibility r_nk, about an origin.

    They add with `+` and `sum`, a number times them is a weighting of the rows, and `psum` adds
    those of all devices. As a pytree all leaves are linear in the rows: instead of the origin
    there are a multiple of it and that multiple, of which the origin is the quotient. So adding,
    scaling, averaging or `jax.lax.psum` leaf by leaf is right, too, for statistics about the same
    origin.

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
    origin: Origin = Origin()

    # An array of NumPy times statistics is theirs to say, not an array of objects.
    __array_ufunc__ = None

    def __repr__(self) -> str:
        """The leaves, which may be anything where a tree was mapped."""
        leaves = ", ".join(f"{name}={getattr(self, name)!r}" for name in LEAVES)
        return f"SufficientStatistics({leaves})"

    def tree_flatten_with_keys(self) -> tuple[tuple[tuple[GetAttrKey, Any], ...], None]:
        """The leaves, by name."""
        return tuple((GetAttrKey(name), getattr(self, name)) for name in LEAVES), None

    @classmethod
    def tree_unflatten(cls, _: None, leaves: Any) -> Self:
        """Statistics of such leaves, whatever they are."""
        statistics = object.__new__(cls)
        for name, leaf in zip(LEAVES, leaves, strict=True):
            object.__setattr__(statistics, name, leaf)
        return statistics

    def __add__(self, other: "SufficientStatistics") -> "SufficientStatistics":
        """Statistics of both sets of rows, about the origin of the first.

        Raises:
            ValueError: the kinds of second moment differ, or, where values are known, the origins.
        """
        if not isinstance(other, SufficientStatistics):
            return NotImplemented
        if self.second.shape != other.second.shape:
            raise ValueError(
                f"second moments differ in shape: {self.second.shape} and {other.second.shape}; "
                "gather both with the same mixture and covariance_type"
            )
        origin = self.origin
        if not is_concrete(origin, other.origin):
            other = other.about(origin)
        elif not np.any(np.asarray(self.count)):
            origin = other.origin
        elif np.any(np.asarray(other.count)) and not np.array_equal(origin, other.origin):
            # Origins of sums are quotients, which rounding may move.
            eps = 8 * float(jnp.finfo(origin.dtype).eps)
            if not np.allclose(origin, other.origin, rtol=eps, atol=0):
                raise ValueError(
                    "statistics about different origins don't add; use other.about(self.origin)"
                )
            other = other.about(origin)
        return SufficientStatistics(
            log_likelihood=self.log_likelihood + other.log_likelihood,
            count=self.count + other.count,
            first=self.first + other.first,
            second=self.second + other.second,
            origin=origin,
        )

    def __radd__(self, other: Any) -> "SufficientStatistics":
        """The 0 that `sum` begins with adds nothing."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __mul__(self, rate: ArrayLike) -> "SufficientStatistics":
        """Statistics of the same rows with `rate` times their weights.

        Args:
            rate: () a number, which may be traced.

        Raises:
            ValueError: not a scalar.
        """
        if isinstance(rate, SufficientStatistics):
            return NotImplemented
        if np.ndim(rate) != 0:
            raise ValueError(
                f"statistics can be multiplied by a scalar, got shape {np.shape(rate)}; for a "
                "batch of them use jax.vmap"
            )
        rate = jnp.asarray(rate, self.count.dtype)
        return SufficientStatistics(
            log_likelihood=rate * self.log_likelihood,
            count=rate * self.count,
            first=rate * self.first,
            second=rate * self.second,
            origin=self.origin,
        )

    __rmul__ = __mul__

    def psum(self, axis_name: Any) -> "SufficientStatistics":
        """Statistics of the rows of all devices, or of all elements of a mapped axis.

        Args:
            axis_name: of `jax.shard_map` or `jax.vmap`, or several.

        Returns:
            About the average of their origins, which usually are all the same.
        """
        moved = self.about(lax.pmean(self.origin, axis_name))
        return lax.psum(moved, axis_name)

    def about(self, origin: Array) -> "SufficientStatistics":
        """The same statistics about another origin.

        Args:
            origin: (K, D).
        """
        shift = origin - self.origin
        moved = self.count[..., None] * shift
        of_components = -2
        if self.second.ndim > self.first.ndim:
            of_components = -3
            cross = einsum("...ki,...kj->...kij", self.first, shift)
            square = einsum("...ki,...kj->...kij", moved, shift)
            change = square - cross - jnp.swapaxes(cross, -1, -2)
        else:
            change = moved * shift - 2 * self.first * shift
        if self.second.shape[of_components] != change.shape[of_components]:
            change = jnp.sum(change, axis=of_components, keepdims=True)
        return SufficientStatistics(
            log_likelihood=self.log_likelihood,
            count=self.count,
            first=self.first - moved,
            second=self.second + change,
            origin=origin,
        )
