"""Time of an EM iteration, beside that of other libraries.

    python benchmarks/speed.py

Clusters are round, correlated, one of them tight, or heavy-tailed; `--kinds` chooses among these,
`--types` and `--dtypes` among covariances and data.

All libraries start from the same mixture, on the same rows, in the same dtype. Each works in a
process of its own that stays alive through a workload, and they take turns: every repeat goes once
through all of them. What one iteration takes is the difference between two runs, of three
iterations and of as many more as take 0.3 seconds, but at most 60. So whatever happens once, such
as checking input or a last pass over the data, cancels. Results are waited for.

Beside the times stand: the log-likelihood after the same number of iterations, computed in float64
from the parameters a library returns, and how far it is from that of a float64 EM in NumPy; what
the first call costs more than the second, which is mostly compilation; the peak resident memory
of the process; and the fraction jaxgmm reaches of the rate at which the machine multiplies large
matrices, measured in the same turns.

The report goes to `results/speed.json`, and as tables to `results/speed.md`. Libraries that need
another environment get one (see `environments.py`); where that fails, the report says why.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from environments import FOLDER, build_all
from machine import RESULTS, circumstances, write_report
from peers import LIBRARIES, PRODUCT_SIZE
from reference import Parameters, em_step, log_likelihood
from speed_tables import markdown
from workers import Worker, WorkerError
from workloads import DTYPES, KINDS, QUICK, TYPES, Workload, planned, sample, start, step_flop

ENVIRONMENT = {"gmmx": "gmmx", "oneDAL": "onedal", "pomegranate": "torch", "gmm-gpu": "torch"}
OURS = ("jaxgmm", "matrix product")
FEW = 3
COMPARED = 10
TARGET_SECONDS = 0.3
PAUSE = 0.25
PATIENCE = 900.0
COMPILATION = 60.0
MOST = 60


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--shapes", nargs="+", metavar="N,D,K", help="these in every table, instead of its own"
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of clusters")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES, help="of covariances")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES, help="of the data")
    parser.add_argument("--quick", action="store_true", help="one small shape in every table")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each library (default: 5)")
    parser.add_argument(
        "--libraries",
        nargs="*",
        choices=(peers := [name for name in LIBRARIES if name not in OURS]),
        default=peers,
        help="beside jaxgmm (default: all)",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=5.0,
        help="a library is left out of a row where an iteration takes longer, in seconds",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the data and the starts")
    parser.add_argument(
        "--environments", type=Path, default=FOLDER, help="folder for other environments"
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "speed.json", help="report; tables go beside it"
    )
    return parser.parse_args()


def interpreters_of(
    libraries: Iterable[str], folder: Path
) -> tuple[dict[str, Path], dict[str, str]]:
    """Python for each library, and why there is none for the others."""
    here = Path(sys.executable)
    needed = {ENVIRONMENT[name] for name in libraries if name in ENVIRONMENT}
    built, missing = build_all(folder, needed)
    found, reasons = {}, {}
    for library in libraries:
        environment = ENVIRONMENT.get(library)
        if environment in missing:
            reasons[library] = missing[environment]
        else:
            found[library] = built.get(environment, here)
    return found, reasons


def seconds_of_iteration(worker: Worker) -> float:
    """A first estimate; everything is compiled afterwards."""
    rough = worker.run(FEW) / FEW
    if rough > TARGET_SECONDS:
        return rough
    more = 5 * FEW
    worker.run(more)
    slope = (worker.run(more) - worker.run(FEW)) / (more - FEW)
    return min(max(slope, rough / 50), rough)


def prepare(worker: Worker, problem: Path, folder: Path, limit: float) -> dict:
    """All that is known of a library before it is timed; compiles what will be timed.

    Returns:
        versions, the first call's cost, peak memory of `COMPARED` iterations, where the parameters
        after these are, and how many iterations to time.
    """
    cell = worker.ask("load", str(problem))
    worker.patience = FEW * limit + COMPILATION
    first = worker.run(FEW)
    worker.patience = PATIENCE
    again = worker.run(FEW)
    cell["first_call_seconds"] = first
    cell["first_call_overhead_seconds"] = max(first - again, 0.0)
    if again / FEW > limit:
        raise WorkerError(f"an iteration takes {again / FEW:.1f} s, the limit is {limit:g} s")
    worker.run(COMPARED)
    result = folder / f"{worker.library}.npz"
    cell |= worker.ask("save", str(result))
    more = math.ceil(TARGET_SECONDS / seconds_of_iteration(worker))
    many = FEW + min(max(more, 2), MOST)
    # oneDAL can't be kept from stopping where the log-likelihood no longer changes at all.
    cell["n_iter"] = [FEW, worker.ask("run", many)["n_iter"]]
    return cell


def turn(worker: Worker, n_iter: list[int]) -> float:
    """Seconds per iteration, from one pair of runs."""
    # Threads of the library before may still be spinning.
    time.sleep(PAUSE)
    # The first run after a pause is slower than others.
    _, few, many = (worker.run(count) for count in (n_iter[0], *n_iter))
    return (many - few) / (n_iter[1] - n_iter[0])


def assess(cell: dict, result: Path, workload: Workload, x: np.ndarray, reference: float) -> None:
    """Adds the log-likelihood of a library's parameters to its cell; None if it isn't finite."""
    with np.load(result) as file:
        parameters = Parameters(*(file[field] for field in Parameters._fields))
    value = log_likelihood(parameters, workload.covariance_type, x)
    finite = math.isfinite(value)
    cell["log_likelihood"] = value if finite else None
    cell["relative_difference"] = (value - reference) / abs(reference) if finite else None


def summarize(cell: dict, samples: list[float]) -> None:
    """Adds median and spread of seconds per iteration to a cell."""
    cell["samples"] = samples
    cell["seconds"] = float(np.median(samples))
    cell["seconds_min"], cell["seconds_max"] = min(samples), max(samples)


def take_turns(workers: dict[str, Worker], cells: dict[str, dict], repeats: int) -> None:
    """Times all workers, one after the other in every repeat, each time from another one on."""
    samples = {library: [] for library in workers}
    for repeat in range(repeats):
        names = [library for library in workers if "reason" not in cells[library]]
        first = repeat % max(len(names), 1)
        for library in names[first:] + names[:first]:
            try:
                samples[library].append(turn(workers[library], cells[library]["n_iter"]))
            except WorkerError as error:
                cells[library] = {"reason": str(error)}
    for library, numbers in samples.items():
        if "reason" not in cells[library]:
            summarize(cells[library], numbers)


def measure(workload: Workload, pythons: dict[str, Path], options: argparse.Namespace) -> dict:
    """One row: the workload, the float64 reference, a cell for each library, and the roofline."""
    rng = np.random.default_rng(options.seed)
    x = sample(workload, rng)
    parameters = begin = start(workload, x, rng)
    for _ in range(COMPARED):
        parameters = em_step(parameters, workload.covariance_type, x)
    reference = log_likelihood(parameters, workload.covariance_type, x)
    cells, workers = {}, {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        problem = folder / "problem.npz"
        np.savez(problem, x=x, type=workload.covariance_type, **begin._asdict())
        for library, python in pythons.items():
            worker = stack.enter_context(Worker(python, library, PATIENCE))
            try:
                cells[library] = prepare(worker, problem, folder, options.limit)
            except WorkerError as error:
                cells[library] = {"reason": str(error)}
                worker.__exit__()
                continue
            workers[library] = worker
            if library != "matrix product":
                assess(cells[library], folder / f"{library}.npz", workload, x, reference)
        take_turns(workers, cells, options.repeats)
    row = {**workload._asdict(), "data_bytes": x.nbytes, "reference_log_likelihood": reference}
    product = cells.pop("matrix product")
    return {**row, "roofline": roofline(workload, product, cells["jaxgmm"]), "libraries": cells}


def roofline(workload: Workload, product: dict, ours: dict) -> dict:
    """The machine's rate, the arithmetic of a step, and the fraction of the rate reached."""
    found = {"step_flop": step_flop(workload)}
    if "reason" in product or "reason" in ours:
        return {**found, "reason": product.get("reason", ours.get("reason"))}
    rate = 2 * PRODUCT_SIZE**3 / product["seconds"]
    reached = found["step_flop"] / ours["seconds"]
    return {
        **found,
        "product_flop_per_second": rate,
        "flop_per_second": reached,
        "fraction": reached / rate,
    }


