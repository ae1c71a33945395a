"""One program called many times, side by side on the cores of a CPU."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import jax

T = TypeVar("T")


def in_threads(program: Callable[..., T], calls: Iterable[tuple], n_threads: int) -> list[T]:
    """The results of a program's calls.

    JAX runs the operations of a program on a CPU one after the other, and programs that one thread
    has called too. A call returns before its results are there; so each thread waits for them, or
    one of them would take all calls.

    Args:
        program: compiled, since JAX's settings may be other ones in another thread.
        calls: its arguments, which are made in this thread, and not long before they are needed.
        n_threads: so many calls at a time, if so many threads can be begun.
    """

    def call(*arguments: Any) -> T:
        return jax.block_until_ready(program(*arguments))

    def begun(arguments: tuple) -> Future[T]:
        try:
            return pool.submit(call, *arguments)
        except RuntimeError:
            # Python begins no thread when it is ending.
            done: Future[T] = Future()
            done.set_result(call(*arguments))
            return done

    results: list[T] = []
    pending: deque[Future[T]] = deque()
    pool = ThreadPoolExecutor(n_threads)
    try:
        for arguments in calls:
            if len(pending) == 2 * n_threads:
                results.append(pending.popleft().result())
            pending.append(begun(arguments))
        return results + [found.result() for found in pending]
    finally:
        pool.shutdown(cancel_futures=True)
