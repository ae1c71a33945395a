"""How often a fit ends with a component on a handful of rows and doesn't say so.

Every fit starts from its own seed. A fit is spurious if it is not flagged (jaxgmm: DEGENERATE or
NON_FINITE; scikit-learn has no such flag) although some component has fewer than D + 3 effective
rows, Σ_n r_nk: hardly more than it takes to have a covariance at all. The maxima that such
components belong to are real, and the likelihood prefers them; they mean nothing.

    python benchmarks/spurious.py [seeds]

prints a table and writes `results/spurious.json`. The log-likelihoods of both libraries are those
of their final mixtures on the same data, in float64, in nats per data set.
"""

import sys
import warnings
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from machine import RESULTS, circumstances, write_report
from real_data import data_sets
from reference import joint_log_prob
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Peer

import jaxgmm as jg

N_COMPONENTS = 4
FLAGGED = (jg.Status.DEGENERATE, jg.Status.NON_FINITE)
VARIANTS = [
    (dtype, init, reg_covar)
    for dtype in ("float32", "float64")
    for init, reg_covar in (
        ("k-means++", None),
        ("kmeans", None),
        ("k-means++", 1e-4),
        ("k-means++", 1e-3),
    )
]


def score(log_weights: np.ndarray, means: np.ndarray, factors: np.ndarray, x: np.ndarray):
    """Log-likelihood and effective rows of each component, in float64: (), (K,).

    Args:
        log_weights: (K,).
        means: (K, D).
        factors: (K, D, D) lower Cholesky factors of the covariances.
        x: (N, D).
    """
    logits = joint_log_prob(log_weights, means, factors, x)
    log_prob = np.logaddexp.reduce(logits, axis=1)
    return float(log_prob.sum()), np.exp(logits - log_prob[:, None]).sum(axis=0)


@partial(jax.jit, static_argnames="init")
def fit_each(seeds: jax.Array, x: jax.Array, reg_covar: jax.Array, init: str) -> jg.FitResult:
    """One fit for each seed, one after the other, so that none waits for the slowest."""

    def one(seed: jax.Array) -> jg.FitResult:
        key = jax.random.key(seed)
        return jg.fit(key, x, N_COMPONENTS, init=init, reg_covar=reg_covar, history=False)

    return jax.lax.map(one, seeds)


def fits_of_jaxgmm(x: np.ndarray, seeds: int, dtype: str, init: str, reg_covar: float | None):
    """Status, log-likelihood and smallest effective count of each fit."""
    with jax.enable_x64(dtype == "float64"):
        default = 1e-15 if dtype == "float64" else 1e-9
        number = jnp.asarray(default if reg_covar is None else reg_covar, dtype)
        results = jax.device_get(fit_each(jnp.arange(seeds), jnp.asarray(x, dtype), number, init))
    mixture = jax.tree.map(lambda leaf: leaf.astype(np.float64), results.mixture)
    for seed in range(seeds):
        scale_tril = mixture.covariance.scale_tril[seed]
        log_weights, means = mixture.log_weights[seed], mixture.means[seed]
        log_likelihood, count = score(log_weights, means, scale_tril, x)
        yield jg.Status(int(results.status[seed])), log_likelihood, count.min()


def fits_of_peer(x: np.ndarray, seeds: int, **options: float):
    """The same of scikit-learn, by default at its defaults; its status is that of its own flag."""
    for seed in range(seeds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            peer = Peer(N_COMPONENTS, random_state=seed, **options).fit(x)
        factors = np.linalg.cholesky(peer.covariances_)
        log_likelihood, count = score(np.log(peer.weights_), peer.means_, factors, x)
        status = jg.Status.CONVERGED if peer.converged_ else jg.Status.MAX_ITER
        yield status, log_likelihood, count.min()


def summary(fits, n_features: int) -> dict:
    """One row of the table, of an iterable of status, log-likelihood and smallest count."""
    statuses, log_likelihoods, counts = (np.array(column) for column in zip(*fits, strict=True))
    flagged = np.isin(statuses, FLAGGED)
    small = counts < n_features + 3
    of_good = log_likelihoods[~small & ~flagged]
    return {
        "fits": len(statuses),
        "spurious": int(np.sum(small & ~flagged)),
        "status": {s.name: n for s, n in sorted(Counter(map(jg.Status, statuses)).items())},
        "median_log_likelihood": float(np.median(log_likelihoods)),
        "max_log_likelihood": float(np.max(log_likelihoods)),
        "max_log_likelihood_of_sound_fits": float(np.max(of_good)) if of_good.size else None,
    }


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    rows = []
    print(f"{'data':26}{'library':14}{'dtype':9}{'init':11}{'reg_covar':>9}", end="")
    print(f"{'spurious':>10}{'median':>12}{'max':>12}{'max sound':>12}  status")
    for name, x in data_sets().items():
        cells = [("scikit-learn", "float64", "kmeans", None, fits_of_peer(x, seeds))]
        for variant in VARIANTS:
            cells.append(("jaxgmm", *variant, fits_of_jaxgmm(x, seeds, *variant)))
        for library, dtype, init, reg_covar, fits in cells:
            row = {"data": name, "library": library, "dtype": dtype, "init": init}
            row = {**row, "reg_covar": reg_covar, **summary(fits, x.shape[1])}
            rows.append(row)
            regularization = "default" if reg_covar is None else f"{reg_covar:.0e}"
            sound = row["max_log_likelihood_of_sound_fits"]
            print(
                f"{name:26}{library:14}{dtype:9}{init:11}{regularization:>9}"
                f"{row['spurious']:6} /{seeds:3}{row['median_log_likelihood']:12.2f}"
                f"{row['max_log_likelihood']:12.2f}"
                f"{'' if sound is None else f'{sound:.2f}':>12}  {row['status']}",
                flush=True,
            )
    report = {
        **circumstances("jax", "jaxgmm", "numpy", "scikit-learn"),
        "n_components": N_COMPONENTS,
        "covariance_type": "full",
        "seeds": seeds,
        "rows": rows,
    }
    write_report(RESULTS / "spurious.json", report)


if __name__ == "__main__":
    main()
