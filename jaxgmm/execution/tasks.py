"""Functions of a task's number for many tasks, as many at a time as a device can hold."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays.budgets import budget

T = TypeVar("T")
State = TypeVar("State")


def slots_for(n_tasks: int, numbers: int, refilled: bool = False) -> int:
    """The number of tasks at a time, each of which computes so many numbers."""
    if not isinstance(numbers, int):
        # With a symbol of an export in it, which is not to be compared.
        return 1
    most = budget().in_slots if refilled else budget().at_once
    return max(1, min(n_tasks, most // numbers))


def at(tree: T, task: Array | int) -> T:
    """The leaves of one of many."""
    return jax.tree.map(lambda leaf: leaf[task], tree)


def take(tree: T, axes: Any, numbers: Array | int) -> T:
    """The leaves of some of many, () or (S,) int; those whose axis is None all have in common."""

    def of_leaf(axis: int | None, leaf: Array) -> Array:
        return leaf if axis is None else leaf[numbers]

    return jax.tree.map(of_leaf, axes, tree, is_leaf=lambda axis: axis is None)


def for_each(function: Callable[[Any, State], T], data: Any, axes: Any, states: State) -> T:
    """The results of a function of the data of a task and its state, for states (S, ...).

    A single one is not made as a batch: XLA multiplies batches of matrices more slowly.
    """
    if jax.tree.leaves(states)[0].shape[0] > 1:
        return jax.vmap(function, in_axes=(axes, 0))(data, states)
    result = function(take(data, axes, 0), at(states, 0))
    return jax.tree.map(lambda leaf: leaf[None], result)


def one_by_one(function: Callable[..., T]) -> Callable[..., T]:
    """The function of arrays; of a batch, on a CPU, of one member after the other."""

    @jax.custom_batching.custom_vmap
    def of_one(*arguments: Any) -> T:
        return function(*arguments)

    @of_one.def_vmap
    def of_all(axis_size: int, in_batch: Any, *arguments: Any) -> tuple[T, Any]:
        leaves, tree = jax.tree.flatten(arguments)
        flags = jax.tree.leaves(in_batch)

        def of_member(own: list[Array]) -> T:
            of_each = iter(own)
            whole = [
                next(of_each) if flag else leaf for leaf, flag in zip(leaves, flags, strict=True)
            ]
            return of_one(*jax.tree.unflatten(tree, whole))

        batched = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]
        if budget().side_by_side == 1:
            results = lax.map(of_member, batched)
        else:
            axes = jax.tree.map(lambda flag: 0 if flag else None, in_batch)
            results = jax.vmap(function, axes, axis_size=axis_size)(*arguments)
        return results, jax.tree.map(lambda _: True, results)

    return of_one


def in_blocks(function: Callable[[Any], T], n_tasks: int, size: int) -> T:
    """The results of a function of a task's number, for all tasks, so many at a time.

    The number is a known one where there is a single task, so that nothing has to be looked up.
    """
    n_blocks = -(-n_tasks // size)
    if n_tasks == 1:
        return jax.tree.map(lambda leaf: leaf[None], function(0))
    if n_blocks == 1:
        return jax.vmap(function)(jnp.arange(n_tasks))
    if size == 1:
        return lax.map(function, jnp.arange(n_tasks))
    numbers = jnp.minimum(jnp.arange(n_blocks * size), n_tasks - 1).reshape(n_blocks, size)
    results = lax.map(jax.vmap(function), numbers)
    return jax.tree.map(
        lambda leaf: leaf.reshape(n_blocks * size, *leaf.shape[2:])[:n_tasks], results
    )
