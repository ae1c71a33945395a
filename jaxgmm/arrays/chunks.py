"""Rows a chunk at a time: how many, and sums and maps over all of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from jaxgmm.arrays import budgets
from jaxgmm.arrays.budgets import Budget, budget, by_platform, n_cores
from jaxgmm.arrays.numerics import all_in_batch, varying

T = TypeVar("T")

# Numbers in a chunk of rows that are so wide that few of them are many numbers.
LARGEST_CHUNK = 2**22
# A chunk of one core has no fewer rows, and is no larger than so many times what it should be.
FEWEST_OF_ONE_CORE, STRETCH = 128, 4 / 3
# A feature of a chunk in a core's cache, and from how many features on chunks are longer.
BYTES_OF_FEATURE, MANY_FEATURES = 2**13, 64


class Pieces(NamedTuple):
    """A partition of rows into chunks of one length.

    Attributes:
        length: rows in a chunk.
        n_chunks: how many.
        n_left: rows behind them, a shorter chunk of its own. Where there are none, the last of the
            chunks may start early, so that it is whole.
    """

    length: int
    n_chunks: int
    n_left: int

    def start(self, index: Array, n_rows: int) -> Array:
        """The first row of a chunk."""
        return jnp.minimum(index * self.length, n_rows - self.length)

    def fresh(self, index: Array, n_rows: int) -> Array:
        """Mask of the rows of a chunk that aren't in the one before: (length,) bool."""
        return self.start(index, n_rows) + jnp.arange(self.length) >= index * self.length


