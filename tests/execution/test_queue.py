"""The work queue, with loops that compile at once: nobody waits for the slowest, nobody changes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE

from jaxgmm.arrays import budgets
from jaxgmm.arrays.budgets import on_platform
from jaxgmm.execution.queue import iterate_all

pytestmark = pytest.mark.quick

N_LOOPS = 150
STARTS = np.random.default_rng(0).integers(1, 1000, N_LOOPS)


def collatz(number, least=1):
    """How many steps a number takes to get to the least or below."""
    n_steps = 0
    while number > least:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        n_steps += 1
    return number, n_steps


def step(_, state):
    number, n_steps = state
    return jnp.where(number % 2 == 0, number // 2, 3 * number + 1), n_steps + 1


def start_of(numbers):
    return jnp.asarray(numbers, jnp.int32), jnp.zeros(len(numbers), jnp.int32)


@partial(jax.jit, static_argnames="size")
def ends_of_collatz(numbers, wanted, size):
    def going(state):
        return state[0] > 1

    return iterate_all(step, going, start_of(numbers), wanted=wanted, n_slots=lambda: size)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("size", [1, 7, 40, N_LOOPS])
def test_every_loop_ends_as_it_does_alone(size, platform):
    """In any number of slots, with a second phase of fewer slots and without."""
    with on_platform(platform):
        (numbers, n_steps), _ = ends_of_collatz(STARTS, np.ones(N_LOOPS, bool), size)
    expected = [collatz(int(number)) for number in STARTS]
    assert [*zip(numbers.tolist(), n_steps.tolist(), strict=True)] == expected


def test_what_is_not_wanted_stays_where_it_is():
    wanted = np.arange(N_LOOPS) % 3 > 0
    (numbers, n_steps), _ = ends_of_collatz(STARTS, wanted, 7)
    assert np.array_equal(numbers[~wanted], STARTS[~wanted]) and not n_steps[~wanted].any()
    assert np.all(numbers[wanted] == 1)


def test_loops_in_a_row_share_their_data():
    """Of which some leaves are common to all."""
    limits = np.arange(1, 11, dtype=np.int32) * 30

    def step_to_limit(data, state):
        limit, stride = data
        return jnp.minimum(state + stride, limit), limit

    ends, _ = jax.jit(
        lambda: iterate_all(
            lambda data, state: step_to_limit(data, state[0]),
            lambda state: state[0] < state[1],
            (jnp.arange(30, dtype=jnp.int32), jnp.full(30, 10_000, jnp.int32)),
            (jnp.asarray(limits), jnp.asarray(7, jnp.int32)),
            (0, None),
            wanted=jnp.ones(30, bool),
            n_slots=lambda: 4,
            repeats=3,
        )
    )()
    assert np.array_equal(ends[0], np.repeat(limits, 3))


def test_states_keep_their_dtypes():
    """Flags, counts and numbers, which are moved as one vector."""

    def step_of_three(_, state):
        number, count, flag = state
        return number / 2, count + 1, ~flag

    states = (jnp.full(20, 8.0, DTYPE), jnp.arange(20, dtype=jnp.int32), jnp.zeros(20, bool))
    ends, _ = iterate_all(
        step_of_three,
        lambda state: state[0] > 1,
        states,
        wanted=jnp.ones(20, bool),
        n_slots=lambda: 3,
    )
    assert [leaf.dtype for leaf in ends] == [leaf.dtype for leaf in states]
    assert np.array_equal(ends[1], np.arange(20) + 3) and np.all(np.asarray(ends[2]))


def test_slots_are_refilled():
    """A few loops take fifty times as long as the others, and hardly any turn is for nothing."""
    lengths = np.full(400, 20)
    lengths[::100] = 1000

    def length_of(state):
        return state[0] < state[1]

    states = (jnp.zeros(400, jnp.int32), jnp.asarray(lengths, jnp.int32))
    (n_steps, _), n_turns = iterate_all(
        lambda _, state: (state[0] + 1, state[1]),
        length_of,
        states,
        wanted=jnp.ones(400, bool),
        n_slots=lambda: 2 * budgets.CPU.fewer_slots,
    )
    assert np.array_equal(n_steps, lengths)
    assert lengths.sum() < 0.1 * lengths.size * lengths.max()
    assert lengths.sum() > 0.6 * int(n_turns)
