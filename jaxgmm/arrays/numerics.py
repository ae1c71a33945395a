"""Small numerical tools that the rest of the library is built from."""

import operator
import string
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays import shards
from jaxgmm.arrays.budgets import budget

T = TypeVar("T")

HIGHEST = lax.Precision.HIGHEST

# Sums of at most so many terms are written out: as operations of their own they would cost more
# than their work.
FEW = 4


def contract(subscripts: str, *operands: Array) -> Array:
    """`jnp.einsum` in the full precision of the dtype, on every platform."""
    return jnp.einsum(subscripts, *operands, precision=HIGHEST)


def einsum(subscripts: str, *operands: Array) -> Array:
    """`contract`, but sums of few terms are written out, and become part of what is around them.

    So they are made again for each use: in long arrays that are used several times `contract` them.
    """
    if len(operands) == 2:
        first, second, output = _subscripts_of_all_axes(subscripts, *operands)
        summed = "".join(sorted({*first, *second} - {*output}))
        sizes = dict(zip(first + second, operands[0].shape + operands[1].shape, strict=True))
        few = len(summed) == 1 and isinstance(sizes[summed], int) and sizes[summed] <= FEW
        if not summed or few:
            first_terms = _with_axes(operands[0], first, output + summed)
            second_terms = _with_axes(operands[1], second, output + summed)
            if not summed:
                return first_terms * second_terms
            terms = (first_terms[..., i] * second_terms[..., i] for i in range(sizes[summed]))
            return reduce(operator.add, terms)
    return contract(subscripts, *operands)


def _subscripts_of_all_axes(subscripts: str, first: Array, second: Array) -> tuple[str, str, str]:
    """Subscripts of both operands and of the output, with capital letters in place of dots."""
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


def varying(tree: T, *others: Any, as_rows: bool = False) -> T:
    """The tree, varying from device to device wherever it or any of the others does.

    But not along the axes that rows are spread over: what is known of all rows is the same there.

    What a loop begins with, or one of two branches returns, may be the same on all devices of
    `jax.shard_map`, and what it goes on with not. JAX wants that to be said.

    Args:
        tree: of arrays.
        others: of them, or of what has their types.
        as_rows: whether along those axes, too, for what is of each device's own rows.
    """
    axes: frozenset[str] = frozenset().union(*map(varying_axes, jax.tree.leaves((tree, others))))
    axes = axes if as_rows else axes - frozenset(shards.row_axes())
    return jax.tree.map(partial(_varying_over, axes), tree) if axes else tree


def varying_axes(array: Any) -> frozenset[str]:
    """The mesh axes over which `shard_map` knows an array, or what has its type, to vary."""
    known = array if isinstance(array, jax.ShapeDtypeStruct) else jax.typeof(array)
    return getattr(getattr(known, "manual_axis_type", None), "varying", frozenset())


def _varying_over(axes: frozenset[str], array: Array) -> Array:
    missing = tuple(sorted(axes - varying_axes(array)))
    return lax.pcast(array, missing, to="varying") if missing else array


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


@jax.custom_jvp
def _below_zero(value: Array) -> Array:
    """The smaller of the value and 0, with the derivative of the value."""
    return jnp.minimum(value, 0)


_below_zero.defjvps(lambda tangent, *_: tangent)


def _over_first(function: Callable[[Array, Array], Array], array: Array) -> Array:
    """A reduction over the first axis, which stays, with length 1, written out.

    XLA's CPU backend leaves those of whole arrays to a library of kernels, which it takes longer to
    call than to reduce a few rows.
    """
    return reduce(function, (array[i : i + 1] for i in range(array.shape[0])))


@jax.custom_jvp
def _sum_over_first(array: Array) -> Array:
    """`_over_first`, whose derivative backward is not written out, which would be slow."""
    return _over_first(operator.add, array)


_sum_over_first.defjvps(lambda tangent, *_: jnp.sum(tangent, axis=0, keepdims=True))


