"""Devices and lengths of arrays, checked before anything is compiled or copied."""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxgmm.arrays.chunks import chunk_size

# Numbers of rows are 32-bit integers.
MOST_ROWS = 2**31 - 1


def check_length(name: str, value: Any) -> None:
    """ValueError if an array, or what can be made one, is too long along any axis."""
    for length in getattr(value, "shape", ()):
        if isinstance(length, int) and length > MOST_ROWS:
            raise ValueError(
                f"{name} may have at most 2³¹ - 1 = {MOST_ROWS} rows, got shape "
                f"{tuple(value.shape)}; gather statistics of parts of it by e_step, add them, and "
                "give the sum to m_step"
            )


def is_split(array: Any, *axes: int) -> bool:
    """Whether an array is spread over devices along any of its axes; as far as can be known."""
    if not isinstance(array, jax.Array):
        return False
    if not isinstance(array, jax.core.Tracer):
        if len(array.sharding.device_set) == 1:
            return False
        of_shard = array.sharding.shard_shape(array.shape)
        return any(of_shard[axis] != array.shape[axis] for axis in axes if axis < array.ndim)
    spec = jax.typeof(array).sharding.spec
    return any(spec[axis] is not None for axis in axes if axis < len(spec))


def spread_of(array: Any, axis: int = 0) -> tuple[tuple[str, ...], Any] | None:
    """The axes of a mesh along which an axis of an array is spread, by default rows, and the mesh.

    None where it isn't, and where JAX itself chooses how what is traced is spread.
    """
    if not isinstance(array, jax.Array) or not is_split(array, axis):
        return None
    of = jax.typeof(array) if isinstance(array, jax.core.Tracer) else array
    if not isinstance(of.sharding, NamedSharding):
        return None
    axes = of.sharding.spec[axis]
    return (axes if isinstance(axes, tuple) else (axes,)), of.sharding.mesh


def at_index(array: Any, index: Any) -> Any:
    """Element `index` of an array's first axis, which explicit axes of a mesh may spread."""
    spec = jax.typeof(array).sharding.spec if isinstance(array, jax.Array) else ()
    if not spec or spec[0] is None:
        return array[index]
    sharding = NamedSharding(jax.typeof(array).sharding.mesh, PartitionSpec(*spec[1:]))
    return array.at[index].get(out_sharding=sharding)


def beside(x: Any, of_rows: Any) -> Any:
    """An array (N, ...) where the rows of x are, if these are spread and known."""
    known = not isinstance(x, jax.core.Tracer) and not isinstance(of_rows, jax.core.Tracer)
    spread = spread_of(x) if known and isinstance(of_rows, jax.Array) else None
    if spread is None:
        return of_rows
    axes, mesh = spread
    return jax.device_put(of_rows, NamedSharding(mesh, PartitionSpec(axes)))


def check_whole_rows(name: str, array: Any) -> None:
    """ValueError if rows (..., N, D) are cut in parts that are on different devices."""
    if isinstance(array, jax.Array) and array.ndim > 1 and is_split(array, array.ndim - 1):
        raise ValueError(
            f"{name} is split over devices along its last axis; put whole rows on each device, for "
            f"instance by jax.device_put({name}, NamedSharding(mesh, PartitionSpec('rows')))"
        )


def check_points(name: str, array: Any, numbers_per_point: int) -> None:
    """ValueError if an array (..., D) holds too many points, or devices would gather them.

    Those that are spread along their first axis stay where they are. What is spread along others
    that JAX chooses itself is asked element by element, as long as all points are one chunk.

    Args:
        name: of the array.
        array: of points.
        numbers_per_point: that are computed on the way.
    """
    leading = array.shape[:-1]
    if not all(isinstance(length, int) for length in leading):
        return
    n_points = math.prod(leading)
    if n_points > MOST_ROWS:
        check_length(name, jax.ShapeDtypeStruct((n_points, array.shape[-1]), array.dtype))
    first = 0 if array.ndim == 1 or spread_of(array) is None else 1
    if not is_split(array, *range(first, array.ndim)):
        return
    has_split_type = any(axis is not None for axis in jax.typeof(array).sharding.spec[first:])
    if has_split_type or chunk_size(n_points, numbers_per_point).on_cpu < n_points:
        raise ValueError(
            f"{name} is split over devices along another axis than the first, and each of them "
            "would gather all of it; spread it along its first axis, or ask for each device's own "
            "points inside jax.shard_map"
        )
