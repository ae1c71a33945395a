"""The estimator beside scikit-learn's, from the same starts by the same rule, and in a grid search.

    python benchmarks/estimator.py [--repeats 3]

Fits are timed alternately, medians of so many, after one that is not counted. The grid of 20
settings and 5 folds is searched in a process of its own that has compiled nothing, and so is
`select` by cross-validation over the same numbers of components and types, with as many restarts
and in float64, too; it stops by its own rule. The report goes to `results/estimator.json`.
"""

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from machine import RESULTS, circumstances, write_report
from sklearn.datasets import load_iris, load_wine

COUNTS, TYPES, FOLDS = [1, 2, 3, 4, 5], ["full", "tied", "diag", "spherical"], 5
RESTARTS = 10


def clusters(n: int, d: int, k: int, dtype: str, apart: float) -> np.ndarray:
    """Correlated clusters whose centers are so far apart, in each feature, in deviations."""
    random = np.random.default_rng(0)
    roots = random.normal(size=(k, d, d)) / np.sqrt(d)
    labels = random.integers(k, size=n)
    noise = np.einsum("nij,nj->ni", roots[labels], random.normal(size=(n, d)))
    return (apart * random.normal(size=(k, d))[labels] + noise).astype(dtype)


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def beside(name: str, x: np.ndarray, k: int, repeats: int) -> dict:
    """A row of the report: seconds of a fit, and of the densities of its rows."""
    import sklearn.mixture

    from jaxgmm.sklearn import GaussianMixture

    kinds = {"scikit-learn": sklearn.mixture.GaussianMixture, "jaxgmm": GaussianMixture}
    models = {which: kind(k, random_state=0, max_iter=500) for which, kind in kinds.items()}
    row: dict = {"data": name, "n": len(x), "d": x.shape[1], "k": k, "dtype": str(x.dtype)}
    times: dict[str, list[float]] = {}
    for number in range(repeats + 1):
        for which, model in models.items():
            for what, function in (("fit", model.fit), ("score", model.score)):
                taken = seconds(lambda function=function: function(x))
                if number:
                    times.setdefault(f"{what}, {which}", []).append(taken)
    row["seconds"] = {what: float(np.median(taken)) for what, taken in times.items()}
    row["n_iter"] = {which: model.n_iter_ for which, model in models.items()}
    row["lower_bound"] = {which: float(model.lower_bound_) for which, model in models.items()}
    return row


def search() -> None:
    """A grid search over the settings, and its seconds."""
    from sklearn.model_selection import GridSearchCV

    from jaxgmm.sklearn import GaussianMixture

    grid = {"n_components": COUNTS, "covariance_type": TYPES}
    model = GaussianMixture(random_state=0, n_init=RESTARTS)
    print(seconds(lambda: GridSearchCV(model, grid, cv=FOLDS).fit(load_wine().data)))


def sweep() -> None:
    """`select` over the same settings, and its seconds."""
    import jax

    import jaxgmm as jg

    jax.config.update("jax_enable_x64", True)
    options = {"criterion": "cv", "n_folds": FOLDS, "n_init": RESTARTS}
    x = load_wine().data
    print(seconds(lambda: jg.select(jax.random.key(0), x, COUNTS, TYPES, **options)))


def cold(name: str) -> float:
    """The seconds of a function of this file in a fresh process."""
    command = [sys.executable, "-W", "ignore", __file__, "--only", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="fits that are timed")
    parser.add_argument("--only", choices=["search", "sweep"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.only:
        {"search": search, "sweep": sweep}[options.only]()
        return
    report = {**circumstances("jaxgmm", "jax", "jaxlib", "scikit-learn"), "rows": []}
    dtypes = ("float64", "float32")
    data = {
        f"clusters, {apart} apart": [(clusters(100_000, 8, 16, of, apart), 16) for of in dtypes]
        for apart in (1.5, 4)
    }
    data["small clusters"] = [(clusters(2_000, 4, 5, "float64", 4), 5)]
    data["iris"] = [(load_iris().data, 3)]
    for name, cases in data.items():
        for x, k in cases:
            report["rows"].append(beside(name, x, k, options.repeats))
            print(report["rows"][-1], flush=True)
            write_report(RESULTS / "estimator.json", report)
    report["cold_seconds"] = {"GridSearchCV": cold("search"), "select": cold("sweep")}
    print(report["cold_seconds"])
    write_report(RESULTS / "estimator.json", report)


if __name__ == "__main__":
    main()
