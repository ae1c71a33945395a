"""Calls side by side: in order, from arguments that are made as they are needed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from jaxgmm.arrays.budgets import n_cores
from jaxgmm.execution.threads import in_threads


def test_results_are_in_the_order_of_the_calls():
    assert in_threads(lambda a, b: a - b, ((i, 2 * i) for i in range(50)), 3) == [
        -i for i in range(50)
    ]
    assert in_threads(len, [], 3) == []


def test_calls_are_side_by_side():
    """Each waits for the other, for at most ten seconds."""
    together = threading.Barrier(2)
    assert sorted(in_threads(together.wait, [(10,), (10,)], 2)) == [0, 1]


def test_arguments_are_made_shortly_before_they_are_needed():
    made, most = 0, 0
    done = []

    def calls():
        nonlocal made, most
        for i in range(40):
            made += 1
            most = max(most, made - len(done))
            yield (i,)

    in_threads(done.append, calls(), 2)
    assert len(done) == 40 and most <= 2 * 2 + 1


def test_the_first_error_is_raised():
    """And calls that wait for a thread are never begun."""
    begun = []

    def divide(a):
        begun.append(a)
        time.sleep(0.5 * a)
        return 1 // a

    with pytest.raises(ZeroDivisionError):
        in_threads(divide, [(0,), (1,), (1,), (2,), (3,)], 2)
    assert set(begun) <= {0, 1}


def test_each_thread_waits_for_what_it_has_called(monkeypatch):
    """JAX's calls return before their results are there."""
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", lambda found: (waited.append(found), found)[1])
    in_threads(lambda a: -a, [(1,), (2,), (3,)], 2)
    assert sorted(waited) == [-3, -2, -1]


def test_cores():
    assert n_cores() >= 1


def test_no_thread_is_begun_where_python_is_ending(monkeypatch):
    """In a handler of `atexit`, or a thread that outlives the main one."""

    def submit(pool, *arguments):
        raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", submit)
    names = in_threads(lambda: threading.current_thread().name, [()] * 3, 2)
    assert names == [threading.current_thread().name] * 3
