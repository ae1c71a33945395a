"""Functions as whole programs, for which XLA can be asked for other than its default options."""

import os
from collections.abc import Callable
from functools import cache, partial, update_wrapper, wraps
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgmm.arrays import shards
from jaxgmm.arrays.budgets import budget, on_platform, platform_of
from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.placement import spread_of

# XLA's CPU backend uses half of a register of AVX-512 unless it is asked for all of it.
OPTIONS: dict[str, str | bool] = {"xla_cpu_prefer_vector_width": "512"}
# In JAX 0.10 it has two emitters of kernels. That of long standing takes half as long, and what it
# makes is slower in long passes, by a half. In short ones, wide registers make no difference, too.
HURRIED: dict[str, str | bool] = {"xla_cpu_use_fusion_emitters": False}
# Loops and branches are part of a CUDA graph, so that no turn waits for the host, if XLA is asked
# for it and the driver can. What comes before them here is what XLA of JAX 0.11 and 0.12 puts there
# by default.
IN_GRAPHS: dict[str, str | bool] = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,"
    "DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
}


@cache
def known_options(platform: str | None, hurried: bool = False) -> dict[str, str | bool]:
    """What a program for a platform is compiled with, of what XLA knows and the user hasn't chosen.

    Args:
        platform: such as "cpu" or "gpu".
        hurried: whether it is to be compiled fast; if XLA doesn't know how to, as always.
    """
    wanted = {"cpu": [HURRIED, OPTIONS] if hurried else [OPTIONS], "gpu": [IN_GRAPHS]}
    # Of GPUs only NVIDIA's: those of others don't always survive loops in graphs.
    backend = "cuda" if platform == "gpu" else platform
    found = (
        {name: value for name, value in options.items() if _is_free(name, value, backend)}
        for options in wanted.get(platform or "", [])
    )
    return next(filter(None, found), {})


def _is_free(name: str, value: str | bool, backend: str | None) -> bool:
    """Whether there is a backend, and it knows an option that the user has not chosen."""
    if name in os.environ.get("XLA_FLAGS", ""):
        return False
    try:
        with jax.default_device(jax.local_devices(backend=backend)[0]):
            jax.jit(lambda: 0).lower().compile({name: value})
    except RuntimeError:
        return False
    return True


class Axes(NamedTuple):
    """Which axis of an argument's arrays is that of rows, and of models; None where none is."""

    rows: int | None = None
    models: int | None = None


Layout = Callable[..., dict[int, Axes]]


def without_rows(*_: Any) -> dict[int, Axes]:
    """Of a program of which nothing is spread."""
    return {}


def rows_from(first: int, last: int) -> Layout:
    """Of a program whose arguments with these numbers have a first axis of rows."""
    return lambda *_: dict.fromkeys(range(first, last + 1), Axes(rows=0))


def points_at(number: int, n_axes: int = 1) -> Layout:
    """Of a program whose argument with this number are points, if there are several.

    Args:
        number: of the argument.
        n_axes: that a point has: 1 for (..., D), 0 for numbers.
    """
    return lambda *given: {number: Axes(rows=0)} if given[number].ndim > n_axes else {}


class Place(NamedTuple):
    """Where a program runs.

    Attributes:
        platform: such as "cpu"; None where nobody knows.
        rows: axes of a mesh, along which its rows are spread.
        models: likewise its models.
        mesh: over whose devices the program is to be spread; None where that has been done.
    """

    platform: str | None
    rows: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    mesh: Any = None

    def program(self, function: Callable[..., Any], layout: Layout, of_each_row: bool) -> Any:
        """The function, traced for this place; see `PlatformProgram`."""

        @wraps(function)
        def own(*arguments: Any, **static: Any) -> Any:
            with on_platform(self.platform), shards.rows_over(self.rows):
                return function(*arguments, **static)

        @wraps(function)
        def on_all(*arguments: Any, **static: Any) -> Any:
            axes = layout(*arguments)
            specs = tuple(self.spec(axes.get(i, Axes())) for i in range(len(arguments)))
            result = self.spec(Axes(rows=0) if of_each_row else Axes(models=0))
            spread = jax.shard_map(
                partial(own, **static), mesh=self.mesh, in_specs=specs, out_specs=result
            )
            return spread(*arguments)

        return own if self.mesh is None else on_all

    def spec(self, axes: Axes) -> P:
        """How arrays with these axes are spread."""
        along = {axes.rows: self.rows, axes.models: self.models}
        last = max(
            (axis for axis, names in along.items() if axis is not None and names), default=-1
        )
        return P(*(along.get(axis) or None for axis in range(last + 1)))

    def put(self, arguments: tuple[Any, ...], layout: Layout) -> tuple[Any, ...]:
        """The arguments where the program wants them."""
        if self.mesh is None:
            return arguments
        axes = layout(*arguments)

        moved = jax.device_put if isinstance(self.mesh, Mesh) else jax.sharding.reshard
        specs = (self.spec(axes.get(i, Axes())) for i in range(len(arguments)))
        shardings = (NamedSharding(self.mesh, spec) for spec in specs)
        pairs = zip(arguments, shardings, strict=True)
        return tuple(jax.tree.map(lambda leaf, to=to: moved(leaf, to), of) for of, to in pairs)


