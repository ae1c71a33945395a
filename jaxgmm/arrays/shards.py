"""Rows that are spread over devices, and what all of these have together.

Where rows are spread over axes of a mesh, a program runs on each device with that one's own, inside
`jax.shard_map`. What it makes of them it adds to what the others make, by one message for all that
is summed at the same place; and what it knows from all rows is the same everywhere, so that no
device goes on alone.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

T = TypeVar("T")

_axes: ContextVar[tuple[str, ...]] = ContextVar("axes", default=())


@contextmanager
def rows_over(axes: str | tuple[str, ...]) -> Iterator[None]:
    """Within, the rows of a program are one device's part of those along axes of a mesh."""
    token = _axes.set((axes,) if isinstance(axes, str) else tuple(axes))
    try:
        yield
    finally:
        _axes.reset(token)


def on_each_device() -> AbstractContextManager[None]:
    """Within, rows are a sample that all devices have, and do the same with."""
    return rows_over(())


def row_axes() -> tuple[str, ...]:
    """The axes of the mesh that rows are spread over; none where a program has all of them."""
    return _axes.get()


def _own_number() -> Array:
    """The number of this device, along the axes of rows: () int."""
    return lax.axis_index(row_axes()).astype(int)


def rule_over_rows(rule: Callable[..., T]) -> Callable[..., T]:
    """A rule for derivatives, traced with the rows spread over the last of its static arguments.

    A rule is traced when what it belongs to has been, where nobody knows any more how rows are
    spread; so that is one of its arguments, before primals and tangents.
    """

    @wraps(rule)
    def traced(*arguments: Any) -> T:
        with rows_over(arguments[-3]):
            return rule(*arguments)

    return traced


def total(sums: T) -> T:
    """A pytree of sums over each device's own rows, summed over all devices, in one message."""
    if not row_axes():
        return sums
    flat, unravel = ravel_pytree(sums)
    return unravel(lax.psum(flat, row_axes()))


def alike(tree: T) -> T:
    """A tree of what is the same on all devices, but that JAX takes to vary with their rows."""
    return lax.pmean(tree, row_axes()) if row_axes() else tree


def largest(values: Array) -> Array:
    """The largest of the values that devices have, element by element."""
    return lax.pmax(values, row_axes()) if row_axes() else values


def of_the_largest(values: Array, along: Array) -> Array:
    """What goes with the largest values on the first device that has them: (F, ...).

    Args:
        values: (F,).
        along: (F, ...).
    """
    axes = row_axes()
    if not axes:
        return along
    most, number = largest(values), _own_number()
    n_devices = lax.axis_size(axes)
    first = lax.pmin(jnp.where(values == most, number, n_devices), axes)
    owned = (first == number).reshape(-1, *(1,) * (along.ndim - 1))
    return lax.psum(jnp.where(owned, along, 0), axes)


def before(number: Array) -> Array:
    """The sum of the numbers () that devices before this one have: ()."""
    axes = row_axes()
    if not axes:
        return jnp.zeros_like(number)
    own, devices = _own_number(), jnp.arange(lax.axis_size(axes))
    numbers = lax.psum(jnp.where(devices == own, number, 0), axes)
    return jnp.sum(jnp.where(devices < own, numbers, 0))


def gathered(array: Array) -> Array:
    """Of arrays (M, ...) of all devices, one after the other: (devices·M, ...)."""
    axes = row_axes()
    if not axes:
        return array
    devices = jnp.arange(lax.axis_size(axes))
    mine = (devices == _own_number()).reshape(-1, *(1,) * array.ndim)
    return lax.psum(jnp.where(mine, array[None], 0), axes).reshape(-1, *array.shape[1:])


def own_of(array: Array) -> Array:
    """This device's own of what is known of all of them: (devices, ...) -> (...)."""
    return array[_own_number()]


def first_row(n_rows: int) -> Array | int:
    """The number among all rows of the first of this device, of which each has so many."""
    return _own_number() * n_rows if row_axes() else 0
