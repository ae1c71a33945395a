"""The day a GPU is at hand: is the library right on it, how fast, and beside whom.

Run by `accelerators.py --run`, which see. Libraries to be compared with are used where they can be
imported: gmmx, torch for a textbook loop, and gmm-gpu. Nothing is downloaded.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from machine import RESULTS, circumstances, write_report
from parts import read_report
from peers import Gmmx, Jaxgmm, Problem, TorchLoop
from reference import Parameters, em_step, log_likelihood
from timing import timed
from workloads import TYPES, Workload, sample, start

import jaxgmm as jg
from jaxgmm.arrays import budgets
from jaxgmm.kernels.launching import TRITON

SHAPES = (
    ("full", 1_048_576, 8, 32),
    ("full", 65_536, 32, 64),
    ("full", 1_000_000, 16, 64),
    ("diag", 1_048_576, 32, 64),
    ("full", 100_000, 2, 8),
)
REPEATS = 3
# Steps of the two runs whose difference is measured, and of those whose results are compared.
FEW, MANY, COMPARED = 3, 33, 10
# Seconds that a measurement may take, compilation included; with fewer left it isn't begun.
LONGEST = 25.0


class TimeIsShort(Exception):
    """Another measurement might not end in time."""


class Session(NamedTuple):
    """What a part is told.

    Attributes:
        ends: when the time is up, on the clock of `time.monotonic`.
        quick: whether sizes shall be small.
    """

    ends: float
    quick: bool

    def workloads(self) -> list[Workload]:
        """What is fitted."""
        return [
            Workload(kind, "float32", 8 * d * k if self.quick else n, d, k)
            for kind, n, d, k in SHAPES
        ]

    def measured(self, call: Callable[[], Any]) -> Any:
        """What a call returns; its error, if it fails, and why it wasn't made if time is short."""
        if time.monotonic() + LONGEST > self.ends:
            raise TimeIsShort
        try:
            return call()
        except Exception as error:
            return repr(error)[:500]


@contextmanager
def with_budget(**changes: Any) -> Iterator[None]:
    """Within, sizes for accelerators are changed."""
    before = budgets.ACCELERATOR
    budgets.ACCELERATOR = before._replace(**changes)
    jax.clear_caches()
    try:
        yield
    finally:
        budgets.ACCELERATOR = before
        jax.clear_caches()


def forms() -> dict[str, str | None]:
    """The forms of a pass that this device has: XLA's, and on a GPU the library's own kernels."""
    own = {"jaxgmm, kernels": TRITON} if jax.default_backend() == "gpu" else {}
    return {"jaxgmm": None, **own}


@cache
def problem_of(workload: Workload) -> Problem:
    """Rows and a start."""
    random = np.random.default_rng(0)
    x = sample(workload, random)
    return Problem(x, *start(workload, x, random), workload.covariance_type)


def milliseconds(call: Callable[[], Any]) -> float:
    """What a call takes, after a first one."""
    return 1e3 * timed(call, REPEATS).seconds


def step_of(library: Callable[[Problem], Any], problem: Problem) -> float:
    """Milliseconds of an iteration, by the difference of two runs."""
    at_work = library(problem)
    made = [at_work.run(count) for count in (FEW, MANY)]
    few, many = (milliseconds(partial(at_work.run, count)) for count in (FEW, MANY))
    if made[0] == made[1]:
        raise RuntimeError(f"stopped after {made[0]} iterations")
    return (many - few) / (made[1] - made[0])


def step_of_ours(kernels: str | None, problem: Problem) -> float:
    """`step_of` jaxgmm, with or without its own kernels."""
    with with_budget(kernels=kernels):
        return step_of(Jaxgmm, problem)


def correctness(session: Session) -> Iterator[dict]:
    """The parameters after some steps, beside those of NumPy in float64."""
    try:
        for kind in TYPES:
            for dtype in ("float32", "float64"):
                problem = problem_of(Workload(kind, dtype, 40_000, 8, 16))
                wanted = Parameters(*problem[1:4])
                for _ in range(COMPARED):
                    wanted = em_step(wanted, kind, problem.x)
                for form, kernels in forms().items():
                    if kernels is None or dtype == "float32":
                        error = session.measured(partial(errors, problem, kernels, wanted))
                        yield {"form": form, "type": kind, "dtype": dtype, "errors": error}
    finally:
        jax.config.update("jax_enable_x64", False)


