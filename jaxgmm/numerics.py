"""Small numerical tools that the rest of the library is built from."""

import operator
import string
from collections.abc import Callable
from functools import reduce
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

HIGHEST = lax.Precision.HIGHEST
T = TypeVar("T")

# Sums of at most so many terms, and loops of as many turns, are written out: as operations of their
# own they would cost more than their work.
FEW = 4


def einsum(subscripts: str, *operands: Array) -> Array:
    """`jnp.einsum` in the full precision of the dtype, on every platform.

    Sums of few terms are written out, and so become part of the operations around them.
    """
    if len(operands) == 2:
        first, second, output = _subscripts_of_all_axes(subscripts, *operands)
        summed = "".join(sorted({*first, *second} - {*output}))
        sizes = dict(zip(first + second, operands[0].shape + operands[1].shape, strict=True))
        if not summed or (len(summed) == 1 and sizes[summed] <= FEW):
            first_terms = _with_axes(operands[0], first, output + summed)
            second_terms = _with_axes(operands[1], second, output + summed)
            if not summed:
                return first_terms * second_terms
            terms = (first_terms[..., i] * second_terms[..., i] for i in range(sizes[summed]))
            return reduce(operator.add, terms)
    return jnp.einsum(subscripts, *operands, precision=HIGHEST)


def _subscripts_of_all_axes(subscripts: str, first: Array, second: Array) -> tuple[str, str, str]:
    """Those of both operands and of the output, with capital letters in place of dots."""
    inputs, output = subscripts.split("->")
    left, right = inputs.split(",")
    n_left, n_right = (
        array.ndim - len(letters.replace("...", ""))
        for letters, array in ((left, first), (right, second))
    )

    def spelled(letters: str, n_dots: int) -> str:
        return letters.replace("...", string.ascii_uppercase[26 - n_dots :])

    return spelled(left, n_left), spelled(right, n_right), spelled(output, max(n_left, n_right))


def _with_axes(array: Array, letters: str, wanted: str) -> Array:
    """The array with axes in the order that is wanted; those that it lacks have length 1."""
    present = [letter for letter in wanted if letter in letters]
    ordered = jnp.transpose(array, [letters.index(letter) for letter in present])
    return jnp.expand_dims(ordered, [i for i, letter in enumerate(wanted) if letter not in letters])


def align(array: Array, like: Array) -> Array:
    """`array` with leading axes of length 1, so that it has the rank of `like`."""
    return array.reshape((1,) * (like.ndim - array.ndim) + array.shape)


def difference(new: Array, old: Array) -> Array:
    """new - old, and 0 where both are the same infinity."""
    return jnp.where(new == old, 0, new - jnp.where(new == old, 0, old))


def at_least(value: Array, bound: ArrayLike) -> Array:
    """The larger of the two; NaN where the value is.

    Unlike that of `jnp.maximum`, its derivative doesn't ask whether the result equals the value: of
    a value that was computed once more for the derivative, and rounded otherwise, it would be lost.
    """
    return jnp.where(bound > value, bound, value)


def at_most(value: Array, bound: ArrayLike) -> Array:
    """The smaller of the two, see `at_least`."""
    return jnp.where(bound < value, bound, value)


def square_root(value: Array) -> Array:
    """√value, and 0, with derivative 0, where it is 0 or below; NaN where it is NaN."""
    nothing = value <= 0
    return jnp.where(nothing, 0, jnp.sqrt(jnp.where(nothing, 1, value)))


def shifted_exponentials(logits: Array, axis: int = -1) -> tuple[Array, Array, Array]:
    """exp(logits - top), its sum and top, the largest logit: what a softmax is made of.

    Where every entry is -inf the exponentials are 1, with zero gradient, and top is -inf.

    Args:
        logits: (..., K) or any other shape.
        axis: of the K entries; it stays, with length 1, in the sum and in top.
    """
    top = lax.stop_gradient(jnp.max(logits, axis=axis, keepdims=True))
    nowhere = jnp.isneginf(top)
    terms = jnp.exp(jnp.where(nowhere, 0, logits - jnp.where(nowhere, 0, top)))
    return terms, jnp.sum(terms, axis=axis, keepdims=True), top


