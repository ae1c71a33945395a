"""Functions as whole programs, for which XLA can be asked for more than it does by default."""

import os
from collections.abc import Callable
from functools import cache, update_wrapper
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxgmm.arrays.budgets import made_for, platform_of
from jaxgmm.arrays.host import is_concrete

# XLA's CPU backend uses half of a register of AVX-512 unless it is asked for all of it.
OPTIONS: dict[str, str | bool] = {"xla_cpu_prefer_vector_width": "512"}


@cache
def known_options(platform: str | None) -> dict[str, str | bool] | None:
    """`OPTIONS` on a CPU, if XLA knows them and the user has chosen no others; else None."""
    chosen = any(name in os.environ.get("XLA_FLAGS", "") for name in OPTIONS)
    if platform != "cpu" or chosen:
        return None
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda: 0).lower().compile(OPTIONS)
    except jax.errors.JaxRuntimeError:
        return None
    return OPTIONS


class PlatformProgram:
    """A jitted function, a program of its own for each platform that its arguments are on.

    What it is made of asks for the sizes of that platform, see `budgets`. All arguments but the
    static ones are positional.
    """

    def __init__(self, function: Callable[..., Any], static_argnames: str | tuple[str, ...] = ()):
        update_wrapper(self, function)

        @cache
        def inlined(platform: str | None) -> Any:
            return jax.jit(made_for(platform, function), static_argnames=static_argnames)

        self.inlined = inlined

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        return self.inlined(platform_of(*jax.tree.leaves(arguments)))(*arguments, **static)


class Program(PlatformProgram):
    """A program that is compiled with `known_options` where it is one of its own.

    JAX refuses options for what is part of another program, or of a derivative.
    """

    def __init__(self, function: Callable[..., Any], static_argnames: str | tuple[str, ...]):
        super().__init__(function, static_argnames)

        @cache
        def standalone(platform: str | None) -> Any:
            options = known_options(platform)
            made = made_for(platform, function)
            return jax.jit(made, static_argnames=static_argnames, compiler_options=options)

        self.standalone = standalone

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        leaves = jax.tree.leaves(arguments)
        platform = platform_of(*leaves)
        known = bool(known_options(platform)) and is_concrete(*leaves)
        # What is made here is known only where no program is being traced.
        if known and is_concrete(lax.iota(np.int32, 1)):
            return self.standalone(platform)(*arguments, **static)
        return self.inlined(platform)(*arguments, **static)

    def compiled(self, *arguments: Any, **static: Any) -> Callable[..., Any]:
        """As a program of its own, which is called without the static arguments."""
        platform = platform_of(*jax.tree.leaves(arguments))
        return self.standalone(platform).lower(*arguments, **static).compile()