class PlatformProgram:
    """A jitted function, a program of its own for each place that its arguments are at.

    What it is made of asks for the sizes of that platform, see `budgets`. Where rows or models are
    spread over devices, each makes its own part: of rows as `shards` says, and of models alone. All
    arguments but the static ones are positional.

    Attributes:
        layout: from the arguments to the axes of those that have some, by number.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        static_argnames: str | tuple[str, ...] = (),
        layout: Layout = without_rows,
        of_each_row: bool = False,
    ):
        """A program.

        Args:
            function: that is jitted.
            static_argnames: see `jax.jit`.
            layout: see above. Where models are spread, all results lead with them.
            of_each_row: whether results lead with the rows; else each is of all of them.
        """
        update_wrapper(self, function)
        self.layout = layout

        @cache
        def inlined(place: Place) -> Any:
            made = place.program(function, layout, of_each_row)
            return jax.jit(made, static_argnames=static_argnames)

        self.inlined = inlined

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        place = self.place_of(arguments)
        return self.inlined(place)(*place.put(arguments, self.layout), **static)

    def place_of(self, arguments: tuple[Any, ...]) -> Place:
        """Where a program with these arguments runs."""
        platform = platform_of(*jax.tree.leaves(arguments))
        along: dict[str, tuple[str, ...]] = {}
        meshes = []
        for number, axes in self.layout(*arguments).items():
            for leaf in jax.tree.leaves(arguments[number]):
                for name, axis in axes._asdict().items():
                    spread = None if axis is None else spread_of(leaf, axis)
                    if spread is not None:
                        along.setdefault(name, spread[0])
                        meshes.append(spread[1])
        if not meshes:
            return Place(platform, shards.row_axes())
        # What is traced knows its mesh without the devices.
        abstract = [mesh.abstract_mesh for mesh in meshes]
        if any(mesh != abstract[0] for mesh in abstract):
            raise ValueError("data are spread over several meshes; put all of them on one")
        mesh = next((mesh for mesh in meshes if not isinstance(mesh, Mesh)), meshes[0])
        models = along.get("models", ())
        # Rows are whole where models have their axes.
        rows = tuple(axis for axis in along.get("rows", ()) if axis not in models)
        return Place(platform, rows, models, mesh)


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
        layout: Layout = without_rows,
    ):
        super().__init__(function, static_argnames, layout)
        self.pass_size = pass_size

        @cache
        def standalone(place: Place, hurried: bool) -> Any:
            options = known_options(place.platform, hurried) or None
            made = place.program(function, layout, of_each_row=False)
            return jax.jit(made, static_argnames=static_argnames, compiler_options=options)

        self._standalone = standalone

    def __call__(self, *arguments: Any, **static: Any) -> Any:
        place = self.place_of(arguments)
        # What is made here is known only where no program is being traced.
        if is_concrete(*jax.tree.leaves(arguments), lax.iota(np.int32, 1)):
            program = self.standalone(place, self.pass_size(*arguments, **static))
        else:
            program = self.inlined(place)
        return program(*place.put(arguments, self.layout), **static)

    def standalone(self, place: Place, size: float) -> Any:
        """As a program of its own, jitted, whose passes have a size."""
        with on_platform(place.platform):
            hurried = size <= budget().hurried_pass
        return self._standalone(place, hurried)

    def compiled(self, *arguments: Any, n_calls: float, **static: Any) -> Callable[..., Any]:
        """As a program of its own, which is called so often, and without the static arguments."""
        size = n_calls * self.pass_size(*arguments, **static)
        program = self.standalone(self.place_of(arguments), size)
        return program.lower(*arguments, **static).compile()
