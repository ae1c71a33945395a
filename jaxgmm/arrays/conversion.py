"""Numbers as people have them, converted to arrays of JAX: of their own, and of a float dtype."""

import sys
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.columns import (
    column_as_numpy,
    is_column,
    is_table,
    numbers_of_objects,
    table_as_numpy,
)
from jaxgmm.arrays.host import from_host, is_concrete, is_small
from jaxgmm.arrays.placement import check_length


def as_float_array(name: str, value: ArrayLike) -> Array:
    """`value` as a JAX array of a dtype that the library computes in.

    float32 and float64 stay; integers and booleans become JAX's default float; float16 and
    bfloat16 become float32. What isn't JAX's is copied, once, before this returns: its owner may
    change it from then on.

    Raises:
        TypeError: sparse, complex, not numeric, or with missing values in a column of a table.
        ValueError: a masked array, 2³¹ rows or more, or nothing that an array can be made of.
    """
    check_length(name, value)
    if hasattr(value, "toarray"):
        raise TypeError(
            f"{name} is sparse ({type(value).__name__}); a dense array is required: "
            f"pass {name}.toarray()"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(
            f"{name} is a masked array, and masks are not read; drop the masked rows, or give "
            "them weight 0 in an ordinary array"
        )
    array = value if isinstance(value, jax.Array) else _as_read(name, value)
    dtype = _float_dtype(name, array.dtype)
    if isinstance(array, np.ndarray):
        copy = _own_copy(array, dtype)
        if array.dtype.kind in "iu" and array.size:
            _warn_if_rounded(name, array, copy)
        if array.dtype.itemsize > copy.dtype.itemsize and array.dtype.kind == "f":
            _warn_computed_in_float32(name.partition("[")[0])
        return from_host(copy)
    if jnp.issubdtype(array.dtype, jnp.integer) and is_concrete(array) and _may_round(array, dtype):
        host = np.asarray(array)
        _warn_if_rounded(name, host, host.astype(dtype))
    return array.astype(dtype) if array.dtype != dtype else array


def _float_dtype(name: str, dtype: Any) -> Any:
    """The dtype that numbers of a dtype are computed in."""
    if jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_):
        return jnp.result_type(float)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must hold real numbers, got dtype {dtype}; convert it first")
    if dtype.itemsize <= 4:
        return jnp.dtype("float32")
    return jnp.result_type(float)


def _as_read(name: str, value: Any) -> Any:
    """An array of NumPy, which may share memory with what was given; from a device a copy of JAX's.

    Wider floats than float64 are rounded to it.
    """
    array = value
    if hasattr(value, "__dlpack__") and not isinstance(value, (np.ndarray, np.generic)):
        array = _from_dlpack(name, value)
    if not isinstance(array, jax.Array):
        array = _as_numpy(name, array)
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
    return array


def _from_dlpack(name: str, value: Any) -> Any:
    """A tensor of another library, by whatever way of it leads somewhere.

    NumPy takes any strides, but only of the host, and not every dtype; JAX the others.
    """
    errors: list[Exception] = []
    readers: list[Callable[[Any], Any]] = [np.from_dlpack, partial(_copied_by_jax, name)]
    for read in readers + [np.asarray] * hasattr(value, "__array__"):
        try:
            return read(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            errors.append(error)
    raise ValueError(f"{name} can't be made into an array: {errors[0]}") from None


def _copied_by_jax(name: str, value: Any) -> Array:
    if "float64" in str(getattr(value, "dtype", "")) and jnp.result_type(float) != jnp.float64:
        _warn_computed_in_float32(name.partition("[")[0])
    with jax.ensure_compile_time_eval():
        return jnp.from_dlpack(value).copy().block_until_ready()


def _as_numpy(name: str, value: Any) -> np.ndarray:
    if is_table(value):
        return table_as_numpy(name, value)
    if is_column(value):
        return column_as_numpy(name, value)
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} can't be made into an array: {error}") from None
    if array.dtype == object:
        array = numbers_of_objects(name, array)
    is_floating = jnp.issubdtype(array.dtype, jnp.floating)
    if array.dtype.kind in "OUSMmV" and not is_floating:
        raise TypeError(
            f"{name} must hold numbers, got dtype {array.dtype}; convert text and missing values "
            "first"
        )
    if isinstance(value, (float, list, tuple)) and array.dtype == np.float64:
        # Python numbers have no dtype of their own: like JAX, take the default float quietly.
        return array.astype(jnp.result_type(float))
    return array


def _own_copy(array: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy in rows, of a dtype, that JAX on a CPU takes over instead of copying it once more.

    It does so if the memory starts at a multiple of 64 bytes.
    """
    n_bytes = array.size * np.dtype(dtype).itemsize
    memory = np.empty(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + n_bytes].view(dtype).reshape(array.shape)
    with np.errstate(over="ignore"):
        np.copyto(copy, array, casting="unsafe")
    return copy


def _may_round(array: Array, dtype: Any) -> bool:
    """Whether whole numbers of known values are large enough for a float dtype to round them."""
    if 0 in array.shape or array.dtype.itemsize * 8 <= jnp.finfo(dtype).nmant + 1:
        return False
    if is_small(array):
        return True
    with jax.ensure_compile_time_eval():
        ends = int(jnp.min(array)), int(jnp.max(array))
    return max(ends[1], -ends[0]) > 2 ** (jnp.finfo(dtype).nmant + 1)


def _warn_if_rounded(name: str, array: np.ndarray, rounded: np.ndarray) -> None:
    """Warns where whole numbers are others as floats."""
    largest = max(int(array.max()), -int(array.min()))
    n_bits = jnp.finfo(rounded.dtype).nmant + 1
    if largest <= 2**n_bits:
        return
    with np.errstate(invalid="ignore"):
        if np.array_equal(rounded.astype(array.dtype), array):
            return
    wider = " or call jax.config.update('jax_enable_x64', True) first for float64"
    warnings.warn(
        f"{name} holds whole numbers up to {largest}, which {rounded.dtype} rounds to {n_bits} "
        "bits; subtract an offset from them, such as the smallest,"
        f"{wider if rounded.dtype == np.float32 else ' or divide them by their unit'}",
        stacklevel=_level_of_caller(),
    )


@cache
def _warn_computed_in_float32(name: str) -> None:
    warnings.warn(
        f"{name} is float64 but JAX's 64-bit mode is off, so it is computed in float32; "
        "call jax.config.update('jax_enable_x64', True) first for float64, and subtract large "
        "offsets, such as those of times",
        stacklevel=_level_of_caller(),
    )


def _level_of_caller() -> int:
    """Of `warnings.warn` in the function that asks: the first line outside of this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "jaxgmm":
        frame, level = frame.f_back, level + 1
    return level


def in_common_dtype(*trees: Any) -> tuple[Any, ...]:
    """The trees with all floating leaves in the widest of their dtypes; None stays None."""
    dtype = np.result_type(*(leaf.dtype for leaf in jax.tree.leaves(trees)))
    return jax.tree.map(lambda leaf: leaf.astype(dtype), trees)
