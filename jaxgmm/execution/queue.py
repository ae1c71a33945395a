"""A work queue: many loops at once, none waiting for the slowest, in slots that are refilled.

Under `vmap` a loop turns until its slowest member has ended, and whoever has ended before is
computed all the same. Here a few loops at a time, as many as a cache or a device can hold, have a
slot each. When some have ended, their states are put away, and the next of the queue take their
slots. On a CPU, when the queue is empty, the loops that are left queue up for fewer slots.

A refill costs as much as some turns of a slot, and a slot whose loop has ended turns for nothing.
With one refill whenever an eighth of S slots are empty, a sixteenth of all turns are for nothing on
average, and there are eight refills for S loops that end: both are small beside loops of a hundred
turns. At the end slots empty and nothing can refill them; where half of them are left, a sixteenth
of the slots takes the others one after the other, which on a CPU, whose turns take longer the more
slots there are, ends sooner than turns of all.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from jaxgmm.arrays.budgets import budget, by_platform
from jaxgmm.arrays.numerics import varying
from jaxgmm.execution.tasks import at, for_each, take

State = TypeVar("State")


class Slots(NamedTuple):
    """Loops in work.

    Attributes:
        n_taken: () int, how many of the queue have had a slot.
        task: (S,) int, whose slot it is; the number of all tasks where it is empty.
        state: (S, P) of the loop.
        states: (T, P) of the loops of all tasks, as they were when they last had a slot.
        n_turns: () int, of slots, for measurements.
    """

    n_taken: Array
    task: Array
    state: Array
    states: Array
    n_turns: Array


class Packing(NamedTuple):
    """States of loops as vectors, (T, P), so that moving one is one copy."""

    example: Any
    dtype: Any
    unravel: Callable[[Array], Any]

    @classmethod
    def of(cls, state: Any) -> "Packing":
        """For states like this one: in the widest of its floating dtypes."""
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(state)]
        floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
        dtype = np.result_type(*floating) if floating else jnp.result_type(float)
        return cls(state, dtype, ravel_pytree(cls._in(dtype, state))[1])

    @staticmethod
    def _in(dtype: Any, state: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype), state)

    def pack(self, states: Any) -> Array:
        """States with a leading axis: (T, P)."""
        return jax.vmap(lambda state: ravel_pytree(self._in(self.dtype, state))[0])(states)

    def unpack(self, vectors: Array) -> Any:
        """The inverse of `pack`."""
        states = jax.vmap(self.unravel)(vectors)
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), states, self.example)


class Queue(NamedTuple):
    """A work queue: what is the same for all loops; see `iterate_all`."""

    step: Callable[[Any, Any], Any]
    going: Callable[[Any], Array]
    data: Any
    axes: Any
    repeats: int
    wanted: Array
    packing: Packing

    def all_going(self, states: Any) -> Array:
        """Mask of the loops that have another step to take: (S,) bool."""
        return jax.vmap(self.going)(states)

    def step_all(self, data: Any, states: Any) -> Any:
        """A step in all slots; loops that have ended stay as they are."""

        def masked_step(data: Any, state: Any) -> Any:
            return jax.tree.map(
                partial(jnp.where, self.going(state)), self.step(data, state), state
            )

        return for_each(masked_step, data, self.axes, states)

    def next_round(self, order: Array, n_queued: Array, fewest: int, slots: Slots) -> Slots:
        """Slots are refilled, and turn until so many have ended that it is worth another round."""
        slots = refilled(slots, order, n_queued)
        size, none = slots.task.size, order.size
        taken = slots.task < none
        data = take(self.data, self.axes, jnp.minimum(slots.task, none - 1) // self.repeats)
        fewest_now = jnp.where(slots.n_taken < n_queued, size - -(-size // budget().refill), fewest)
        states, n_turns = lax.while_loop(
            lambda carry: jnp.sum(taken & self.all_going(carry[0])) > fewest_now,
            lambda carry: (self.step_all(data, carry[0]), carry[1] + size),
            (self.packing.unpack(slots.state), slots.n_turns),
        )
        state = self.packing.pack(states)
        return Slots(
            n_taken=slots.n_taken,
            task=jnp.where(self.all_going(states), slots.task, none),
            state=state,
            states=slots.states.at[slots.task].set(state, mode="drop"),
            n_turns=n_turns,
        )

    def drain(self, size: int, fewest: int, states: Array, n_turns: Array) -> tuple[Array, Array]:
        """All that are to go on, in so many slots, until no more than the fewest are left."""
        none = len(states)
        going = self.wanted & self.all_going(self.packing.unpack(states))
        n_queued, order = jnp.sum(going), jnp.argsort(~going, stable=True)
        slots = lax.while_loop(
            lambda slots: (slots.n_taken < n_queued) | (jnp.sum(slots.task < none) > fewest),
            partial(self.next_round, order, n_queued, fewest),
            varying(Slots(jnp.asarray(0), jnp.full(size, none), states[:size], states, n_turns)),
        )
        return slots.states, slots.n_turns


def iterate_all(
    step: Callable[[Any, State], State],
    going: Callable[[State], Array],
    states: State,
    data: Any = None,
    axes: Any = None,
    *,
    wanted: Array,
    n_slots: Callable[[], int],
    repeats: int = 1,
) -> tuple[State, Array]:
    """The states that T loops end with, each as if it were iterated alone.

    Args:
        step: from the data of a loop and its state to the next state.
        going: whether a state has another step to take: () bool.
        states: with a leading axis T, wherever the loops are on their way.
        data: that steps depend on, whether by the first argument or otherwise.
        axes: for `jax.vmap`, 0 for leaves of the data that lead with T // repeats, None for others.
        wanted: (T,) bool, which loops are to go on; all others stay as they are.
        n_slots: how many at a time; asked while the program for a platform is made.
        repeats: loops in a row that have the same data.

    Returns:
        The states, and the steps that were made in all slots, () int.
    """
    packing = Packing.of(at(states, 0))
    queue = Queue(step, going, data, axes, repeats, wanted, packing)

    def drained() -> tuple[Array, Array]:
        vectors, n_turns = varying((packing.pack(states), jnp.asarray(0)), data, wanted)
        size, fewer = n_slots(), budget().fewer_slots
        if size >= 2 * fewer > 2:
            vectors, n_turns = queue.drain(size, size // budget().few_left, vectors, n_turns)
            size = size // fewer
        return queue.drain(size, 0, vectors, n_turns)

    vectors, n_turns = by_platform(drained)
    return packing.unpack(vectors), n_turns


def refilled(slots: Slots, order: Array, n_queued: Array) -> Slots:
    """Empty slots are taken by the next tasks, in an order (T,) of which so many count."""
    none = order.size
    empty = slots.task == none
    number = slots.n_taken + jnp.cumsum(empty) - 1
    fresh = empty & (number < n_queued)
    task = order[jnp.minimum(number, none - 1)]
    return slots._replace(
        n_taken=slots.n_taken + jnp.sum(fresh),
        task=jnp.where(fresh, task, slots.task),
        state=jnp.where(fresh[:, None], slots.states[task], slots.state),
    )
