"""How long a call takes, its results waited for."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Timing(NamedTuple):
    """Seconds of the first call, the median of further ones, and what the last one returned."""

    first: float
    seconds: float
    result: Any


def timed(function: Callable[[], Any], repeats: int = 5) -> Timing:
    """Calls a function once, and `repeats` times more."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        result = jax.block_until_ready(function())
        times.append(time.perf_counter() - begin)
    return Timing(times[0], float(np.median(times[1:])), result)
