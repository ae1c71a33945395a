"""Tuned sizes by platform: the only file that asks JAX which platform it is.

A program is for the platform of the devices that its arguments were committed to; without any, for
that of JAX's default device, and else of its default backend. Where somebody else's program is
being traced, nobody knows yet: it may be exported for another platform. So what can, is traced for
a CPU and for accelerators, and JAX lowers the one that is wanted.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax import lax

T = TypeVar("T")


class Budget(NamedTuple):
    """Sizes that were tuned for a platform.

    Attributes:
        chunk: numbers in the intermediate arrays of a chunk of rows.
        overlaps: whether the last chunk starts early, so that all are one program; or else what is
            left behind whole chunks is another one, and no row is computed twice.
        of_one_core: bytes in the features of a chunk of rows that one core alone goes through
            without ever leaving its cache.
        components_of_one_core: with at most so many components, counted once for each core, one
            core alone makes a pass; fewer where rows are wide.
        features_in_block: so many features at most are multiplied at a time; None for all.
        gathers_features: whether coordinates that are multiplied by one another are picked by their
            numbers, or else each is multiplied by all that follow it.
        sums_are_products: whether sums of many rows are made by a product with ones.
        few_arrays: reductions over a first axis of at most so many arrays are written out.
        repeats_work: whether an array is made again for each use, unless a product has made it.
        feature_by_feature: whether distances are summed one feature after the other.
        branches_are_slow: whether operations inside of a branch have less of the machine.
        sparseness: of a component that products lose the rows that matter are gathered where they
            are no more than one in so many, and none are gone through where there are none.
        fewest_picked: products in a component's differences of a chunk from which on it is worth
            looking which rows matter; infinite for never.
        in_slots: numbers of which each operation on slots computes that many, at most.
        at_once: likewise where nothing is refilled, and more only wait for the slowest.
        fewer_slots: when the queue is empty and few fits are left, there are so many times fewer
            slots; 1 for never.
        refill: slots are refilled when one in so many has ended.
        few_left: when the queue is empty and one fit in so many slots is left, there may be fewer.
        kernels: how those of the library are run, see `kernels.launching`; None for none.
        side_by_side: passes of several fits by matrix products that are made at once, at most.
        smallest_pass: with fewer products than this, counts included, a pass over the data is too
            short for a second form of it to be worth compiling.
        hurried_pass: with at most so many products in all passes that are made side by side,
            compiling is hurried.
        padded_pass: with at most so many numbers in a pass, fits with any number of components are
            made by one program.
        common_pass: likewise those of all covariance types.
        block: numbers of pairs of components, or of draws and components, that one intermediate
            array has at most.
        unlooped: numbers, as many as whitening all components by all others makes, that aren't
            worth a loop.
        small: numbers of an array that may be copied and gone through on the host without a
            thought.
        large_batch: numbers in the data of all models above which models aren't copied.
        calls_per_thread: calls that each thread makes at least, if there are as many models.
        models_in_call: models that each of these calls fits at most.
        numbers_in_call: numbers in the data of these models, at most.
    """

    chunk: int
    overlaps: bool
    features_in_block: int | None
    gathers_features: bool
    sums_are_products: bool
    few_arrays: int
    repeats_work: bool
    feature_by_feature: bool
    branches_are_slow: bool
    in_slots: int
    at_once: int
    fewer_slots: int
    side_by_side: float
    kernels: str | None = None
    refill: int = 8
    few_left: int = 2
    sparseness: int = 2**5
    fewest_picked: float = 2**20
    of_one_core: int = 192 * 2**10
    components_of_one_core: int = 2**6
    smallest_pass: int = 2**20
    hurried_pass: int = 2**19
    padded_pass: int = 2**20
    common_pass: int = 2**18
    block: int = 2**20
    unlooped: int = 2**16
    small: int = 2**17
    large_batch: int = 2**24
    calls_per_thread: int = 4
    models_in_call: int = 2**8
    numbers_in_call: int = 2**22


# Beginning with an operation takes as long as computing thousands of numbers, of which so many
# still fit into a core's cache; panels of longer products don't. A turn costs some operations, and
# some work for each slot, whether or not it is of use. XLA splits neither sums nor what is in a
# branch among cores, and multiplies batches of matrices, as each fit has features of its own, more
# slowly than one after the other.
CPU = Budget(
    chunk=2**18,
    overlaps=True,
    features_in_block=560,
    gathers_features=True,
    sums_are_products=True,
    few_arrays=16,
    repeats_work=True,
    feature_by_feature=True,
    branches_are_slow=True,
    in_slots=2**16,
    at_once=2**12,
    fewer_slots=16,
    side_by_side=1,
)
# What fills a device, and fits into its memory.
ACCELERATOR = Budget(
    chunk=2**26,
    overlaps=False,
    features_in_block=None,
    gathers_features=False,
    sums_are_products=False,
    few_arrays=0,
    repeats_work=False,
    feature_by_feature=False,
    branches_are_slow=False,
    fewest_picked=math.inf,
    in_slots=2**26,
    at_once=2**26,
    fewer_slots=1,
    side_by_side=math.inf,
    # Not by default before they have been seen to be right on a device.
    kernels="triton" if os.environ.get("JAXGMM_KERNELS") == "triton" else None,
)
# XLA's GPU backend cuts products over many rows into pieces, and where they are no multiple of
# these, it copies what is multiplied. Chunks on an accelerator are multiples of so many rows, but
# for a single one that is no longer than some of these.
ALIGNED_ROWS, FEW_ALIGNED = 2**12, 16


def n_cores() -> int:
    """The number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_platform_of_program: ContextVar[str | None] = ContextVar("platform", default=None)


