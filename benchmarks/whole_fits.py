"""Whole fits: from the same start to the same log-likelihood, beside scikit-learn and oneDAL.

    python benchmarks/whole_fits.py [--quick] [PART ...]

jaxgmm's `em` runs at its default tolerance, in float32, in turns with the same on rows that are
spread over a device of the CPU for each core. The others make the steps that EM needs
from the same start to come as near to that log-likelihood as the tolerance is, counted in
float64, as all make the same steps; their own stopping rules aren't asked. Where that is
more than they make in some seconds, or than oneDAL makes before the log-likelihood no longer
changes in float32, so many are timed, and the time is scaled.

Parts: synthetic clusters of each kind, and real tables: digits as 16 principal components, and
breast cancer a hundred times, each time with other noise of a tenth of its deviations. Beside the
times stand the shares of iterations and of components that matrix products made alone.

The report goes to `results/whole_fits.json`.
"""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from environments import FOLDER
from jax.sharding import NamedSharding, PartitionSpec
from machine import threads
from parts import measure
from reference import Parameters
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from speed import PATIENCE, PAUSE, interpreters_of
from workers import Worker, WorkerError
from workloads import KINDS, SHRINKAGE, Workload, sample, start

import jaxgmm as jg

COMPARED = ("jax", "jaxlib", "jaxgmm", "numpy", "scikit-learn")
PEERS = ("scikit-learn", "oneDAL")
SHAPES = ((20_000, 3, 5), (30_000, 8, 16))
REPEATS = 3
SECONDS = 4.0
NEAR_ENOUGH = 1e-7
MOST_ITERATIONS = 3000


def clusters(quick: bool) -> list[dict]:
    """Rows of the first table."""
    rows = []
    for kind in KINDS:
        for shape in [(2_000, 2, 3)] if quick else SHAPES:
            workload = Workload("full", "float32", *shape, kind)
            random = np.random.default_rng(0)
            x = sample(workload, random)
            rows.append(compare(f"{kind}, {shape}", x, start(workload, x, random)))
    return rows


def real_tables(quick: bool) -> list[dict]:
    """Rows of the second table."""
    random = np.random.default_rng(0)
    cancer = load_breast_cancer().data
    cancer = (cancer - cancer.mean(axis=0)) / cancer.std(axis=0)
    repeated = np.repeat(cancer, 2 if quick else 100, axis=0)
    noisy = repeated + 0.1 * random.standard_normal(repeated.shape)
    tables = {
        "digits, 16 principal components": (PCA(16).fit_transform(load_digits().data), 10),
        "breast cancer, repeated with noise": (noisy, 8),
    }
    rows = []
    for name, (table, k) in tables.items():
        x = table.astype(np.float32)
        begin = start(Workload("full", "float32", *x.shape, k), x, random, SHRINKAGE)
        rows.append(compare(name, x, begin))
    return rows


def compare(name: str, x: np.ndarray, begin: Parameters) -> dict:
    """One row: jaxgmm's fit, and what the others take to come as far."""
    first = jg.GaussianMixture.create(*begin, "full")
    options = {"covariance_type": "full", "max_iter": MOST_ITERATIONS, "history": False}

    def fit(data: jax.Array) -> tuple[float, jg.FitResult]:
        time.sleep(PAUSE)
        began = time.perf_counter()
        result = jax.block_until_ready(jg.em(first, data, **options))
        return time.perf_counter() - began, result

    ways = [jnp.asarray(x), *spread(x)]
    result, *_ = (fit(data)[1] for data in ways)
    seconds = np.median([[fit(data)[0] for data in ways] for _ in range(REPEATS)], axis=0)
    n_iter = int(result.n_iter)
    needed = steps_needed(x, begin, result)
    with jg.record_passes() as record:
        fit(ways[0])
    row = {
        "name": name,
        "shape": [*x.shape, len(begin.weights)],
        "status": str(jg.Status(int(result.status)).name),
        "iterations": n_iter,
        "iterations_needed": needed,
        "seconds": float(seconds[0]),
        "seconds_spread": float(seconds[1]) if len(ways) > 1 else None,
        "share_of_iterations_by_products": record.share_of_passes,
        "share_of_components_by_products": record.share_of_components,
    }
    pythons, reasons = interpreters_of(PEERS, FOLDER)
    for library in PEERS:
        try:
            if library in reasons:
                raise WorkerError(reasons[library])
            row[library] = of_peer(pythons[library], library, x, begin, needed)
            row[library]["ratio"] = row[library]["seconds"] / row["seconds"]
        except WorkerError as error:
            row[library] = {"reason": str(error)}
    print(row, flush=True)
    return row


def spread(x: np.ndarray) -> list[jax.Array]:
    """The rows over all devices, if these can share them."""
    if len(x) % jax.device_count():
        return []
    mesh = jax.make_mesh((jax.device_count(),), ("rows",))
    return [jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))]


def steps_needed(x: np.ndarray, begin: Parameters, result: jg.FitResult) -> int:
    """Steps of EM from the start after which the log-likelihood is that of a result, in float64."""
    with jax.enable_x64(True):
        wide = jnp.asarray(x, jnp.float64)
        mixture = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), result.mixture)
        reached = float(jg.log_likelihood(mixture, wide))
        first = jg.GaussianMixture.create(*(np.float64(of) for of in begin), "full")
        most = int(result.n_iter)
        history = np.asarray(jg.em(first, wide, max_iter=most, tol=0, reg_covar=0).history)
    near = history >= reached - NEAR_ENOUGH * len(x)
    return int(np.argmax(near)) + 1 if near.any() else most


def of_peer(python: Path, library: str, x: np.ndarray, begin: Parameters, needed: int) -> dict:
    """Seconds that a library takes for so many iterations."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        np.savez(folder / "problem.npz", x=x, type="full", **begin._asdict())
        worker = stack.enter_context(Worker(python, library, PATIENCE))
        worker.ask("load", str(folder / "problem.npz"))
        worker.run(2)
        time.sleep(PAUSE)
        of_two = worker.run(2)
        timed = min(needed, max(2, int(SECONDS / (of_two / 2))))
        samples = []
        for _ in range(REPEATS):
            time.sleep(PAUSE)
            answer = worker.ask("run", timed)
            samples.append(answer["seconds"] * needed / answer["n_iter"])
    return {"seconds": float(np.median(samples)), "iterations_timed": answer["n_iter"]}


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", threads())
    measure("whole_fits", __doc__, {"clusters": clusters, "real_tables": real_tables}, *COMPARED)