def weighted_sum(weights: Array, values: Array) -> Array:
    """Σ w_n v_n over the rows that have a weight, whatever the others hold: (N,), (N,) -> ()."""
    return einsum("n,n->", weights, jnp.where(weights != 0, values, 0))


def logsumexp(logits: Array, axis: int = -1) -> Array:
    """log Σ exp over an axis; -inf with zero gradient where every entry is -inf."""
    _, total, top = shifted_exponentials(logits, axis)
    return jnp.squeeze(jnp.log(total) + top, axis)


def log_softmax(logits: Array, axis: int = -1) -> Array:
    """Over an axis, and uniform where every entry is -inf.

    The largest logit goes first: next to a huge one the logarithm of the sum would be rounded away.
    """
    top = lax.stop_gradient(jnp.max(logits, axis=axis, keepdims=True))
    nowhere = jnp.isneginf(top)
    below = jnp.where(nowhere, 0, logits - jnp.where(nowhere, 0, top))
    return below - jnp.expand_dims(logsumexp(below, axis), axis)


def smallest_variance(dtype: jnp.dtype) -> float:
    """The variance below which unit-scale data of this dtype are too near to rounding.

    With it, a mean that is rounded costs a row √eps of log-likelihood.
    """
    return float(jnp.finfo(dtype).eps) ** 1.5


@jax.jit
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
    start = (jnp.zeros_like(matrix), variances)
    return lax.fori_loop(0, n_features, next_column, start, unroll=n_features <= FEW)[0]


def factor_of_root(root: Array) -> Array:
    """The Cholesky factor of root rootᵀ, never squared: (..., M, D) -> (..., M, M), for M ≤ D."""
    upper = jnp.linalg.qr(jnp.swapaxes(root, -1, -2), mode="r")
    sign = jnp.where(jnp.diagonal(upper, axis1=-2, axis2=-1) < 0, -1, 1).astype(root.dtype)
    return jnp.swapaxes(sign[..., :, None] * upper, -1, -2)


@jax.jit
def inverse_of_lower(factor: Array) -> Array:
    """Inverses of lower triangular matrices, row by row.

    Not by `triangular_solve`: on a CPU that is LAPACK, whose threads go on spinning for a while on
    the cores that the next product needs.

    Args:
        factor: (..., D, D) lower triangular.

    Returns:
        (..., D, D) lower triangular.
    """
    return _inverse_by_rows(factor)


@jax.custom_jvp
def _inverse_by_rows(factor: Array) -> Array:
    identity = jnp.eye(factor.shape[-1], dtype=factor.dtype)

    def next_row(j: Array, inverse: Array) -> Array:
        row = lax.dynamic_index_in_dim(factor, j, axis=-2, keepdims=False)
        pivot = lax.dynamic_index_in_dim(row, j, axis=-1)
        known = einsum("...i,...ij->...j", row, inverse)
        unit = align(lax.dynamic_index_in_dim(identity, j, keepdims=False), known)
        return lax.dynamic_update_index_in_dim(inverse, (unit - known) / pivot, j, axis=-2)

    n_features = factor.shape[-1]
    start = jnp.zeros_like(factor)
    return lax.fori_loop(0, n_features, next_row, start, unroll=n_features <= FEW)