def errors(problem: Problem, kernels: str | None, wanted: Parameters) -> dict:
    """Of the log-likelihood, relative, and the largest of each parameter's numbers."""
    with with_budget(kernels=kernels):
        library = Jaxgmm(problem)
        library.run(COMPARED)
        found = Parameters(*(np.asarray(of, np.float64) for of in library.parameters()))
    reached, expected = (
        log_likelihood(of, problem.covariance_type, problem.x) for of in (found, wanted)
    )
    of_parameters = {
        name: float(np.max(np.abs(getattr(found, name) - getattr(wanted, name))))
        for name in Parameters._fields
    }
    return {"log_likelihood": reached / expected - 1, **of_parameters}


def steps(session: Session) -> Iterator[dict]:
    """Milliseconds of an EM step, beside those of others in the same run."""
    for workload in session.workloads():
        problem = problem_of(workload)
        calls = {form: partial(step_of_ours, name, problem) for form, name in forms().items()}
        calls |= {name: partial(step_of, of, problem) for name, of in PEERS.items()}
        for name, call in calls.items():
            found = session.measured(call)
            yield {"library": name, **workload._asdict(), "milliseconds": found}


PEERS = {"gmmx": Gmmx, "torch loop": TorchLoop}


def small_fits(session: Session) -> Iterator[dict]:
    """Milliseconds of whole fits of many small models, starts included."""
    for n_models in (20,) if session.quick else (1_000, 100_000):
        for apart in (12.0, 6.0):
            random = np.random.default_rng(1)
            labels = random.integers(0, 2, (n_models, 400, 1))
            x = random.standard_normal((n_models, 400, 2)) + labels * np.array([apart, 0.0])
            for name, call in {"jaxgmm": fits_of_ours, "gmm-gpu": fits_of_gmm_gpu}.items():
                found = session.measured(partial(call, x.astype(np.float32)))
                yield {"library": name, "models": n_models, "apart": apart, "found": found}


def fits_of_ours(x: np.ndarray) -> dict:
    """Milliseconds, and what is reached."""
    rows = jnp.asarray(x)
    first, later, result = timed(lambda: jg.fit_batch(jax.random.key(0), rows, 2), REPEATS)
    per_row = float(result.log_likelihood.mean()) / x.shape[1]
    found = {"milliseconds": 1e3 * later, "first_call_seconds": first - later}
    return {**found, "log_likelihood_per_row": per_row}


def fits_of_gmm_gpu(x: np.ndarray) -> dict:
    """Milliseconds, at its own tolerance."""
    import torch
    from gmm_gpu.gmm import GMM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = torch.from_numpy(x).to(device)

    def fit() -> None:
        GMM(2, device=device).fit(rows)
        if device == "cuda":
            torch.cuda.synchronize()

    return {"milliseconds": milliseconds(fit)}


def profile(session: Session) -> Iterator[dict]:
    """Microseconds and launches of a step, kernel by kernel."""
    for workload in session.workloads()[:2]:
        for form, kernels in forms().items():
            found = session.measured(partial(launches_of_step, kernels, problem_of(workload)))
            yield {"form": form, **workload._asdict(), "found": found}


def launches_of_step(kernels: str | None, problem: Problem) -> dict:
    """By the difference of the traces of two runs."""
    with with_budget(kernels=kernels):
        library = Jaxgmm(problem)
        library.run(MANY)
        (few_spent, few), (many_spent, many) = (traced(library, n) for n in (FEW, MANY))
    if not many:
        raise RuntimeError("the trace has no kernels")
    many.subtract(few)
    many_spent.subtract(few_spent)
    n_steps = MANY - FEW
    of_kernels = {name: spent / 1e3 / n_steps for name, spent in many_spent.most_common(20)}
    return {"launches": sum(many.values()) / n_steps, "microseconds": of_kernels}


