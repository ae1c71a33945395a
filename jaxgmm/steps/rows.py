"""The data, and the coordinates in which they are read: in chunks, never as a copy."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays import shards
from jaxgmm.arrays.chunks import ChunkRows, chunk_size, largest_over_chunks, sum_over_chunks
from jaxgmm.arrays.numerics import einsum, in_unit_of
from jaxgmm.steps.standardization import Standardization

T = TypeVar("T")


class Rows(NamedTuple):
    """Weighted rows and the coordinates in which they are read.

    Attributes:
        standardization: the coordinates.
        x: (N, D) in the data's units.
        weights: (N,) not negative.
        log_prior: (N, K) added to the logits of each row, or None.
    """

    standardization: Standardization
    x: Array
    weights: Array
    log_prior: Array | None = None

    def with_prior(
        self, logits: Array, numbers: Array, weights: Array
    ) -> tuple[Array, Array | None]:
        """Logits (K, rows) of consecutive rows with what is known beforehand of these.

        Returns:
            The logits, less what their prior is at most; and that: (rows,), or None without any. In
            sums with it, which may be large and says nothing about the components, they would lose
            digits.
        """
        if self.log_prior is None:
            return logits, None
        prior = chunk_of(self.log_prior, numbers, weights).T
        most = lax.stop_gradient(jnp.max(prior, axis=0))
        most = jnp.where(jnp.isfinite(most), most, 0)
        return logits + (prior - most[None]), most

    def sum(self, summand: Callable[[Array, Array, Array], T], chunk_rows: ChunkRows | int) -> T:
        """Σ over the rows of a function of a chunk of them, those of other devices included.

        Args, see `own_sum`.
        """
        return shards.total(self.own_sum(summand, chunk_rows))

    def own_sum(
        self,
        summand: Callable[[Array, Array, Array], T],
        chunk_rows: ChunkRows | int,
        wanted: Array | None = None,
    ) -> T:
        """Σ over this device's rows of a function of a chunk of them.

        Args:
            summand: called with the numbers of some rows: (rows,) int, their weights: (rows,), and
                the rows themselves, standardized: (rows, D). Returns a pytree of sums.
            chunk_rows: rows in a chunk, at most N.
            wanted: () bool, whether to sum anything, see `sum_over_chunks`.
        """

        def summand_of(start: Array, fresh: Array) -> T:
            n_rows = fresh.shape[0]
            weights = jnp.where(fresh, lax.dynamic_slice_in_dim(self.weights, start, n_rows), 0)
            z = self.standardization.standardize(
                lax.dynamic_slice_in_dim(self.x, start, n_rows), weights
            )
            return summand(start + jnp.arange(n_rows), weights, z)

        return sum_over_chunks(summand_of, self.x.shape[0], chunk_rows, wanted)

    def total_weight(self) -> Array:
        """Σ w_n: ()."""
        return shards.total(jnp.sum(self.weights))

    def n_present(self) -> Array:
        """The number of rows that have a weight: () int."""
        return shards.total(jnp.sum(self.weights > 0))

    def chunk_rows(self, numbers_per_row: int) -> ChunkRows:
        """Rows in a chunk for which so many numbers per row are computed."""
        return chunk_size(self.x.shape[0], numbers_per_row)

    def moments(self) -> tuple[Array, Array]:
        """Weighted means of z and z², feature by feature: (D,), (D,)."""

        def summand(_: Array, weights: Array, z: Array) -> Array:
            return jnp.stack([einsum("n,nf->f", weights, of) for of in (jnp.ones_like(z), z, z**2)])

        count, first, second = self.sum(summand, self.chunk_rows(self.x.shape[1]))
        return first / count, second / count


def chunk_of(array: Array, numbers: Array, weights: Array) -> Array:
    """The rows of an array (N, ...) with consecutive numbers; zeros where they have no weight.

    Args:
        array: (N, F).
        numbers: (rows,) int.
        weights: (rows,) of these rows.
    """
    found = lax.dynamic_slice_in_dim(array, numbers[0], numbers.size)
    return jnp.where(weights[:, None] != 0, found, 0)


def largest_distance(x: Array, weights: Array, center: Array) -> Array:
    """The largest distance of rows with a weight, by feature: (D,), constant to differentiation.

    In chunks, as XLA writes distances of all rows to memory before it reduces them.

    Args:
        x: (N, D).
        weights: (N,).
        center: (D,).
    """
    x, weights, center = lax.stop_gradient((x, weights, center))

    def distance_in(start: Array, n_rows: int) -> tuple[Array, tuple[()]]:
        present = lax.dynamic_slice_in_dim(weights, start, n_rows) != 0
        distance = jnp.abs(lax.dynamic_slice_in_dim(x, start, n_rows) - center[None])
        return jnp.max(jnp.where(present[:, None], distance, 0), axis=0), ()

    return shards.largest(largest_over_chunks(distance_in, x.shape[0], chunk_size(*x.shape))[0])


def farthest_rows(rows: Rows, most: int) -> Array:
    """Rows that are farthest from the center in a feature, standardized, constant to derivatives.

    Args:
        rows: N.
        most: at most so many of them are wanted, of the features in which they are farthest.

    Returns:
        (min(D, most), D).
    """
    standardization, x, weights, _ = lax.stop_gradient(rows)

    def farthest_in(start: Array, n_rows: int) -> tuple[Array, Array]:
        z = standardization.standardize(
            lax.dynamic_slice_in_dim(x, start, n_rows),
            lax.dynamic_slice_in_dim(weights, start, n_rows),
        )
        distance = jnp.abs(z)
        return jnp.max(distance, axis=0), start + jnp.argmax(distance, axis=0)

    distance, numbers = largest_over_chunks(farthest_in, x.shape[0], chunk_size(*x.shape))
    if distance.size > most:
        features = lax.top_k(shards.largest(distance), most)[1]
        distance, numbers = distance[features], numbers[features]
    farthest = standardization.standardize(x[numbers], weights[numbers])
    return shards.of_the_largest(distance, farthest)


def standardization_of(x: Array, weights: Array, isotropic: bool | Array) -> Standardization:
    """The standardization of weighted data.

    Args:
        x: (N, D).
        weights: (N,).
        isotropic: whether all features must have the same scale.
    """
    # In three passes, of which each is about what the one before found: sums of squares about zero
    # would lose what an offset of many deviations has of the digits, and squares of raw data leave
    # the range of float32 from 10¹⁹ on. So the largest |x| is the unit of the first moments, these
    # are the center of the second ones, and these are the scale, in which the variance is 1.
    dtype = jnp.finfo(x.dtype)
    magnitude = largest_distance(x, weights, jnp.zeros_like(x[0]))
    magnitude = jnp.where(magnitude > float(dtype.tiny) / float(dtype.eps), magnitude, 1)

    none, one = jnp.zeros_like(magnitude), jnp.ones_like(magnitude)
    at_zero = Standardization(none, magnitude, one, jnp.asarray(isotropic))
    center = lax.stop_gradient(Rows(at_zero, x, weights).moments()[0]) * magnitude
    at_center = replace(at_zero, center=center)
    deviation = jnp.sqrt(lax.stop_gradient(Rows(at_center, x, weights).moments()[1]))
    # What is left of a constant about its mean is rounding. It has no scale but its magnitude.
    constant = deviation <= 4 * float(dtype.eps)
    constant = jnp.where(isotropic, jnp.all(constant), constant)
    # The root of the mean variance, relative to the largest magnitude, so that no square overflows.
    largest = jnp.max(magnitude)
    spread = jnp.where(constant, 1, deviation * (magnitude / largest))
    own = magnitude * jnp.where(constant, 1, deviation)
    scale = jnp.where(isotropic, largest * jnp.sqrt(jnp.mean(spread**2)), own)

    usable = jnp.isfinite(center) & jnp.isfinite(scale)
    standardization = replace(
        at_zero, center=jnp.where(usable, center, 0), scale=jnp.where(usable, scale, 1)
    )
    variance = jnp.where(
        usable & ~constant, _variance(standardization, x, weights, shards.row_axes()), 1
    )
    impossible = shards.largest(jnp.any(~(weights >= 0)).astype(int)) > 0
    return replace(standardization, variance=jnp.where(impossible, jnp.nan, variance))


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _variance(
    standardization: Standardization, x: Array, weights: Array, axes: tuple[str, ...]
) -> Array:
    """The variance of weighted data in coordinates that are constant to differentiation: (D,).

    Backward, a derivative by rows would be gathered chunk by chunk in another array like x. From
    d Var z = Σ w (2 (z - mean) dz + ((z - mean)² - Var z) dw / w) / Σ w it is one product for each
    number of the data, made where it is added.
    """
    first, second = Rows(standardization, x, weights).moments()
    return second - first**2


@_variance.defjvp
@shards.rule_over_rows
def _differentiate_variance(
    axes: tuple[str, ...],
    primals: tuple[Standardization, Array, Array],
    tangents: tuple[Standardization, Array, Array],
) -> tuple[Array, Array]:
    standardization, x, weights = primals
    _, x_moved, weights_moved = tangents
    mean, second = Rows(standardization, x, weights).moments()
    variance = second - mean**2
    apart = standardization.standardize(x, weights) - mean[None]
    moved = jnp.where(weights[:, None] != 0, x_moved, 0) / standardization.scale[None]
    change = 2 * weights[:, None] * apart * moved
    change += weights_moved[:, None] * (apart**2 - variance[None])
    # In two messages: one sum of tangents and of what doesn't depend on them can't be transposed.
    change, weight = shards.total(jnp.sum(change, axis=0)), shards.total(jnp.sum(weights))
    return variance, change / weight


def weights_in_own_unit(weights: Array) -> tuple[Array, Array]:
    """Weights (..., N) in a unit of which the largest is between 1 and 4, and the unit: (...)."""
    largest = jnp.max(jnp.abs(lax.stop_gradient(weights)), axis=-1)
    return in_unit_of(weights, shards.largest(largest))


def as_they_are(x: Array, weights: Array, log_prior: Array | None = None) -> Rows:
    """Rows in the data's own coordinates."""
    one = jnp.ones(x.shape[1], x.dtype)
    zero = jnp.zeros_like(one)
    standardization = Standardization(
        center=zero, scale=one, variance=one, isotropic=jnp.asarray(False)
    )
    return Rows(standardization, x, weights, log_prior)
