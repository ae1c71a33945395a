"""Rows of weight 0 behind small data, so that data of many sizes are fitted by few programs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.validation import from_host, is_concrete, is_small, unit_weights

SMALLEST = 64
# Numbers in a batch above which it isn't copied.
LARGE_BATCH = 2**24
# Models, and about as many numbers, that are fitted by one call where there are several at a time.
MODELS_IN_BLOCK, BLOCK = 64, 2**22


def padded_rows(n_rows: int) -> int:
    """At most half as many rows again, and at least 64."""
    return max(SMALLEST, _rounded_up(n_rows))


def _rounded_up(number: int) -> int:
    """The next power of two, or half way to it."""
    power = 1 << (number - 1).bit_length()
    return power if number > 3 * power // 4 else 3 * power // 4


def with_padding(x: Array, weights: Array | None, others: Any) -> tuple[Array, Array]:
    """Data and weights of which there are few sizes: as they are where they are large or traced.

    Compiling takes seconds, and a fit to small data much less. Where data are large it is the other
    way round, and a copy of them would not be cheap. What is traced is part of a program already.

    Args:
        x: (N, D).
        weights: (N,), or None for ones.
        others: all else that a fit depends on.
    """
    weights = unit_weights(x) if weights is None else weights
    if not is_small(x) or not is_concrete(x, weights, *jax.tree.leaves(others)):
        return x, weights
    n_rows = padded_rows(x.shape[0])
    return with_rows(x, n_rows), with_rows(weights, n_rows)


def padded_models(n_models: int, size: int) -> int:
    """At most half as many models again; as many as there are where their data are large.

    Args:
        n_models: B.
        size: of the data, in numbers.
    """
    return n_models if size > LARGE_BATCH else _rounded_up(n_models)


def models_in_block(n_models: int, size: int, n_blocks: int) -> int:
    """How many models to fit by one call, where several are made at a time.

    Args:
        n_models: B.
        size: of the data, in numbers.
        n_blocks: so many calls at a time.
    """
    fitting = max(1, BLOCK * n_models // size)
    return min(MODELS_IN_BLOCK, fitting, _rounded_up(-(-n_models // n_blocks)))


def with_models(array: Any, first: int, n_models: int) -> Array:
    """So many models of (B, ...), from a first one on; behind the last there are zeros."""
    if first or array.shape[0] > n_models:
        array = from_host(np.asarray(array)[first : first + n_models])
    return with_rows(array, n_models)


def with_rows(array: Array, n_rows: int) -> Array:
    """(N, ...) -> (n_rows, ...), by zeros.

    By NumPy where values are known, as JAX would compile a program for each size.
    """
    missing = n_rows - array.shape[0]
    if missing == 0:
        return array
    widths = [(0, missing), *[(0, 0)] * (array.ndim - 1)]
    if not is_concrete(array):
        return jnp.pad(array, widths)
    return from_host(np.pad(np.asarray(array), widths))
