"""Functions as whole programs, for which XLA can be asked for more than it does by default."""

import os
from collections.abc import Callable
from functools import cache, update_wrapper
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxgmm.validation import is_concrete

# XLA's CPU backend uses half of a register of AVX-512 unless it is asked for all of it.
OPTIONS: dict[str, str | bool] = {"xla_cpu_prefer_vector_width": "512"}


@cache
def known_options(backend: str) -> dict[str, str | bool] | None:
    """`OPTIONS` on a CPU, if XLA knows them and the user has chosen no others; else None."""
    chosen = any(name in os.environ.get("XLA_FLAGS", "") for name in OPTIONS)
    if backend != "cpu" or chosen:
        return None
    try:
        jax.jit(lambda: 0).lower().compile(OPTIONS)
    except jax.errors.JaxRuntimeError:
        return None
    return OPTIONS


class Program:
    """A jitted function, compiled with `known_options` where it is a program of its own.

    JAX refuses options for what is part of another program, or of a derivative. All arguments but
    the static ones are positional.
    """

    def __init__(self, function: Callable[..., Any], static_argnames: str | tuple[str, ...]):
        update_wrapper(self, function)

        @cache
        def whole(backend: str) -> Any:
            options = known_options(backend)
            return jax.jit(function, static_argnames=static_argnames, compiler_options=options)

        self.part = jax.jit(function, static_argnames=static_argnames)
        self.whole = whole

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        backend = jax.default_backend()
        known = bool(known_options(backend)) and is_concrete(*jax.tree.leaves(arguments))
        # What is made here is known only where no program is being traced.
        if known and is_concrete(lax.iota(np.int32, 1)):
            return self.whole(backend)(*arguments, **static)
        return self.part(*arguments, **static)

    def compiled(self, *arguments: Any, **static: Any) -> Callable[..., Any]:
        """As a program of its own, which is called without the static arguments."""
        return self.whole(jax.default_backend()).lower(*arguments, **static).compile()
