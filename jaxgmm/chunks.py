"""Rows a chunk at a time: how many, and sums and maps over all of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

T = TypeVar("T")

# Numbers in a chunk of rows that are so wide that few of them are many numbers.
LARGEST_CHUNK = 2**22


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
        wanted: () bool, whether to sum anything; None for always.
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
    n_turns = n_chunks if wanted is None else jnp.where(wanted, n_chunks, 0)
    return unravel(lax.fori_loop(0, n_turns, add_chunk, (zeros, zeros))[0])


def one_of_sums(number: Array, sums: Sequence[Callable[[Array | None], T]]) -> T:
    """The sum that has a number.

    On a CPU not by a branch, as XLA splits no work inside of one among cores, but by the number of
    turns that each takes, which no derivative can go backward through.

    Args:
        number: () int, from 0.
        sums: each called with `wanted` of `sum_over_chunks`.
    """
    if jax.default_backend() != "cpu":
        return lax.switch(number, [partial(of, None) for of in sums])
    chosen, *others = (of(number == i) for i, of in enumerate(sums))
    for i, other in enumerate(others, start=1):
        chosen = jax.tree.map(partial(jnp.where, number == i), other, chosen)
    return chosen


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
    """Rows in a chunk such that its intermediate arrays stay in a cache, or fill an accelerator.

    No fewer than operations are worth beginning with, unless a few rows alone are large.
    """
    budget = 2**18 if jax.default_backend() == "cpu" else 2**26
    fewest = min(256, LARGEST_CHUNK // numbers_per_row)
    return max(1, min(n_rows, max(fewest, budget // numbers_per_row)))


def rows_of_features(x: Array, n_features: int, n_components: int) -> int:
    """Rows of x in a chunk whose features are multiplied fastest, or fill an accelerator.

    On a CPU the features of a chunk should fit into the caches, or blocks of them where they are
    many. Below 64 features that takes chunks so short that one core does everything; from there on
    they are long enough for XLA to split each operation among cores.
    """
    if jax.default_backend() != "cpu":
        return chunk_size(x.shape[0], n_features + n_components)
    bytes_of_feature = 2**13
    if n_features >= 64:
        bytes_of_feature = min(2**15, max(2**13, 5 * 2**20 // n_features), 2**26 // n_features)
    fewest = min(512, max(16, LARGEST_CHUNK // n_features))
    return max(1, min(x.shape[0], max(fewest, bytes_of_feature // x.dtype.itemsize)))
