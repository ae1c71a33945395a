"""The library on GPUs and TPUs: what is compiled for one, without having it, and how fast it is.

    python benchmarks/accelerators.py --compile h100 --description FILE [--kernels]
    python benchmarks/accelerators.py --compile v5e
    python benchmarks/accelerators.py --run [--seconds 450] [--quick] [--output FILE] [PART ...]

`--compile` takes the programs of some shapes through XLA for a device that isn't there. It needs
`jax[cuda13]` or `jax[tpu]` and no driver, and for a GPU a description of it, XLA's
`GpuTargetConfigProto` as text. Of each program it shows the seconds of lowering and compiling,
launches in an iteration of EM and the bytes that it moves, also in multiples of one read of the
data, temporary memory, and messages between devices; in `fit_batch` an iteration is one of the
models that are in work. Decisions of the host are those in an iteration on a TPU, and on a GPU the
loops and branches of the whole program that are in no CUDA graph. What is made for components that
products lose isn't counted. `--kernels` has the library's own kernels in them. Where XLA estimates
cycles, as it does for TPUs, milliseconds by these stand there, too.

`--run` is for the day a GPU is at hand. The most important parts come first, each is left out where
time is short, and what is found is written at once; see `on_device.py`.

Reports go to `results/accelerators_TARGET.json`.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hlo import Module, left_to_the_host
from machine import RESULTS, circumstances, write_report
from workloads import Workload, step_flop

TPUS = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
GPUS = ("h100", "h200")
# Bytes and floating point operations in a second: of memory, and of products as accurate as those
# of float32 on the units for matrices, three or six of shorter numbers each. And a TPU's clock.
PEAKS = {"h100": (3.35e12, 165e12), "h200": (4.8e12, 165e12), "v5e": (0.819e12, 33e12)}
CYCLES = {"v5e": 1.5e9}
STEPS = 100


class Program(NamedTuple):
    """A program to be compiled: a fit of rows, or of many models.

    Attributes:
        name: of the function.
        covariance_type: of its mixtures.
        models: B, or None for one.
        n, d, k: rows, features and components.
        devices: that the rows are spread over.
    """

    name: str
    covariance_type: str
    models: int | None
    n: int
    d: int
    k: int
    devices: int = 1


PROGRAMS = (
    Program("em", "full", None, 1_048_576, 8, 32),
    Program("em", "full", None, 65_536, 32, 64),
    Program("em", "full", None, 1_000_000, 16, 64),
    Program("em", "diag", None, 1_048_576, 32, 64),
    Program("em", "tied", None, 1_048_576, 8, 32),
    Program("em", "full", None, 100_000, 2, 8),
    Program("em", "full", None, 1_000, 2, 2),
    Program("fit", "full", None, 1_048_576, 8, 32),
    Program("gradient of em", "full", None, 65_536, 8, 8),
    Program("fit_batch", "full", 1_024, 400, 2, 2),
    Program("fit_batch", "full", 100_000, 400, 2, 2),
    Program("em", "full", None, 1_048_576, 8, 32, 4),
)


def function_of(program: Program) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function that a program is made from, and arguments without values, the rows last."""
    import jax
    import jax.numpy as jnp

    import jaxgmm as jg

    _, covariance_type, models, n, d, k, _ = program
    array = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    scale = {
        "full": lambda: jg.Full(array((k, d, d))),
        "tied": lambda: jg.Full(array((1, d, d))),
        "diag": lambda: jg.Diagonal(array((k, d))),
    }[covariance_type]()
    start = jg.GaussianMixture(array((k,)), array((k, d)), scale)
    key = jax.ShapeDtypeStruct((2,), jnp.uint32)
    options = {"covariance_type": covariance_type, "max_iter": STEPS, "history": False}

    def em(start: jg.GaussianMixture, x: jax.Array) -> jg.FitResult:
        return jg.em(start, x, **options)

    def fit(key: jax.Array, x: jax.Array) -> jg.FitResult:
        return jg.fit(jax.random.wrap_key_data(key), x, k, **options)

    def fit_batch(key: jax.Array, x: jax.Array) -> jg.FitResult:
        return jg.fit_batch(jax.random.wrap_key_data(key), x, k, **options)

    def slope(start: jg.GaussianMixture, x: jax.Array) -> jax.Array:
        return jax.grad(lambda x: em(start, x).log_likelihood)(x)

    rows = array((n, d) if models is None else (models, n, d))
    return {
        "em": (em, (start, rows)),
        "fit": (fit, (key, rows)),
        "fit_batch": (fit_batch, (key, rows)),
        "gradient of em": (slope, (start, rows)),
    }[program.name]


def devices_of(target: str, description: str | None, count: int) -> list[Any]:
    """Devices that aren't there."""
    from jax.experimental import topologies

    if target in TPUS:
        return list(topologies.get_topology_desc(TPUS[target], "tpu").devices)[:count]
    options = {"target_config": description, "topology": f"1x1x{count}"}
    return list(topologies.get_topology_desc(target, "cuda", **options).devices)


