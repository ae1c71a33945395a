"""Launching a kernel: compiled for a GPU, or interpreted."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

# How kernels are run: compiled by Triton, or step by step, to be tested anywhere. Pallas has
# another backend for NVIDIA's GPUs, Mosaic: it multiplies float32 with 10 bits only. That for
# Triton may be gone from a later JAX, and is imported where it is used.
TRITON, INTERPRETED = "triton", "interpreted"


def power_of_two(number: int) -> int:
    """The smallest that is no less, as Triton's arrays are that long along each axis."""
    return 1 << (number - 1).bit_length()


def runs_with(how: str | None, *arrays: Array) -> bool:
    """Whether a kernel that is run so can read arrays, and give float32.

    Inside of one that is interpreted, JAX loses track of what varies over devices of `shard_map`.
    """
    if how is None or any(array.dtype != jnp.float32 for array in arrays):
        return False
    return how != INTERPRETED or not _varying_axes(_most_varying(arrays))


def _varying_axes(array: Array) -> frozenset[str]:
    return jax.typeof(array).manual_axis_type.varying


def _most_varying(arrays: tuple[Array, ...]) -> Array:
    """The one that varies over most axes of `shard_map`, all others over some of these."""
    return max(arrays, key=lambda array: len(_varying_axes(array)))


def launch(
    kernel: Callable[..., None],
    name: str,
    how: str,
    grid: tuple[int, ...],
    shape: tuple[int, ...],
    n_warps: int,
    *arrays: Array,
) -> Array:
    """What a kernel writes, float32.

    Args:
        kernel: called with references to all arrays, and one to the result.
        name: of the kernel.
        how: `TRITON` or `INTERPRETED`.
        grid: of programs.
        shape: of the result.
        n_warps: of a program.
        *arrays: what it reads.
    """
    varying = {"manual_axis_type": jax.typeof(_most_varying(arrays)).manual_axis_type}
    result = jax.ShapeDtypeStruct(shape, jnp.float32, **varying)
    options: dict[str, Any] = {"interpret": True}
    if how == TRITON:
        from jax.experimental.pallas import triton

        options = {"compiler_params": triton.CompilerParams(num_warps=n_warps, num_stages=2)}
    return pl.pallas_call(kernel, result, grid=grid, name=name, **options)(*arrays)