@_inverse_by_rows.defjvp
def _differentiate_inverse_by_rows(
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

    start = (matrix, jnp.ones(matrix.shape[:-2], bool))
    return lax.fori_loop(0, n_features, eliminate, start, unroll=n_features <= FEW)[1]


def rounding_of_sum(total: Array, first: Array, second: Array) -> Array:
    """What rounding added to `total = first + second`; 0 where the sum isn't finite."""
    return jnp.where(jnp.isfinite(total), (total - first) - second, 0)


def sum_over_chunks(
    summand: Callable[[Array, Array], T],
    n_rows: int,
    chunk_rows: int,
    wanted: Array | None = None,
) -> T:
    """Σ over row chunks, with compensated (two-sum) addition of the chunks.

    The data are never padded or copied: the last chunk starts early enough to be whole, and the
    rows that it shares with the one before are marked as not fresh.

    Args:
        summand: called as `summand(start, fresh)` with the chunk's first row, a scalar, and
            `fresh: (chunk_rows,)`, true for the rows that belong to this chunk. Returns a pytree
            of floats.
        n_rows: number of rows in all.
        chunk_rows: number of rows in a chunk, at most `n_rows`.
        wanted: () bool, whether to sum anything; None for always. No derivative goes backward
            through a sum that may not be wanted.
    """
    n_chunks = -(-n_rows // chunk_rows)
    if n_chunks == 1 and wanted is None:
        return summand(jnp.asarray(0), jnp.ones(chunk_rows, bool))

    def flat_summand(index: Array) -> Array:
        start = jnp.minimum(index * chunk_rows, n_rows - chunk_rows)
        fresh = start + jnp.arange(chunk_rows) >= index * chunk_rows
        return ravel_pytree(summand(start, fresh))[0]

    def add_chunk(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, lost = carry
        term = flat_summand(index) - lost
        new = total + term
        return new, rounding_of_sum(new, total, term)

    # Where derivatives go backward, what a chunk made on its way is made again.
    flat_summand = jax.checkpoint(flat_summand)
    shapes = jax.eval_shape(summand, jnp.asarray(0), jnp.ones(chunk_rows, bool))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    zeros, unravel = ravel_pytree(nothing)
    # A number of turns rather than a branch: in branches XLA's CPU backend splits no work.
    n_turns = n_chunks if wanted is None else jnp.where(wanted, n_chunks, 0)
    return unravel(lax.fori_loop(0, n_turns, add_chunk, (zeros, zeros))[0])


def map_over_chunks(function: Callable[[Array], T], x: Array, chunk_rows: int) -> T:
    """`function` on row chunks of x, each result written where it belongs.

    The last chunk starts early enough to be whole; rows that it shares with the one before are
    written twice.

    Args:
        function: maps (rows, D) to a pytree of (rows, ...), row by row.
        x: (N, D).
        chunk_rows: number of rows in a chunk.
    """
    n_rows = x.shape[0]
    if n_rows <= chunk_rows:
        return function(x)

    def write_chunk(index: Array, results: T) -> T:
        start = jnp.minimum(index * chunk_rows, n_rows - chunk_rows)
        found = function(lax.dynamic_slice_in_dim(x, start, chunk_rows))
        return jax.tree.map(
            lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, axis=0),
            results,
            found,
        )

    # Where derivatives go backward, what a chunk made on its way is made again.
    function = jax.checkpoint(function)
    of_chunk = jax.eval_shape(function, x[:chunk_rows])
    results = jax.tree.map(lambda leaf: jnp.zeros((n_rows, *leaf.shape[1:]), leaf.dtype), of_chunk)
    return lax.fori_loop(0, -(-n_rows // chunk_rows), write_chunk, results)


def chunk_size(n_rows: int, numbers_per_row: int) -> int:
    """Rows in a chunk such that its intermediate arrays stay in a cache, or fill an accelerator."""
    budget = 2**18 if jax.default_backend() == "cpu" else 2**26
    return max(1, min(n_rows, max(256, budget // numbers_per_row)))


def rows_of_features(x: Array, n_features: int) -> int:
    """Rows of x in a chunk whose features are multiplied fastest, or fill an accelerator.

    On a CPU with few features so many that one core's cache holds them; with many, so many that
    each operation is worth splitting among cores.
    """
    if jax.default_backend() != "cpu":
        return chunk_size(x.shape[0], n_features)
    n_bytes = min(2**15, 5 * 2**20 // n_features) if n_features >= 64 else 2**13
    return min(x.shape[0], max(512, n_bytes // x.dtype.itemsize))


@jax.custom_batching.custom_vmap
def agreed(flag: Array) -> Array:
    """The flag; in a batch, whether all have it, so that a branch on it stays a branch."""
    return flag


@agreed.def_vmap
def _agreed_in_batch(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    return jnp.all(flag), False