def traced(library: Jaxgmm, n_iter: int) -> tuple[Counter, Counter]:
    """Nanoseconds, and how often, of the kernels on a GPU's streams."""
    spent: Counter = Counter()
    count: Counter = Counter()
    with TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            library.run(n_iter)
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines if "GPU" in plane.name else ():
                    for event in line.events if "Stream" in line.name else ():
                        spent[event.name] += event.duration_ns
                        count[event.name] += 1
    return spent, count


def first_calls(session: Session) -> Iterator[dict]:
    """Seconds of the first call, mostly compilation, less those of the second."""
    for workload in session.workloads():
        kind, problem = workload.covariance_type, problem_of(workload)
        first, x = jg.GaussianMixture.create(*problem[1:4], kind), jnp.asarray(problem.x)
        options = {"covariance_type": kind, "max_iter": 5}
        calls = {
            "em": partial(jg.em, first, x, **options),
            "fit": partial(jg.fit, jax.random.key(0), x, workload.k, **options),
        }
        for name, call in calls.items():
            found = session.measured(partial(extra_seconds, call))
            yield {"of": name, **workload._asdict(), "seconds": found}


def extra_seconds(call: Callable[[], Any]) -> float:
    """What a first call takes longer than a later one."""
    jax.clear_caches()
    first, later, _ = timed(call, 1)
    return first - later


def derivatives(session: Session) -> Iterator[dict]:
    """Milliseconds of a fit and of the gradient through it."""
    workload = Workload("full", "float32", 4_000 if session.quick else 200_000, 8, 8)
    problem = problem_of(workload)
    first, x = jg.GaussianMixture.create(*problem[1:4], "full"), jnp.asarray(problem.x)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(jg.em(first, x, max_iter=200, history=False).mixture.means ** 2)

    for name, function in {"fit": jax.jit(loss), "gradient": jax.jit(jax.grad(loss))}.items():
        found = session.measured(partial(milliseconds, partial(function, x)))
        yield {"of": name, **workload._asdict(), "milliseconds": found}


def sizes(session: Session) -> Iterator[dict]:
    """Milliseconds of a step by the numbers that a chunk of rows may have."""
    for workload in session.workloads()[:3]:
        for power in (22, 24, 26, 28):
            found = session.measured(partial(step_with_chunks, 2**power, problem_of(workload)))
            yield {"chunk": 2**power, **workload._asdict(), "milliseconds": found}


def step_with_chunks(chunk: int, problem: Problem) -> float:
    """`step_of` jaxgmm, with chunks of so many numbers."""
    with with_budget(chunk=chunk):
        return step_of(Jaxgmm, problem)


PARTS = {
    "correctness": correctness,
    "steps": steps,
    "small_fits": small_fits,
    "profile": profile,
    "first_calls": first_calls,
    "derivatives": derivatives,
    "sizes": sizes,
}


def run(limit: float, quick: bool, parts: list[str], output: Path | None) -> None:
    """All parts, or those that are named, in so many seconds; each row is written at once.

    Of what isn't measured anew the report keeps what it has.
    """
    kind = jax.devices()[0].device_kind
    session = Session(time.monotonic() + limit, quick)
    path = output or RESULTS / f"accelerators_{kind.replace(' ', '_')}.json"
    report = {} if quick else read_report(path)
    report |= {**circumstances("jaxgmm", "jax", "jaxlib"), "device": kind}
    for name in ("gmmx", "torch", "gmm-gpu"):
        with suppress(metadata.PackageNotFoundError):
            report["versions"][name] = metadata.version(name)
    for name in parts or PARTS:
        report[name] = []
        for row in rows_of(PARTS[name], session):
            report[name].append(row)
            print(f"{session.ends - time.monotonic():6.0f} s left", name, row, flush=True)
            if output or not quick:
                write_report(path, report)


def rows_of(part: Callable[[Session], Iterator[dict]], session: Session) -> Iterator[dict]:
    """What a part finds, and why it ended if it did before its end."""
    try:
        yield from part(session)
    except TimeIsShort:
        yield {"left_out": "the rest, as time was short"}
    except Exception as error:
        yield {"reason": repr(error)[:500]}