def main() -> None:
    options = arguments()
    shapes = [tuple(map(int, text.split(","))) for text in options.shapes or ()]
    wanted = [name for name in LIBRARIES if name in (*OURS, *options.libraries)]
    pythons, reasons = interpreters_of(wanted, options.environments)
    report = {
        **circumstances("jaxgmm", "jax", "jaxlib", "numpy", "scikit-learn"),
        "repeats": options.repeats,
        "seed": options.seed,
        "iterations_compared": COMPARED,
        "not_available": reasons,
        "rows": [],
    }
    for workload in planned(tuple(shapes) or (QUICK if options.quick else None)):
        chosen = (options.kinds, options.types, options.dtypes)
        told = (workload.kind, workload.covariance_type, workload.dtype)
        if not all(value in values for value, values in zip(told, chosen, strict=True)):
            continue
        row = measure(workload, pythons, options)
        row["libraries"] |= {library: {"reason": reason} for library, reason in reasons.items()}
        report["rows"].append(row)
        print(*workload, flush=True)
        for library, cell in row["libraries"].items():
            said = cell.get("reason") or f"{1e3 * cell['seconds']:10.3f} ms"
            print(f"    {library:14}{said}", flush=True)
        write_report(options.output, report)
        options.output.with_suffix(".md").write_text(markdown(report))


if __name__ == "__main__":
    main()
