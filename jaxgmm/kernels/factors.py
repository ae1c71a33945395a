"""Cholesky factors, and inverses of them, in one launch each: a program for each matrix.

In XLA each column of a factor, and each row of an inverse, is a turn of a loop of three or four
launches. A program has the whole matrix in its registers instead. What is computed is that of
`arrays/matrices.py`, where of each column all that is known is subtracted at once, and here at once
from all that are left.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

from jaxgmm.kernels.launching import launch, power_of_two

# Rows of a matrix that a program has room for; with more than so many numbers it has more warps.
MOST_FEATURES, NUMBERS_OF_A_WARP = 64, 2**10


def cholesky_factors(matrix: Array, how: str) -> Array:
    """Lower Cholesky factors of matrices (..., D, D) float32; `how`: see `launch`."""
    return _of_each(_factor, "cholesky_factors", matrix, how)


def inverses_of_lower(factor: Array, how: str) -> Array:
    """Inverses of lower triangular matrices (..., D, D) float32; `how`: see `launch`."""
    return _of_each(_inverse, "inverses_of_lower", factor, how)


def _of_each(function: Callable[..., Array], name: str, matrices: Array, how: str) -> Array:
    d = matrices.shape[-1]
    width = power_of_two(d)
    flat = matrices.reshape(-1, d, d)
    n_warps = max(1, width**2 // NUMBERS_OF_A_WARP)
    found = launch(
        partial(_program, function, d, width),
        name,
        how,
        (flat.shape[0],),
        flat.shape,
        n_warps,
        flat,
    )
    return found.reshape(matrices.shape)


def _program(
    function: Callable[..., Array], d: int, width: int, matrices: Any, results: Any
) -> None:
    """The kernel: the function of one matrix, which is filled up with an identity."""
    from jax.experimental.pallas import triton

    at = lax.iota(jnp.int32, width)
    inside = (at < d)[:, None] & (at < d)[None]
    nearest = jnp.minimum(at, d - 1)
    matrix = triton.load(matrices.at[pl.program_id(0), nearest[:, None], nearest[None]])
    identity = (at[:, None] == at[None]).astype(jnp.float32)
    found = function(jnp.where(inside, matrix, identity), d, at)
    triton.store(results.at[pl.program_id(0), at[:, None], at[None]], found, mask=inside)


def _factor(matrix: Array, d: int, at: Array) -> Array:
    """The factor of the first D rows: (width, width)."""
    precision = jnp.finfo(jnp.float32)
    eps, tiny = float(precision.eps), float(precision.tiny)
    variances = jnp.sum(jnp.where(at[:, None] == at[None], matrix, 0), axis=1)

    def next_column(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rest, factor, left = carry
        column = jnp.sum(jnp.where((at == j)[None], rest, 0), axis=1)
        pivot, variance = (jnp.sum(jnp.where(at == j, of, 0)) for of in (column, variances))
        floor = jnp.maximum(d * eps * variance, tiny)
        root = jnp.sqrt(jnp.where(floor > pivot, floor, pivot))
        most = jnp.sqrt(jnp.maximum(left, 0))
        below = column / root
        below = jnp.where(-most > below, -most, below)
        below = jnp.where(most < below, most, below)
        column = jnp.where(at == j, root, jnp.where(at > j, below, 0))
        factor = jnp.where((at == j)[None], column[:, None], factor)
        return rest - column[:, None] * column[None], factor, left - column**2

    start = (matrix, jnp.zeros_like(matrix), variances)
    return lax.fori_loop(0, d, next_column, start)[1]


def _inverse(factor: Array, d: int, at: Array) -> Array:
    """The inverse of the first D rows: (width, width)."""

    def next_row(j: Array, inverse: Array) -> Array:
        row = jnp.sum(jnp.where((at == j)[:, None], factor, 0), axis=0)
        pivot = jnp.sum(jnp.where(at == j, row, 0))
        known = jnp.sum(row[:, None] * inverse, axis=0)
        unit = jnp.where(at == j, 1.0, 0.0)
        return jnp.where((at == j)[:, None], ((unit - known) / pivot)[None], inverse)

    return lax.fori_loop(0, d, next_row, jnp.zeros_like(factor))
