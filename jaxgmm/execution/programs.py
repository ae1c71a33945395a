"""Functions as whole programs, for which XLA can be asked for more than it does by default."""

import os
from collections.abc import Callable
from functools import cache, update_wrapper
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxgmm.arrays.budgets import budget, made_for, on_platform, platform_of
from jaxgmm.arrays.host import is_concrete

# XLA's CPU backend uses half of a register of AVX-512 unless it is asked for all of it.
OPTIONS: dict[str, str | bool] = {"xla_cpu_prefer_vector_width": "512"}
# In JAX 0.10 it has two emitters of kernels. That of long standing takes half as long, and what it
# makes is slower by a half, which short passes don't notice. Nor do they notice wide registers.
HURRIED: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False}


@cache
def known_options(platform: str | None, hurried: bool = False) -> dict[str, str | bool]:
    """`OPTIONS`, or `HURRIED` ones, for a CPU: those that XLA knows and the user hasn't chosen."""
    if platform != "cpu":
        return {}
    options = HURRIED if hurried else OPTIONS
    return {name: value for name, value in options.items() if _is_free(name, value)}


def _is_free(name: str, value: str | bool) -> bool:
    """Whether XLA knows an option that the user has not chosen."""
    if name in os.environ.get("XLA_FLAGS", ""):
        return False
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(lambda: 0).lower().compile({name: value})
    except jax.errors.JaxRuntimeError:
        return False
    return True


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

    Attributes:
        numbers: how many numbers a pass over the data computes, a function of the arguments that
            aren't static. With few, compiling takes longer than all that follows, and is hurried.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        static_argnames: str | tuple[str, ...],
        numbers: Callable[..., int],
    ):
        super().__init__(function, static_argnames)
        self.numbers = numbers

        @cache
        def standalone(platform: str | None, hurried: bool) -> Any:
            options = known_options(platform, hurried) or None
            made = made_for(platform, function)
            return jax.jit(made, static_argnames=static_argnames, compiler_options=options)

        self._standalone = standalone

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        leaves = jax.tree.leaves(arguments)
        # What is made here is known only where no program is being traced.
        if is_concrete(*leaves, lax.iota(np.int32, 1)):
            return self.standalone(*arguments)(*arguments, **static)
        return self.inlined(platform_of(*leaves))(*arguments, **static)

    def standalone(self, *arguments: Any) -> Any:
        """As a program of its own, jitted."""
        platform = platform_of(*jax.tree.leaves(arguments))
        with on_platform(platform):
            hurried = self.numbers(*arguments) <= budget().hurried_pass
        return self._standalone(platform, hurried)

    def compiled(self, *arguments: Any, **static: Any) -> Callable[..., Any]:
        """As a program of its own, which is called without the static arguments."""
        return self.standalone(*arguments).lower(*arguments, **static).compile()