@contextmanager
def on_platform(name: str | None) -> Iterator[None]:
    """Within, programs are made for a platform; None where nobody knows which one."""
    token = _platform_of_program.set(name)
    try:
        yield
    finally:
        _platform_of_program.reset(token)


def made_for(platform: str | None, function: Callable[..., T]) -> Callable[..., T]:
    """The function, traced for a platform."""

    @wraps(function)
    def traced(*arguments: Any, **named: Any) -> T:
        with on_platform(platform):
            return function(*arguments, **named)

    return traced


def platform_of(*arrays: Any) -> str | None:
    """The platform of a program with these arguments, such as "cpu", "gpu" or "tpu".

    None where it can't be known, as a program is being traced.
    """
    given = _platform_of_program.get()
    if given is not None:
        return given
    traced = False
    for array in arrays:
        if isinstance(array, jax.core.Tracer):
            traced = True
        elif getattr(array, "committed", False):
            return next(iter(array.sharding.device_set)).platform
    return None if traced and _may_go_elsewhere() else default_platform()


def _may_go_elsewhere() -> bool:
    """Whether what is traced now may run on another platform than the default one."""
    return isinstance(lax.iota(np.int32, 1), jax.core.Tracer) or default_platform() != "cpu"


def default_platform() -> str:
    """The platform of a program whose arguments don't say: that of the mesh, or JAX's default."""
    mesh_device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    device = mesh_device or getattr(jax.config, "jax_default_device", None)
    name = getattr(device, "platform", device) or jax.default_backend()
    return str(name)


def budget() -> Budget:
    """The sizes for the program that is being made; where nobody knows, for the default one."""
    return CPU if (_platform_of_program.get() or default_platform()) == "cpu" else ACCELERATOR


def by_platform(function: Callable[[], T], asks_for: str | None = None) -> T:
    """The result of a function that asks for the `budget`, and whose shapes don't depend on it.

    Args:
        function: the function.
        asks_for: of the budget, where that alone matters; it may be the same everywhere.
    """
    alike = asks_for is not None and getattr(CPU, asks_for) == getattr(ACCELERATOR, asks_for)
    if alike or _platform_of_program.get() is not None or not _may_go_elsewhere():
        return function()
    # Where derivatives go backward, neither keeps what the other one makes.
    cpu, accelerator = (jax.checkpoint(made_for(name, function)) for name in ("cpu", "accelerator"))
    return lax.platform_dependent(cpu=cpu, default=accelerator)
