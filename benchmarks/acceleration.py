"""How many passes over the data a fit takes, with and without acceleration.

    python benchmarks/acceleration.py [seeds]

Every fit starts from its own seed, the same for all methods, and runs until it says that it has
converged, or for 3000 iterations. Each iteration is one pass over the data, whatever the method.
Prints a table and writes `results/acceleration.json`: passes (median, mean and largest), how many
fits converged, and the final log-likelihoods in nats per row: of the median and the best fit, and
how many fits end above or below the plain fit from the same start by more than 1e-4.
"""

import sys
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from machine import RESULTS, circumstances, write_report
from real_data import data_sets
from workloads import Workload, sample

import jaxgmm as jg

METHODS = (None, "squarem", "anderson")
MAX_ITER = 3000
SEPARATIONS = (8.0, 4.0, 2.0, 1.0)


def problems() -> dict[str, tuple[np.ndarray, int, str]]:
    """Data (N, D), number of components and covariance type, from separated to overlapping."""
    real = data_sets()
    found = {
        "Old Faithful": (real["Old Faithful"], 3, "tied"),
        "Old Faithful, full": (real["Old Faithful"], 4, "full"),
        "iris": (real["iris"], 3, "full"),
        "wine": (real["wine, 4 features"], 3, "diag"),
        "breast cancer": (real["breast cancer, 5 features"], 4, "full"),
    }
    for separation in SEPARATIONS:
        workload = Workload("full", "float64", 2000, 3, 4)
        x = sample(workload, np.random.default_rng(0), separation)
        found[f"means {separation:g} apart"] = (x, 4, "full")
    return found


@partial(jax.jit, static_argnames=("n_components", "covariance_type", "accelerate"))
def fit_each(
    seeds: jax.Array, x: jax.Array, n_components: int, covariance_type: str, accelerate: str | None
) -> jg.FitResult:
    """One fit for each seed, one after the other, so that none waits for the slowest."""

    def one(seed: jax.Array) -> jg.FitResult:
        return jg.fit(
            jax.random.key(seed),
            x,
            n_components,
            covariance_type=covariance_type,
            accelerate=accelerate,
            max_iter=MAX_ITER,
            history=False,
        )

    return jax.lax.map(one, seeds)


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    rows = []
    print(
        f"{'data':22}{'dtype':9}{'method':10}{'median':>8}{'mean':>8}{'max':>6}{'converged':>11}",
        end="",
    )
    print(f"{'median':>11}{'best':>11}{'higher':>8}{'lower':>7}")
    for (name, problem), dtype in product(problems().items(), ("float32", "float64")):
        x, *choices = problem
        plain = None
        for method in METHODS:
            with jax.enable_x64(dtype == "float64"):
                results = fit_each(jnp.arange(seeds), jnp.asarray(x, dtype), *choices, method)
            n_iter = np.asarray(results.n_iter)
            reached = np.asarray(results.objective, np.float64) / len(x)
            plain = reached if method is None else plain
            row = {
                "data": name,
                "dtype": dtype,
                "accelerate": method,
                "median_passes": float(np.median(n_iter)),
                "mean_passes": float(n_iter.mean()),
                "max_passes": int(n_iter.max()),
                "converged": int(np.sum(np.asarray(results.converged))),
                "median_log_likelihood": float(np.median(reached)),
                "best_log_likelihood": float(reached.max()),
                "higher": int(np.sum(reached > plain + 1e-4)),
                "lower": int(np.sum(reached < plain - 1e-4)),
            }
            rows.append(row)
            print(
                f"{name:22}{dtype:9}{method or 'None':10}{row['median_passes']:8.0f}"
                f"{row['mean_passes']:8.1f}{row['max_passes']:6}{row['converged']:6} /{seeds:3}"
                f"{row['median_log_likelihood']:11.4f}{row['best_log_likelihood']:11.4f}"
                f"{row['higher']:8}{row['lower']:7}",
                flush=True,
            )
    report = {**circumstances("jax", "jaxgmm", "numpy"), "seeds": seeds, "rows": rows}
    write_report(RESULTS / "acceleration.json", report)


if __name__ == "__main__":
    main()
