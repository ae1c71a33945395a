"""Arrays on the host: what is known and small, and made there without a program."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.arrays.budgets import budget, default_platform


def is_small(array: Array | np.ndarray) -> bool:
    """Whether an array may be copied and gone through on the host without a thought."""
    return array.size <= budget().small


def is_concrete(*arrays: Any) -> bool:
    """Whether all values are known, that is, none is being traced."""
    return not any(isinstance(array, jax.core.Tracer) for array in arrays)


def from_host(array: np.ndarray, device: jax.Device | None = None) -> Array:
    """A NumPy array that nobody else holds, as JAX's, which may share its memory.

    `jnp.asarray` would copy it, by a program that is compiled for each shape.

    Args:
        array: any.
        device: where to, if that was chosen.
    """
    with jax.ensure_compile_time_eval():
        return jax.device_put(array, device)


def on_host(*arrays: Any) -> bool:
    """Whether NumPy can read arrays of known values without a transfer."""
    devices: set[jax.Device] = set()
    for array in arrays:
        devices |= array.sharding.device_set if isinstance(array, jax.Array) else set()
    return all(device.platform == "cpu" for device in devices)


@contextmanager
def made_on_host() -> Iterator[None]:
    """Within, arrays are made where NumPy can read them without a transfer, if JAX has a CPU."""
    if default_platform() == "cpu":
        yield
        return
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        host = None
    with jax.default_device(host):
        yield


def chosen_device(*arrays: Any) -> jax.Device | None:
    """The one device that arrays of known values were committed to; None for none or several."""
    committed = [array for array in arrays if getattr(array, "committed", False)]
    devices = set().union(*(array.sharding.device_set for array in committed))
    return devices.pop() if len(devices) == 1 else None


def unit_weights(x: Array) -> Array:
    """(N,) ones, for x (..., N, D)."""
    n_rows = x.shape[-2]
    if is_concrete(x) and n_rows * x.shape[-1] <= budget().small:
        return from_host(np.ones(n_rows, x.dtype))
    return jnp.ones(n_rows, x.dtype)