def made_once(x: Array) -> Array:
    """Rows (N, D), which are kept, if they have few features, instead of made anew for each use.

    XLA's CPU backend forgets an `optimization_barrier` before it fuses, but never fuses products.
    An infinite number makes NaN of the others in its row, as infinity times 0 does.
    """
    n_features = x.shape[1]
    if n_features > FEW or not budget().repeats_work:
        return x
    return contract("ij,jn->in", jnp.eye(n_features, dtype=x.dtype), x.T).T


def shifted_exponentials(
    logits: Array, axis: int = -1, by_product: bool = False
) -> tuple[Array, Array, Array]:
    """exp(logits - top), its sum and top, the largest logit: what a softmax is made of.

    Where every entry is -inf the exponentials are 1, with zero gradient, and top is -inf.

    Args:
        logits: (..., K) or any other shape.
        axis: of the K entries; it stays, with length 1, in the sum and in top.
        by_product: whether to sum by a product with ones, unless K is small, which XLA's CPU
            backend is faster at if N is large. For logits (K, N) and axis 0 only.
    """
    few = axis == 0 and logits.ndim > 1 and logits.shape[0] <= budget().few_arrays
    if few:
        top = _over_first(jnp.maximum, lax.stop_gradient(logits))
    else:
        top = lax.stop_gradient(jnp.max(logits, axis=axis, keepdims=True))
    nowhere = jnp.isneginf(top)
    below = jnp.where(nowhere, 0, logits - jnp.where(nowhere, 0, top))
    # XLA may make logits again for each use, and round them otherwise. Far from all components that
    # puts the largest anywhere about zero: its exponential must neither overflow nor vanish.
    terms = jnp.exp(_below_zero(below))
    if few:
        total = _sum_over_first(terms)
    elif by_product:
        total = contract("ik,kn->in", jnp.ones((1, logits.shape[0]), logits.dtype), terms)
    else:
        total = jnp.sum(terms, axis=axis, keepdims=True)
    return terms, jnp.where(total < 0.5, 1, total), top


@jax.jit
def in_own_unit(values: Array) -> tuple[Array, Array]:
    """Values divided by a unit, of which the largest is between 1 and 4, and the unit.

    So that sums of them, and of their squares, neither overflow nor vanish. The unit is a power of
    two, by which nothing is rounded, and a constant to differentiation.

    Args:
        values: (..., N); with the unit 1 if they are all zero, or not finite.

    Returns:
        (..., N), and (...) powers of two.
    """
    return in_unit_of(values, jnp.max(jnp.abs(lax.stop_gradient(values)), axis=-1))


def in_unit_of(values: Array, largest: Array) -> tuple[Array, Array]:
    """`in_own_unit` of values (..., N) of which the largest (...) are known."""
    # All bits of infinity are those of the exponent, and a number with no others a power of two.
    bits = jnp.dtype(f"int{8 * values.dtype.itemsize}")
    exponent = lax.bitcast_convert_type(jnp.full_like(largest, jnp.inf), bits)
    power = lax.bitcast_convert_type(
        lax.bitcast_convert_type(largest, bits) & exponent, largest.dtype
    )
    unit = jnp.where((power > 0) & (power < jnp.inf), power, 1)
    # XLA multiplies by the inverse, which must not be subnormal.
    unit = jnp.minimum(unit, 1 / float(jnp.finfo(values.dtype).tiny))
    return values / unit[..., None], unit


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


@jax.custom_batching.custom_vmap
def all_in_batch(flag: Array) -> Array:
    """The flag; in a batch, whether all have it, so that what hangs on it is decided once."""
    return flag


@all_in_batch.def_vmap
def _agreed_in_batch(axis_size: int, in_batched: list[bool], flag: Array) -> tuple[Array, bool]:
    return jnp.all(flag), False


@jax.custom_batching.custom_vmap
def largest_in_batch(number: Array) -> Array:
    """The number; in a batch, the largest of all, see `all_in_batch`."""
    return number


@largest_in_batch.def_vmap
def _largest_in_batch(axis_size: int, in_batched: list[bool], number: Array) -> tuple[Array, bool]:
    return jnp.max(number), False
