"""Fits to many data sets by few calls of one program; on a CPU the calls are side by side."""

from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.arrays.budgets import budget, n_cores, platform_of
from jaxgmm.arrays.host import chosen_device, from_host, on_host
from jaxgmm.arrays.padding import bucket_size, with_rows
from jaxgmm.execution.programs import Program
from jaxgmm.execution.threads import in_threads

T = TypeVar("T")


def fit_blocks(
    function: Program,
    arguments: tuple[Any, ...],
    leading: tuple[bool, ...],
    n_models: int,
    size: int,
    **static: Any,
) -> Any:
    """The results of a function of many models, for arguments whose values are known.

    Args:
        function: of the arguments and of how many of the models are wanted, None for all. All
            leaves of what it returns lead with the models.
        arguments: trees.
        leading: which of them lead with the models.
        n_models: M.
        size: of the data of all models, in numbers.
        **static: the function's other arguments.
    """
    if function.place_of(arguments).mesh is not None:
        return function(*arguments, None, **static)
    # Elsewhere than on a CPU models are side by side within a call.
    leaves = jax.tree.leaves(arguments)
    on_cpu = platform_of(*leaves) == "cpu" and jax.local_device_count("cpu") == 1
    n_threads = n_cores() if on_cpu else 1
    in_block = models_in_block(n_models, size, n_threads)

    def block(first: int) -> tuple[Any, ...]:
        """Some models, behind which others that aren't wanted may fill up."""
        some = partial(with_models, first=first, n_models=in_block)
        trees = zip(arguments, leading, strict=True)
        wanted = from_host(np.asarray(min(in_block, n_models - first)), chosen_device(*leaves))
        return (*(jax.tree.map(some, tree) if own else tree for tree, own in trees), wanted)

    if in_block >= n_models:
        results = [function(*block(0), **static)]
    else:
        compiled = function.compiled(*block(0), n_calls=n_models / in_block, **static)
        results = in_threads(compiled, map(block, range(0, n_models, in_block)), n_threads)
    if in_block == n_models:
        return results[0]

    if not on_host(*jax.tree.leaves(results)):
        return _first_models(results, n_models)

    def joined(*leaves: Array) -> Array:
        some = np.concatenate([np.asarray(leaf) for leaf in leaves])[:n_models]
        return from_host(some, chosen_device(*leaves))

    return jax.tree.map(joined, *results)


@partial(jax.jit, static_argnames="n_models")
def _first_models(results: list[T], n_models: int) -> T:
    """So many models of several results in a row."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:n_models], *results)


def models_in_block(n_models: int, size: int, n_threads: int) -> int:
    """The number of models to fit by one call, such that few sizes have to be compiled.

    Args:
        n_models: M.
        size: of the data of all models, in numbers.
        n_threads: so many calls at a time.
    """
    if n_threads == 1:
        return n_models if size > budget().large_batch else bucket_size(n_models)
    fitting = max(1, budget().numbers_in_call * n_models // size)
    evenly = bucket_size(-(-n_models // (budget().calls_per_thread * n_threads)))
    return min(budget().models_in_call, fitting, evenly)


def with_models(array: Any, first: int, n_models: int) -> Array:
    """So many models of (M, ...), from a first one on; behind the last there are zeros."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        numbers = with_models(jax.random.key_data(array), first, n_models)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(array))
    if first or array.shape[0] > n_models:
        some = np.asarray(array)[first : first + n_models]
        array = from_host(some, chosen_device(array))
    return with_rows(array, n_models)
