"""Many loops at once, none waiting for the slowest: a queue of fits, and slots that are refilled.

Under `vmap` a loop turns until its slowest member has ended, and whoever has ended before is
computed all the same. Here a few fits at a time, as many as a cache or a device can hold, have a
slot each. When some have ended, their results are put away, and the next of the queue take their
slots. On a CPU, when the queue is empty, the fits that are left queue up for fewer slots.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxgmm.arrays.budgets import budget, by_platform
from jaxgmm.arrays.numerics import varying
from jaxgmm.solvers.loop import Loop, goes_on, turn
from jaxgmm.solvers.settings import Settings
from jaxgmm.steps.problem import Problem

T = TypeVar("T")

# Slots are refilled when one in so many has ended.
REFILL = 8
# When the queue is empty and one fit in so many slots is left, there may be fewer slots.
FEW_LEFT = 2
# Components of all slots together, whose logits are one matrix product.
COLUMNS = 256


class Problems(NamedTuple):
    """The data of M models, which they may share, and each of which is fitted R times.

    Attributes:
        problem: with a leading axis M on all leaves; without it on x or on weights where these are
            the same for all models, or on all leaves where everything is.
        n_restarts: R. Fit t is one of model t // R.
    """

    problem: Problem
    n_restarts: int

    @property
    def shared(self) -> bool:
        """Whether all fits are to the same data."""
        return self.problem.regularization.ndim == 1

    @property
    def axes(self) -> Any:
        """For `vmap`: 0 or None for each leaf of a problem."""
        of_others = None if self.shared else 0
        axes = jax.tree.map(lambda _: of_others, self.problem)
        of_x = None if self.problem.rows.x.ndim == 2 else 0
        of_weights = None if self.problem.rows.weights.ndim == 1 else 0
        return axes._replace(rows=axes.rows._replace(x=of_x, weights=of_weights))

    def of(self, task: Array) -> Problem:
        """That of a fit, or of several: (), or (S,)."""

        def pick(axis: int | None, leaf: Array) -> Array:
            return leaf if axis is None else leaf[task // self.n_restarts]

        return jax.tree.map(pick, self.axes, self.problem, is_leaf=lambda axis: axis is None)

    def n_slots(self, n_tasks: int, n_components: int, refilled: bool = False) -> int:
        """How many fits at a time, in slots that are refilled or in blocks."""
        n_rows, n_features = self.problem.rows.x.shape[-2:]
        if self.shared and self.problem.extent is not None:
            return max(1, min(n_tasks, COLUMNS // n_components))
        return slots_for(n_tasks, n_rows * n_components * n_features, refilled)


def slots_for(n_tasks: int, numbers: int, refilled: bool = False) -> int:
    """How many tasks at a time, each of which computes so many numbers."""
    if not isinstance(numbers, int):
        # With a symbol of an export in it, which is not to be compared.
        return 1
    most = budget().in_slots if refilled else budget().at_once
    return max(1, min(n_tasks, most // numbers))


def at(tree: T, task: Array | int) -> T:
    """The leaves of one of many."""
    return jax.tree.map(lambda leaf: leaf[task], tree)


def in_blocks(function: Callable[[Array], T], n_tasks: int, size: int) -> T:
    """The results of a function of a task's number, for all tasks, so many at a time."""
    n_blocks = -(-n_tasks // size)
    if n_tasks == 1:
        return jax.tree.map(lambda leaf: leaf[None], function(jnp.asarray(0)))
    if n_blocks == 1:
        return jax.vmap(function)(jnp.arange(n_tasks))
    if size == 1:
        return lax.map(function, jnp.arange(n_tasks))
    numbers = jnp.minimum(jnp.arange(n_blocks * size), n_tasks - 1).reshape(n_blocks, size)
    results = lax.map(jax.vmap(function), numbers)
    return jax.tree.map(
        lambda leaf: leaf.reshape(n_blocks * size, *leaf.shape[2:])[:n_tasks], results
    )


class Slots(NamedTuple):
    """Fits on their way.

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
    """Loops as vectors, (T, P), so that moving one is one copy."""

    example: Loop
    unravel: Callable[[Array], Any]

    @classmethod
    def of(cls, loop: Loop) -> "Packing":
        """For loops like this one."""
        return cls(loop, ravel_pytree(in_one_dtype(loop))[1])

    def pack(self, loops: Loop) -> Array:
        """Loops with a leading axis: (T, P)."""
        return jax.vmap(lambda loop: ravel_pytree(in_one_dtype(loop))[0])(loops)

    def unpack(self, states: Array) -> Loop:
        """The inverse of `pack`."""
        loops = jax.vmap(self.unravel)(states)
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), loops, self.example)


def in_one_dtype(loop: Loop) -> Any:
    """The loop with numbers and flags in the dtype of its mixture."""
    return jax.tree.map(lambda leaf: leaf.astype(loop[0].means.dtype), loop)


class Rounds(NamedTuple):
    """How many loops are iterated together: what is the same for all of them.

    Attributes:
        problems: the data.
        packing: of the loops.
        wanted: (T,) bool, which of them are to go on.
        tol: () gain per unit of weight that may remain.
        limit: () int, the number of steps after which a loop is left where it is.
        settings: static choices.
    """

    problems: Problems
    packing: Packing
    wanted: Array
    tol: Array
    limit: ArrayLike
    settings: Settings

    def going(self, loops: Loop) -> Array:
        """Which loops have another step to take: (S,) bool."""
        return jax.vmap(lambda trace: goes_on(trace, self.limit))(loops[1])

    def turn_all(self, mine: Problem, loops: Loop) -> Loop:
        """A turn of the loops in all slots."""

        def turn_one(problem: Problem, loop: Loop) -> Loop:
            return turn(problem, self.tol, loop, self.limit, self.settings)

        return jax.vmap(turn_one, in_axes=(self.problems.axes, 0))(mine, loops)

    def next_round(self, queue: Array, n_queued: Array, fewest: int, slots: Slots) -> Slots:
        """Slots are refilled, and turn until so many have ended that it is worth another round."""
        slots = refilled(slots, queue, n_queued)
        size, none = slots.task.size, queue.size
        taken = slots.task < none
        mine = self.problems.of(jnp.minimum(slots.task, none - 1))
        fewest_now = jnp.where(slots.n_taken < n_queued, size - -(-size // REFILL), fewest)
        loops, n_turns = lax.while_loop(
            lambda carry: jnp.sum(taken & self.going(carry[0])) > fewest_now,
            lambda carry: (self.turn_all(mine, carry[0]), carry[1] + size),
            (self.packing.unpack(slots.state), slots.n_turns),
        )
        state = self.packing.pack(loops)
        return Slots(
            n_taken=slots.n_taken,
            task=jnp.where(self.going(loops), slots.task, none),
            state=state,
            states=slots.states.at[slots.task].set(state, mode="drop"),
            n_turns=n_turns,
        )

    def through_slots(
        self, size: int, fewest: int, states: Array, n_turns: Array
    ) -> tuple[Array, Array]:
        """All that are to go on, in so many slots, until no more than the fewest are left."""
        none = len(states)
        going = self.wanted & self.going(self.packing.unpack(states))
        n_queued, queue = jnp.sum(going), jnp.argsort(~going, stable=True)
        slots = lax.while_loop(
            lambda slots: (slots.n_taken < n_queued) | (jnp.sum(slots.task < none) > fewest),
            partial(self.next_round, queue, n_queued, fewest),
            varying(Slots(jnp.asarray(0), jnp.full(size, none), states[:size], states, n_turns)),
        )
        return slots.states, slots.n_turns


def iterate_all(
    problems: Problems,
    loops: Loop,
    wanted: Array,
    tol: Array,
    limit: ArrayLike,
    settings: Settings,
) -> tuple[Loop, Array]:
    """`loop.iterate` for many loops.

    Args:
        problems: the data.
        loops: with a leading axis, of all T tasks, wherever they are on their way.
        wanted: see `Rounds`, and for all others.
        tol: likewise.
        limit: likewise.
        settings: likewise.

    Returns:
        The loops, and the turns that were made in all slots, () int.
    """
    packing = Packing.of(at(loops, 0))
    rounds = Rounds(problems, packing, wanted, tol, limit, settings)
    n_tasks, n_components = loops[0].log_weights.shape

    def through() -> tuple[Array, Array]:
        states, n_turns = varying((packing.pack(loops), jnp.asarray(0)), problems, wanted, tol)
        n_slots, fewer = problems.n_slots(n_tasks, n_components, True), budget().fewer_slots
        if n_slots >= 2 * fewer > 2:
            states, n_turns = rounds.through_slots(n_slots, n_slots // FEW_LEFT, states, n_turns)
            n_slots = n_slots // fewer
        return rounds.through_slots(n_slots, 0, states, n_turns)

    states, n_turns = by_platform(through)
    return packing.unpack(states), n_turns


def refilled(slots: Slots, queue: Array, n_queued: Array) -> Slots:
    """Empty slots are taken by the next tasks of a queue (T,), of which so many count."""
    none = queue.size
    empty = slots.task == none
    number = slots.n_taken + jnp.cumsum(empty) - 1
    fresh = empty & (number < n_queued)
    task = queue[jnp.minimum(number, none - 1)]
    return slots._replace(
        n_taken=slots.n_taken + jnp.sum(fresh),
        task=jnp.where(fresh, task, slots.task),
        state=jnp.where(fresh[:, None], slots.states[task], slots.state),
    )
