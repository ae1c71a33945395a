"""Functions as whole programs, for which XLA can be asked for more than it does by default."""

from collections.abc import Callable
from functools import cache, cached_property, update_wrapper
from typing import Any

import jax
import jax.numpy as jnp

from jaxgmm.validation import is_concrete

# XLA's CPU backend uses half of a register of AVX-512 unless it is asked for all of it.
OPTIONS: dict[str, str | bool] = {"xla_cpu_prefer_vector_width": "512"}


@cache
def known_options() -> dict[str, str | bool] | None:
    """`OPTIONS` on a CPU, if the XLA that is here knows them; else None."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0).lower().compile(OPTIONS)
    except jax.errors.JaxRuntimeError:
        return None
    return OPTIONS


class Program:
    """A jitted function, compiled with `known_options` where it is a program of its own.

    JAX refuses options for what is part of another program, or of a derivative.
    """

    def __init__(self, function: Callable[..., Any], *static_argnames: str) -> None:
        update_wrapper(self, function)
        self._function, self._static_argnames = function, static_argnames
        self._part = jax.jit(function, static_argnames=static_argnames)

    @cached_property
    def _whole(self) -> Any:
        return jax.jit(
            self._function,
            static_argnames=self._static_argnames,
            compiler_options=known_options(),
        )

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        # What is made here is known only where nothing is being traced.
        if known_options() and is_concrete(*jax.tree.leaves(arguments), jnp.zeros(())):
            return self._whole(*arguments, **static)
        return self._part(*arguments, **static)

    def compiled(self, *arguments: Any, **static: Any) -> Callable[..., Any]:
        """As a program of its own, which is called without the static arguments."""
        return self._whole.lower(*arguments, **static).compile()


def program(*static_argnames: str) -> Callable[[Callable[..., Any]], Program]:
    """Decorates a function that is a `Program`."""
    return lambda function: Program(function, *static_argnames)