class ChunkRows(NamedTuple):
    """Rows in a chunk: on a CPU, and on an accelerator."""

    on_cpu: int
    on_accelerator: int

    def pieces(self, n_rows: int, sizes: Budget) -> Pieces:
        """On a platform with these sizes."""
        length = self.on_cpu if sizes.overlaps else self.on_accelerator
        if length is n_rows or length == n_rows:
            return Pieces(n_rows, 1, 0)
        if sizes.overlaps:
            return Pieces(length, -(-n_rows // length), 0)
        return Pieces(length, *divmod(n_rows, length))


def rounding_of_sum(total: Array, first: Array, second: Array) -> Array:
    """The rounding error of `total = first + second`; 0 where the sum isn't finite."""
    return jnp.where(jnp.isfinite(total), (total - first) - second, 0)


def over_pieces(function: Callable[[Pieces], T], n_rows: int, chunk_rows: ChunkRows | int) -> T:
    """A function of how rows are cut, for the platform that a program is made for.

    Args:
        function: returns arrays of the same shapes, whatever the pieces are.
        n_rows: N.
        chunk_rows: rows in a chunk; an int for all platforms.
    """
    if not isinstance(chunk_rows, ChunkRows):
        chunk_rows = ChunkRows(chunk_rows, chunk_rows)
    cpu, accelerator = budgets.CPU, budgets.ACCELERATOR
    if chunk_rows.pieces(n_rows, cpu) == chunk_rows.pieces(n_rows, accelerator):
        return function(chunk_rows.pieces(n_rows, cpu))
    return by_platform(lambda: function(chunk_rows.pieces(n_rows, budget())))


def sum_over_chunks(
    summand: Callable[[Array, Array], T],
    n_rows: int,
    chunk_rows: ChunkRows | int,
    wanted: Array | None = None,
) -> T:
    """Σ over row chunks, with compensated (two-sum) addition of the chunks.

    The data are never padded or copied.

    Args:
        summand: called as `summand(start, fresh)` with the chunk's first row, a scalar, and
            `fresh: (rows,)`, true for the rows that belong to this chunk. Returns a pytree of
            floats.
        n_rows: number of rows in all.
        chunk_rows: number of rows in a chunk, at most `n_rows`.
        wanted: () bool, whether to sum anything; None for always.
    """
    return over_pieces(partial(_sum_of_pieces, summand, n_rows, wanted), n_rows, chunk_rows)


def _sum_of_pieces(
    summand: Callable[[Array, Array], T], n_rows: int, wanted: Array | None, pieces: Pieces
) -> T:
    length, n_chunks, n_left = pieces
    if (n_chunks, n_left, wanted) == (1, 0, None):
        return summand(jnp.asarray(0), jnp.ones(length, bool))

    def add_chunk(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        return add(flat_summand(pieces.start(index, n_rows), pieces.fresh(index, n_rows)), carry)

    def add(term: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        total, lost = carry
        term = term - lost
        new = total + term
        return new, rounding_of_sum(new, total, term)

    # Where derivatives go backward, what a chunk made on its way is made again.
    @jax.checkpoint
    def flat_summand(start: Array, fresh: Array) -> Array:
        return ravel_pytree(summand(start, fresh))[0]

    shapes = jax.eval_shape(summand, jnp.asarray(0), jnp.ones(length, bool))
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    zeros, unravel = ravel_pytree(nothing)
    zeros = varying(zeros, shapes, wanted, as_rows=True)
    n_turns = n_chunks if wanted is None else jnp.where(wanted, n_chunks, 0)
    sums = lax.fori_loop(0, n_turns, add_chunk, (zeros, zeros))
    if n_left:
        fresh = jnp.ones(n_left, bool) if wanted is None else jnp.broadcast_to(wanted, n_left)
        sums = add(flat_summand(jnp.asarray(n_rows - n_left), fresh), sums)
    return unravel(sums[0])


def conditional_sum(number: Array, sums: Sequence[Callable[[Array | None], T]]) -> T:
    """The sum that has a number.

    In a batch each of its members has its own, whatever the others have: sums that any of them
    wants are made of all. On a CPU not by a branch, as XLA splits no work inside of one among
    cores, but by the number of turns that each takes, which no derivative can go backward through.

    Args:
        number: () int, from 0.
        sums: each called with `wanted` of `sum_over_chunks`.
    """

    def found(number_of_sum: int) -> T:
        of, wanted = sums[number_of_sum], ~all_in_batch(number != number_of_sum)
        if budget().branches_are_slow:
            return of(wanted)
        shapes = jax.eval_shape(of, None)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return lax.cond(
            wanted,
            lambda: varying(of(None), as_rows=True),
            lambda: varying(nothing, shapes, as_rows=True),
        )

    def chosen() -> T:
        result = found(0)
        for i in range(1, len(sums)):
            result = jax.tree.map(partial(jnp.where, number == i), found(i), result)
        # As the branches of platforms where there are some, whose results are alike.
        return varying(result, as_rows=True)

    return by_platform(chosen)


def map_over_chunks(function: Callable[[Array], T], x: Array, chunk_rows: ChunkRows | int) -> T:
    """`function` on row chunks of x, each result written where it belongs.

    Args:
        function: maps (rows, D) to a pytree of (rows, ...), row by row.
        x: (N, D).
        chunk_rows: number of rows in a chunk.
    """
    return over_pieces(partial(_map_over_pieces, function, x), x.shape[0], chunk_rows)


def _map_over_pieces(function: Callable[[Array], T], x: Array, pieces: Pieces) -> T:
    length, n_chunks, n_left = pieces
    n_rows = x.shape[0]
    if (n_chunks, n_left) == (1, 0):
        return function(x)

    def write_chunk(index: Array, results: T) -> T:
        start = pieces.start(index, n_rows)
        return write(function(lax.dynamic_slice_in_dim(x, start, length)), start, results)

    def write(found: T, start: Array, results: T) -> T:
        return jax.tree.map(
            lambda whole, part: lax.dynamic_update_slice_in_dim(whole, part, start, axis=0),
            results,
            found,
        )

    # Where derivatives go backward, what a chunk made on its way is made again.
    function = jax.checkpoint(function)
    of_chunk = jax.eval_shape(function, x[:length])
    results = jax.tree.map(lambda leaf: jnp.zeros((n_rows, *leaf.shape[1:]), leaf.dtype), of_chunk)
    results = lax.fori_loop(0, n_chunks, write_chunk, varying(results, of_chunk, as_rows=True))
    if n_left:
        last = n_rows - n_left
        results = write(function(x[last:]), jnp.asarray(last), results)
    return results


def largest_over_chunks(
    function: Callable[[Array, int], tuple[Array, T]], n_rows: int, chunk_rows: ChunkRows | int
) -> tuple[Array, T]:
    """The largest values, not negative, of a function of a chunk's first row and its length.

    Args:
        function: returns values (F,), and what goes with each of them: a pytree of (F, ...).
        n_rows: N.
        chunk_rows: rows in a chunk, at most N.

    Returns:
        (F,), NaN where any value is, and what went with them; what goes with zeros is any of it.
    """

    def larger(new: tuple[Array, T], old: tuple[Array, T]) -> tuple[Array, T]:
        taken = (new[0] > old[0]) | jnp.isnan(new[0])
        return jax.tree.map(
            lambda a, b: jnp.where(taken.reshape(-1, *(1,) * (a.ndim - 1)), a, b), new, old
        )

    def largest(pieces: Pieces) -> tuple[Array, T]:
        length, n_chunks, n_left = pieces
        if (n_chunks, n_left) == (1, 0):
            return function(jnp.asarray(0), length)

        def largest_so_far(index: Array, found: tuple[Array, T]) -> tuple[Array, T]:
            return larger(function(pieces.start(index, n_rows), length), found)

        shapes = jax.eval_shape(lambda: function(jnp.asarray(0), length))
        first = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        first = varying(first, shapes, as_rows=True)
        if n_left:
            first = function(jnp.asarray(n_rows - n_left), n_left)
        return lax.fori_loop(0, n_chunks, largest_so_far, first)

    return over_pieces(largest, n_rows, chunk_rows)


def chunk_size(n_rows: int, numbers_per_row: int) -> ChunkRows:
    """Rows in a chunk such that its intermediate arrays stay in a cache, or fill an accelerator.

    On a CPU no fewer than operations are worth beginning with, unless a few rows alone are large.
    """
    if not isinstance(n_rows, int):
        # A symbol of an export, which is not to be compared: all rows are one chunk.
        return ChunkRows(n_rows, n_rows)
    if n_rows == 0:
        return ChunkRows(0, 0)
    fewest = min(256, LARGEST_CHUNK // numbers_per_row)
    on_cpu = max(1, min(n_rows, max(fewest, budgets.CPU.chunk // numbers_per_row)))
    return ChunkRows(on_cpu, _equal_chunks(n_rows, numbers_per_row))


def rows_of_features(x: Array, n_features: int, n_components: int) -> ChunkRows:
    """Rows of x in a chunk whose features are multiplied fastest, or fill an accelerator.

    On a CPU the features of a chunk should fit into the caches, or blocks of them where they are
    many. Where one core isn't enough, chunks of many features are long enough for XLA to split each
    operation among cores.
    """
    on_cpu, on_accelerator = chunk_size(x.shape[0], n_features + n_components)
    n_rows, itemsize = x.shape[0], x.dtype.itemsize
    if not isinstance(n_rows, int) or n_rows == 0:
        return ChunkRows(on_cpu, on_accelerator)
    bytes_of_row = n_features * itemsize
    if _one_core_is_enough(bytes_of_row, n_features, n_components):
        most = max(FEWEST_OF_ONE_CORE, budgets.CPU.of_one_core // bytes_of_row)
        on_cpu = min(most, BYTES_OF_FEATURE // itemsize)
    else:
        bytes_of_feature = BYTES_OF_FEATURE
        if n_features >= MANY_FEATURES:
            bytes_of_feature = min(
                4 * BYTES_OF_FEATURE,
                max(BYTES_OF_FEATURE, 5 * 2**20 // n_features),
                2**26 // n_features,
            )
        on_cpu = max(min(512, max(16, LARGEST_CHUNK // n_features)), bytes_of_feature // itemsize)
    # All of about one length, a multiple of what a register holds, so that few are computed twice.
    n_chunks = -(-n_rows // min(n_rows, on_cpu))
    return ChunkRows(min(n_rows, 16 * -(-n_rows // (16 * n_chunks))), on_accelerator)


def _one_core_is_enough(bytes_of_row: int, n_features: int, n_components: int) -> bool:
    """Whether a pass is made faster by one core of a CPU than by all.

    XLA splits an operation among cores where it is long, and each core then goes on with what
    another one has made. That pays where products are much work beside their features: the more
    components there are for each core, and of many features sooner, as a chunk of few rows that
    stays in a core's cache is short of work itself. Otherwise one core alone is faster: on two
    cores by a factor of 1.1 to 1.8 with up to 32 components. Of few features nothing is split.
    """
    sizes = budgets.CPU
    stretch = max(1, FEWEST_OF_ONE_CORE * bytes_of_row / sizes.of_one_core)
    n_sharing = n_cores() if n_features >= MANY_FEATURES else 1
    load = n_components * n_sharing * stretch**2
    return stretch <= STRETCH and load <= sizes.components_of_one_core


def _equal_chunks(n_rows: int, numbers_per_row: int) -> int:
    """The length of chunks on an accelerator: equal, and no more than its budget asks for.

    Rounded down, so that the few rows that are left are a short chunk.
    """
    fewest = max(1, min(256, LARGEST_CHUNK // numbers_per_row))
    n_chunks = -(-n_rows // max(fewest, budgets.ACCELERATOR.chunk // numbers_per_row))
    length = n_rows // n_chunks
    aligned = length - length % budgets.ALIGNED_ROWS
    is_short = n_chunks == 1 and n_rows < budgets.FEW_ALIGNED * budgets.ALIGNED_ROWS
    return length if is_short or aligned == 0 else aligned
