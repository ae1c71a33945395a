"""Functions as whole programs, for which XLA can be asked for other than its default options."""

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
# makes is slower in long passes, by a half. In short ones, wide registers make no difference, too.
HURRIED: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False}


@cache
def known_options(platform: str | None, hurried: bool = False) -> dict[str, str | bool]:
    """What a program for a platform is compiled with, of what XLA knows and the user hasn't chosen.

    Args:
        platform: only a CPU has options.
        hurried: whether it is to be compiled fast; if XLA doesn't know how to, as always.
    """
    if platform != "cpu":
        return {}
    found = [
        {name: value for name, value in options.items() if _is_free(name, value)}
        for options in ([HURRIED, OPTIONS] if hurried else [OPTIONS])
    ]
    return next(filter(None, found), {})


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
        pass_size: of the arguments, see `products.products_in_pass`. Where it is small, compiling
            takes longer than all that follows, and is hurried.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        static_argnames: str | tuple[str, ...],
        pass_size: Callable[..., int],
    ):
        super().__init__(function, static_argnames)
        self.pass_size = pass_size

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
            size = self.pass_size(*arguments, **static)
            return self.standalone(size, *leaves)(*arguments, **static)
        return self.inlined(platform_of(*leaves))(*arguments, **static)

    def standalone(self, size: float, *leaves: Any) -> Any:
        """As a program of its own for such arguments, jitted, whose passes have a size."""
        platform = platform_of(*leaves)
        with on_platform(platform):
            hurried = size <= budget().hurried_pass
        return self._standalone(platform, hurried)

    def compiled(self, *arguments: Any, n_calls: float, **static: Any) -> Callable[..., Any]:
        """As a program of its own, which is called so often, and without the static arguments."""
        size = n_calls * self.pass_size(*arguments, **static)
        program = self.standalone(size, *jax.tree.leaves(arguments))
        return program.lower(*arguments, **static).compile()
