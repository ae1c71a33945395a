"""Factors and inverses of small matrices, many at a time."""

import operator
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays.budgets import budget, by_platform
from jaxgmm.arrays.numerics import align, at_least, at_most, einsum, varying
from jaxgmm.kernels.factors import MOST_FEATURES, cholesky_factors, inverses_of_lower
from jaxgmm.kernels.launching import runs_with

# Matrices of at most so many rows are factorized number by number. That is compiled faster than a
# loop over columns, whose length doesn't matter; with more rows, the other way round.
TINY = 3


def cholesky(matrix: Array) -> Array:
    """Lower Cholesky factors that exist for every positive semidefinite matrix.

    The pivot of feature j is its variance given the features before it. Where rounding has eaten
    it, so that it is below D·eps of that feature's own variance, it is raised to that. No entry is
    larger than what its feature has left of its variance allows, or rounding would grow from column
    to column. Matrices with a condition number below 1 / (D·eps) are not touched.

    Args:
        matrix: (..., D, D) symmetric.

    Returns:
        (..., D, D) lower triangular.
    """
    return by_platform(lambda: _cholesky(matrix, _kernels_for(matrix)), asks_for="kernels")


def _kernels_for(matrix: Array) -> str | None:
    """How a kernel is run for matrices (..., D, D), see `kernels.launching`; None without one."""
    how = budget().kernels if TINY < matrix.shape[-1] <= MOST_FEATURES else None
    return how if runs_with(how, matrix) else None


@partial(jax.jit, static_argnames="how")
def _cholesky(matrix: Array, how: str | None) -> Array:
    if how is not None:
        return _cholesky_by_kernel(matrix, how)
    return (_cholesky_of_tiny if matrix.shape[-1] <= TINY else _cholesky_by_columns)(matrix)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _cholesky_by_kernel(matrix: Array, how: str) -> Array:
    return cholesky_factors(matrix, how)


