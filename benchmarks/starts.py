"""What a start costs beside the iterations that follow, and how good the fits are that it leads to.

    python benchmarks/starts.py [--quick] [PART ...]

Parts, each written to `results/starts.json`:

* cost: seconds of the default start in float32, and of the twenty iterations of EM after it: `fit`
  and `em` without iterations, and `em` with twenty, each the median of several calls;
* quality: the log-likelihoods that fits to real data end with, one for each seed, beside those of
  scikit-learn from its default start, run as far. Mean and quartiles of all fits that are not
  flagged, and of those without a component on a handful of rows, see `spurious.py`;
* heavy_tails: how many of twenty fits to data with Student's t around some centers end degenerate,
  by the number of components, and the log density of other rows of the same kind, per row, on
  average and in the median of the fits.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from parts import measure
from real_data import data_sets
from spurious import FLAGGED, fits_of_jaxgmm, fits_of_peer
from timing import timed
from workloads import FULL_32, QUICK, Workload, sample

import jaxgmm as jg

COMPARED = ("jaxgmm", "jax", "jaxlib", "numpy", "scikit-learn")
N_ITER = 20
N_SEEDS = 50
# Rows, features, degrees of freedom and centers of heavy-tailed data, and fits to each.
HEAVY = [(4000, 4, 2.0, 6), (6000, 8, 3.0, 10)]
N_HEAVY = 20


def cost(quick: bool) -> list[dict]:
    """Of a start, and of iterations from it."""
    key, rows = jax.random.key(0), []
    for n, d, k in QUICK if quick else FULL_32:
        x = jnp.asarray(sample(Workload("full", "float32", n, d, k), np.random.default_rng(0)))
        options = {"tol": 0.0, "history": False}
        begin = partial(jg.fit, key, x, k, max_iter=0, **options)
        mixture = begin().mixture
        climb = partial(jg.em, mixture, x, covariance_type="full", **options)
        started, ended = timed(begin).seconds, timed(partial(climb, max_iter=0)).seconds
        climbed = timed(partial(climb, max_iter=N_ITER)).seconds
        row = {"n": n, "d": d, "k": k, "start_seconds": started - ended}
        row["iterations_seconds"] = climbed - ended
        rows.append(row | {"share": row["start_seconds"] / row["iterations_seconds"]})
    return rows


def quality(quick: bool) -> list[dict]:
    """Means and quartiles of log-likelihoods, per row of the data."""
    n_seeds, rows = 3 if quick else N_SEEDS, []
    for name, x in data_sets().items():
        ways = [("scikit-learn", "float64", fits_of_peer(x, n_seeds, tol=1e-7, max_iter=1000))]
        for dtype in ("float32", "float64"):
            ways.append(("jaxgmm", dtype, fits_of_jaxgmm(x, n_seeds, dtype, "k-means++", None)))
        for library, dtype, fits in ways:
            statuses, values, counts = (np.array(part) for part in zip(*fits, strict=True))
            healthy = ~np.isin(statuses, FLAGGED)
            sound = healthy & (counts >= x.shape[1] + 3)
            row = {"data": name, "library": library, "dtype": dtype}
            for group, chosen in (("healthy", healthy), ("sound", sound)):
                per_row = values[chosen] / len(x)
                quartiles = np.quantile(per_row, np.linspace(0, 1, 5)).tolist()
                summary = {"fits": len(per_row), "mean": per_row.mean(), "quartiles": quartiles}
                row[group] = summary
            rows.append(row)
    return rows


def student(n: int, d: int, dof: float, centers: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two samples (n, d) of Student's t around the same centers, correlated within clusters."""
    random = np.random.default_rng(seed)
    means = 4 * random.normal(size=(centers, d))
    factors = np.eye(d) + random.normal(size=(centers, d, d)) / np.sqrt(d)

    def draw() -> np.ndarray:
        label = random.integers(centers, size=n)
        noise = random.normal(size=(n, d)) / np.sqrt(random.chisquare(dof, size=(n, 1)) / dof)
        return means[label] + np.einsum("nij,nj->ni", factors[label], noise)

    return draw(), draw()


def heavy_tails(quick: bool) -> list[dict]:
    """Fits that end degenerate, and log densities of rows that weren't seen."""
    rows = []
    for n, d, dof, centers in HEAVY[:1] if quick else HEAVY:
        seen, unseen = student(n, d, dof, centers, seed=0)
        for dtype, k in product(("float32", "float64"), (10,) if quick else (10, 40, 80)):
            with jax.enable_x64(True):
                weights = jnp.ones((3 if quick else N_HEAVY, n), dtype)
                options = {"weights": weights, "max_iter": 300, "tol": 1e-6}
                found = jg.fit_batch(jax.random.key(0), jnp.asarray(seen, dtype), k, **options)
                mixture = jax.tree.map(lambda leaf: leaf.astype("float64"), found.mixture)
                total = jax.lax.map(partial(jg.log_likelihood, x=unseen), mixture)
                per_row = np.asarray(total) / n
            row = {"n": n, "d": d, "dof": dof, "centers": centers, "dtype": dtype, "k": k}
            row["fits"] = len(weights)
            row["degenerate"] = int(np.sum(found.status == jg.Status.DEGENERATE))
            row["unseen_mean"] = float(np.mean(per_row))
            row["unseen_median"] = float(np.median(per_row))
            rows.append(row)
            print(row, flush=True)
    return rows


if __name__ == "__main__":
    parts = {"cost": cost, "quality": quality, "heavy_tails": heavy_tails}
    measure("starts", __doc__, parts, *COMPARED)
