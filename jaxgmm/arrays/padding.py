"""Rows of weight 0 behind small data, so that data of many sizes are fitted by few programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.arrays.host import (
    chosen_device,
    from_host,
    is_concrete,
    is_small,
    on_host,
    unit_weights,
)

SMALLEST = 64


def padded_rows(n_rows: int) -> int:
    """At most half as many rows again, and at least 64."""
    return max(SMALLEST, bucket_size(n_rows))


def power_of_two(number: int) -> int:
    """The smallest that is no less."""
    return 1 << (number - 1).bit_length()


def bucket_size(number: int) -> int:
    """The next power of two, or half way to it."""
    power = power_of_two(number)
    return power if number > 3 * power // 4 else 3 * power // 4


def with_padding(
    x: Array, weights: Array | None, others: Any, of_rows: Any = None
) -> tuple[Array, Array, Any]:
    """Data, and what else there is of rows, of few sizes; as they are if they are large or traced.

    Compiling takes seconds, and a fit to small data much less. Where data are large it is the other
    way round, and a copy of them would not be cheap. What is traced is part of a program already,
    and what is spread over devices stays as it is.

    Args:
        x: (N, D).
        weights: (N,), or None for ones.
        others: all else that a fit depends on.
        of_rows: a tree of (N, ...), or None.
    """
    weights = unit_weights(x) if weights is None else weights
    data = (x, weights, of_rows)
    if not is_concrete(*jax.tree.leaves((data, others))) or not is_small(x):
        return data
    if len(x.sharding.device_set) > 1:
        return data
    n_rows = padded_rows(x.shape[0])
    return jax.tree.map(lambda array: with_rows(array, n_rows, by_numpy=True), data)


def with_rows(array: Array, n_rows: int, by_numpy: bool = False) -> Array:
    """(N, ...) -> (n_rows, ...), by zeros.

    Args:
        array: (N, ...).
        n_rows: at least N.
        by_numpy: whether known values go through the host wherever they are, as JAX compiles a
            program for each size; or else only where that takes no transfer.
    """
    missing = n_rows - array.shape[0]
    if missing == 0:
        return array
    widths = [(0, missing), *[(0, 0)] * (array.ndim - 1)]
    if not is_concrete(array):
        return jnp.pad(array, widths)
    if not (by_numpy or on_host(array)):
        with jax.ensure_compile_time_eval():
            return jnp.pad(array, widths)
    return from_host(np.pad(np.asarray(array), widths), chosen_device(array))