@_cholesky_by_kernel.defjvp
def _differentiate_cholesky(
    _: str, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    return jax.jvp(_cholesky_by_columns, primals, tangents)


def _cholesky_by_columns(matrix: Array) -> Array:
    """`cholesky`, in a loop over columns."""
    n_features = matrix.shape[-1]
    precision = jnp.finfo(matrix.dtype)
    rows = jnp.arange(n_features)

    def next_column(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        factor, left = carry
        row = lax.dynamic_index_in_dim(factor, j, axis=-2, keepdims=False)
        column = lax.dynamic_index_in_dim(matrix, j, axis=-1, keepdims=False)
        variance = lax.dynamic_index_in_dim(column, j, axis=-1)
        column = column - einsum("...ij,...j->...i", factor, row)
        floor = jnp.maximum(n_features * precision.eps * variance, precision.tiny)
        pivot = at_least(lax.dynamic_index_in_dim(column, j, axis=-1), floor)
        root = jnp.sqrt(pivot)
        most = jnp.sqrt(jnp.maximum(left, 0))
        below = at_most(at_least(column / root, -most), most)
        column = jnp.where(rows == j, root, jnp.where(rows > j, below, 0))
        left = left - lax.stop_gradient(column) ** 2
        return lax.dynamic_update_index_in_dim(factor, column, j, axis=-1), left

    variances = lax.stop_gradient(jnp.diagonal(matrix, axis1=-2, axis2=-1))
    start = varying((jnp.zeros_like(matrix), variances))
    return lax.fori_loop(0, n_features, next_column, start)[0]


def _cholesky_of_tiny(matrix: Array) -> Array:
    """`cholesky`, number by number."""
    n_features = matrix.shape[-1]
    precision = jnp.finfo(matrix.dtype)
    factor = [[jnp.zeros_like(matrix[..., 0, 0])] * n_features for _ in range(n_features)]
    left = [lax.stop_gradient(matrix[..., i, i]) for i in range(n_features)]
    for j in range(n_features):
        column = [
            reduce(operator.sub, (factor[i][k] * factor[j][k] for k in range(j)), matrix[..., i, j])
            for i in range(j, n_features)
        ]
        floor = jnp.maximum(n_features * precision.eps * matrix[..., j, j], precision.tiny)
        factor[j][j] = root = jnp.sqrt(at_least(column[0], floor))
        for i in range(j + 1, n_features):
            most = jnp.sqrt(jnp.maximum(left[i], 0))
            factor[i][j] = at_most(at_least(column[i - j] / root, -most), most)
            left[i] = left[i] - lax.stop_gradient(factor[i][j]) ** 2
    return _matrix_of(factor)


def _matrix_of(rows: list[list[Array]]) -> Array:
    """(..., D, D) from D rows of D numbers (...)."""
    flat = jnp.stack([number for row in rows for number in row], axis=-1)
    return flat.reshape(*flat.shape[:-1], len(rows), len(rows))


@jax.custom_jvp
def inverse_of_lower(factor: Array) -> Array:
    """Inverses of lower triangular matrices, row by row.

    Not by `triangular_solve`: on a CPU that is LAPACK, whose threads go on spinning for a while on
    the cores that the next product needs.

    Args:
        factor: (..., D, D) lower triangular.

    Returns:
        (..., D, D) lower triangular.
    """
    return by_platform(lambda: _inverse(factor, _kernels_for(factor)), asks_for="kernels")


@partial(jax.jit, static_argnames="how")
def _inverse(factor: Array, how: str | None) -> Array:
    if how is not None:
        return inverses_of_lower(factor, how)
    return (_inverse_of_tiny if factor.shape[-1] <= TINY else _inverse_by_rows)(factor)


def _inverse_by_rows(factor: Array) -> Array:
    """`inverse_of_lower`, in a loop over rows."""
    n_features = factor.shape[-1]
    identity = jnp.eye(n_features, dtype=factor.dtype)

    def next_row(j: Array, inverse: Array) -> Array:
        row = lax.dynamic_index_in_dim(factor, j, axis=-2, keepdims=False)
        pivot = lax.dynamic_index_in_dim(row, j, axis=-1)
        known = einsum("...i,...ij->...j", row, inverse)
        unit = align(lax.dynamic_index_in_dim(identity, j, keepdims=False), known)
        return lax.dynamic_update_index_in_dim(inverse, (unit - known) / pivot, j, axis=-2)

    return lax.fori_loop(0, n_features, next_row, jnp.zeros_like(factor))


def _inverse_of_tiny(factor: Array) -> Array:
    """`inverse_of_lower`, number by number."""
    n_features = factor.shape[-1]
    inverse = [[jnp.zeros_like(factor[..., 0, 0])] * n_features for _ in range(n_features)]
    for i in range(n_features):
        pivot = factor[..., i, i]
        inverse[i][i] = 1 / pivot
        for j in range(i):
            known = (factor[..., i, k] * inverse[k][j] for k in range(j, i))
            inverse[i][j] = -reduce(operator.add, known) / pivot
    return _matrix_of(inverse)


@inverse_of_lower.defjvp
def _differentiate_inverse_of_lower(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    inverse = inverse_of_lower(*primals)
    moved = einsum("...ij,...jk->...ik", jnp.tril(*tangents), inverse)
    return inverse, -einsum("...ij,...jk->...ik", inverse, moved)


@jax.jit
def is_positive_definite(matrix: Array) -> Array:
    """Whether all pivots of symmetric matrices are positive: (..., D, D) -> (...) bool.

    Not by `eigvalsh`, which for a batch calls LAPACK once for each matrix.
    """
    n_features = matrix.shape[-1]

    def eliminate(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        left, positive = carry
        column = lax.dynamic_index_in_dim(left, j, axis=-1, keepdims=False)
        pivot = lax.dynamic_index_in_dim(column, j, axis=-1)
        share = column / pivot
        positive &= pivot[..., 0] > 0
        return left - share[..., :, None] * column[..., None, :], positive

    start = varying((matrix, jnp.ones(matrix.shape[:-2], bool)))
    return lax.fori_loop(0, n_features, eliminate, start)[1]