def compiled(program: Program, target: str, description: str | None) -> dict:
    """What the compiler says about a program."""
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from jaxgmm.arrays.budgets import on_platform
    from jaxgmm.execution.programs import IN_GRAPHS

    function, arguments = function_of(program)
    mesh = Mesh(np.array(devices_of(target, description, program.devices)), ("rows",))

    def placed(argument: Any, spec: P) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), argument
        )

    *others, rows = arguments
    arguments = (*(placed(of, P()) for of in others), placed(rows, P("rows")))
    if program.devices > 1:
        function = partial(spread, mesh)
    jax.clear_caches()
    began = time.perf_counter()
    with on_platform("tpu" if target in TPUS else "gpu"):
        lowered = jax.jit(function).trace(*arguments).lower()
    lowering = time.perf_counter() - began
    with TemporaryDirectory() as folder:
        options = {} if target in TPUS else {**IN_GRAPHS, "xla_dump_to": folder}
        made = lowered.compile(options)
        thunks = [path.read_text() for path in Path(folder).glob("*_after_thunk_passes.txt")]
    compiling = time.perf_counter() - began - lowering
    row = {
        **program._asdict(),
        "lowering_seconds": lowering,
        "compiling_seconds": compiling,
        "temporary_megabytes": made.memory_analysis().temp_size_in_bytes / 1e6,
    }
    account = Module(made.as_text()).iteration()
    if account is None:
        return row
    row |= {
        "launches": account.launches,
        "host_decisions": decisions_of(thunks) if target in GPUS else account.decisions,
        "bytes": account.bytes,
        "messages": dict(account.collectives),
        "custom_calls": dict(account.custom_calls),
    }
    if account.cycles and target in CYCLES:
        row["milliseconds_by_xla"] = 1e3 * account.cycles / CYCLES[target]
    if program.models is None:
        row["reads_of_the_data"] = account.bytes / (4 * rows.size / program.devices)
        row["milliseconds_at_roofline"] = 1e3 * roofline(program, target)
    return row


def decisions_of(thunks: list[str]) -> int | None:
    """The decisions of the host in a program for a GPU; None where XLA has not listed it."""
    return sum(map(left_to_the_host, thunks)) if thunks else None


def roofline(program: Program, target: str) -> float | None:
    """Seconds that a step takes at least: to read the data, or for its two matrix products."""
    workload = Workload(program.covariance_type, "float32", program.n, program.d, program.k)
    of_bytes, of_flop = PEAKS.get(target, (float("nan"),) * 2)
    reading = 4 * program.n * program.d / of_bytes
    return max(reading, step_flop(workload) / of_flop) / program.devices


def spread(mesh: Any, start: Any, x: Any) -> Any:
    """EM from a start, of rows that each device has its own of."""
    import jax
    from jax.sharding import PartitionSpec as P

    import jaxgmm as jg

    def own(start: Any, x: Any) -> Any:
        return jg.em(start, x, max_iter=STEPS, history=False, axis_name="rows")

    return jax.shard_map(own, mesh=mesh, in_specs=(P(), P("rows")), out_specs=P())(start, x)


def compile_all(options: argparse.Namespace) -> None:
    """The report of `--compile`."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    if options.kernels and options.compile in TPUS:
        raise SystemExit("--kernels are for a GPU")
    if options.compile in GPUS and options.description is None:
        raise SystemExit("--compile for a GPU needs its --description")
    if options.kernels:
        os.environ["JAXGMM_KERNELS"] = "triton"
        pretend_to_have_a_gpu()
    description = options.description and options.description.read_text()
    suffix = "_kernels" if options.kernels else ""
    path = options.output or RESULTS / f"accelerators_{options.compile}{suffix}.json"
    report = {**circumstances("jaxgmm", "jax", "jaxlib"), "target": options.compile, "rows": []}
    for program in PROGRAMS:
        try:
            row = compiled(program, options.compile, description)
        except Exception as error:
            row = {**program._asdict(), "reason": repr(error)[:500]}
        report["rows"].append(row)
        print(row, flush=True)
        write_report(path, report)


def pretend_to_have_a_gpu() -> None:
    """Pallas asks which GPU there is while it lowers a kernel."""
    from jax._src.pallas.triton import gpu_info

    known = gpu_info._get_gpu_info_impl(gpu_info.GpuVersion.H100)
    gpu_info.get_gpu_info = lambda: known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--compile", choices=(*GPUS, *TPUS), help="for a device that isn't there")
    what.add_argument("--run", action="store_true", help="on the device that is here")
    parser.add_argument("--description", type=Path, help="of a GPU that isn't there")
    parser.add_argument("--kernels", action="store_true", help="compile the library's own kernels")
    parser.add_argument("--seconds", type=float, default=450.0, help="for all parts of a run")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--output", type=Path, help="report, instead of one among the results")
    parser.add_argument("parts", nargs="*", metavar="PART", help="of a run")
    options = parser.parse_args()
    if options.compile:
        compile_all(options)
        return
    # Beside other libraries, which want memory of their own.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from on_device import PARTS, run

    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no parts {sorted(unknown)}; there are {', '.join(PARTS)}")
    run(options.seconds, options.quick, options.parts, options.output)


if __name__ == "__main__":
    main()
