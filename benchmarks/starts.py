"""What a start costs beside the iterations that follow, and how good the fits are that it leads to.

    python benchmarks/starts.py [--quick] [PART ...]

Parts, each written to `results/starts.json`:

* cost: seconds of the default start in float32, and of the twenty iterations of EM after it: `fit`
  and `em` without iterations, and `em` with twenty, each the median of several calls;
* quality: the log-likelihoods that fits to real data end with, one for each seed, beside those of
  scikit-learn from its default start, run as far. Mean and quartiles of all fits that are not
  flagged, and of those without a component on a handful of rows, see `spurious.py`.
"""

from functools import partial

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


if __name__ == "__main__":
    measure("starts", __doc__, {"cost": cost, "quality": quality}, *COMPARED)
