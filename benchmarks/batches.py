"""Many fits in one call, beside a scikit-learn loop and a plain `vmap`.

    python benchmarks/batches.py [--quick] [PART ...]

Parts (all by default), each written to `results/batches.json` as soon as it is measured:

* thousands of small data sets: seconds of `fit_batch` when it is compiled, plain, accelerated and
  polished, of scikit-learn's `GaussianMixture` in a loop, at its defaults and run as far as ours,
  and of `vmap(fit)` (for some of the data sets, scaled to all); mean final log-likelihoods; and
  useful fractions, iterations needed / iterations made, of `fit_batch` and of `vmap`;
* a straggler among a thousand easy models: seconds against the length of its fit;
* restarts of a large fit, and what is lost by finishing only the most promising ones;
* `select` on Old Faithful: seconds in a new process and once compiled.

The picture of the stragglers is `results/stragglers.png`, the table `results/batches.md`.
"""

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from machine import RESULTS
from parts import measure
from real_data import data_sets
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from timing import timed
from workloads import Workload, sample

import jaxgmm as jg
from jaxgmm.fits import restarts

COMPARED = ("jax", "jaxlib", "jaxgmm", "numpy", "scikit-learn")
# Of which the times are scaled to all.
SKLEARN_MODELS, VMAP_MODELS = 100, 1000
# Scikit-learn's default, of the gain of a step; here of all that is left to gain.
PEERS_TOL = 1e-3
TO_THE_END = {"tol": 1e-7, "max_iter": 1000}
STRAGGLER_LENGTHS = (0, 100, 300, 1000, 3000)
SEEDS = 20


def small_data(n_models: int, n: int, d: int, k: int, separation: float) -> np.ndarray:
    """(B, N, D) float32, each from a random mixture of its own; see `workloads.sample`."""
    rng = np.random.default_rng(0)
    workload = Workload("full", "float32", n, d, k)
    return np.stack([sample(workload, rng, separation) for _ in range(n_models)])


def turns_of(function: Callable[[], Any]) -> int:
    """How many turns, of all slots, a call of `fit_batch` makes."""
    turns: list[int] = []
    iterate_all = restarts.iterate_all

    def counted(*arguments: Any, **named: Any) -> tuple[Any, jax.Array]:
        loops, n_turns = iterate_all(*arguments, **named)
        jax.debug.callback(lambda n: turns.append(int(n)), n_turns)
        return loops, n_turns

    restarts.iterate_all = counted
    jax.clear_caches()
    try:
        jax.block_until_ready(function())
    finally:
        restarts.iterate_all = iterate_all
        jax.clear_caches()
    return sum(turns)


def many(quick: bool) -> list[dict]:
    """The table of many small data sets."""
    shapes = [(1_000, 400, 2, 2, 12.0), (1_000, 400, 2, 2, 6.0), (10_000, 200, 3, 3, 3.0)]
    return [small_data_sets(*shape) for shape in ([(60, 100, 2, 2, 6.0)] if quick else shapes)]


def small_data_sets(n_models: int, n: int, d: int, k: int, separation: float) -> dict:
    """One row of the table of many small data sets."""
    key, x = jax.random.key(0), small_data(n_models, n, d, k, separation)
    on_device = jnp.asarray(x)
    first, batch, results = timed(lambda: jg.fit_batch(key, on_device, k), 3)
    _, early, stopped = timed(lambda: jg.fit_batch(key, on_device, k, tol=PEERS_TOL))
    _, fewer, squarem = timed(lambda: jg.fit_batch(key, on_device, k, accelerate="squarem"), 3)
    _, by_newton, polished = timed(lambda: jg.fit_batch(key, on_device, k, polish=True), 3)
    sampled = x[:SKLEARN_MODELS]
    peer, theirs = scikit_learn_loop(sampled, k, n_models)
    peer_to_the_end, theirs_at_the_end = scikit_learn_loop(sampled, k, n_models, **TO_THE_END)

    n_plain = min(n_models, VMAP_MODELS)
    keys = jax.vmap(lambda b: jax.random.fold_in(key, b))(jnp.arange(n_plain))
    fit_each = jax.jit(jax.vmap(lambda key, x: jg.fit(key, x, k, history=False)))
    _, plain, _ = timed(lambda: fit_each(keys, on_device[:n_plain]), repeats=1)

    n_iter = np.asarray(results.n_iter)

    def mean_log_likelihood(result: jg.FitResult) -> float:
        return float(np.mean(np.asarray(result.log_likelihood[: len(sampled)], np.float64)) / n)

    return {
        "models": n_models,
        "n": n,
        "d": d,
        "k": k,
        "separation": separation,
        "first_call_seconds": first,
        "seconds": batch,
        "seconds_accelerated": fewer,
        "seconds_polished": by_newton,
        "scikit_learn_seconds": peer,
        "scikit_learn_seconds_to_the_end": peer_to_the_end,
        "vmap_seconds": plain * n_models / n_plain,
        "log_likelihood": mean_log_likelihood(results),
        "log_likelihood_accelerated": mean_log_likelihood(squarem),
        "log_likelihood_polished": mean_log_likelihood(polished),
        "scikit_learn_log_likelihood": theirs,
        "scikit_learn_log_likelihood_to_the_end": theirs_at_the_end,
        "seconds_with_tol_of_scikit_learn": early,
        "log_likelihood_with_tol_of_scikit_learn": mean_log_likelihood(stopped),
        "statuses": np.bincount(np.asarray(results.status), minlength=4).tolist(),
        "statuses_polished": np.bincount(np.asarray(polished.status), minlength=4).tolist(),
        "mean_iterations": float(n_iter.mean()),
        "max_iterations": int(n_iter.max()),
        "useful_fraction": float(n_iter.sum() / turns_of(lambda: jg.fit_batch(key, on_device, k))),
        "useful_fraction_of_vmap": float(n_iter.mean() / n_iter.max()),
    }


def scikit_learn_loop(sampled: np.ndarray, k: int, n_models: int, **options: Any) -> tuple:
    """Seconds for all models, from those of some, and the mean log-likelihood per row of these."""
    begin = time.perf_counter()
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        fits = [GaussianMixture(k, random_state=0, **options).fit(item) for item in sampled]
    seconds = (time.perf_counter() - begin) * n_models / len(sampled)
    scores = [fit.score(item) for fit, item in zip(fits, sampled, strict=True)]
    return seconds, float(np.mean(scores))


def stragglers(n_models: int) -> list[dict]:
    """Easy models, and the slowest of a thousand others; a length of 0 is without it."""
    key, rng = jax.random.key(0), np.random.default_rng(0)
    centers = np.where(rng.integers(2, size=(n_models, 400, 1)), 4.0, 0.0)
    easy = (centers + rng.standard_normal((n_models, 400, 2))).astype(np.float32)
    others = small_data(1000, 400, 2, 2, 6.0)
    longest = jg.fit_batch(key, others, 2, max_iter=max(STRAGGLER_LENGTHS), tol=1e-12).n_iter
    hard = easy.copy()
    hard[n_models // 2] = others[int(jnp.argmax(longest))]
    keys = jax.vmap(lambda b: jax.random.fold_in(key, b))(jnp.arange(n_models))

    def row(length: int) -> dict:
        x = jnp.asarray(hard if length else easy)
        options = {"max_iter": length or max(STRAGGLER_LENGTHS), "tol": 1e-12}
        fit_each = jax.jit(jax.vmap(lambda key, x: jg.fit(key, x, 2, history=False, **options)))
        _, batch, results = timed(lambda: jg.fit_batch(key, x, 2, **options))
        _, plain, _ = timed(lambda: fit_each(keys, x), repeats=1)
        n_iter = np.sort(np.asarray(results.n_iter))
        found = {
            "length": length,
            "longest": int(n_iter[-1]),
            "longest_of_the_others": int(n_iter[-2]),
            "seconds": batch,
            "vmap_seconds": plain,
        }
        print(found, flush=True)
        return found

    return [row(length) for length in STRAGGLER_LENGTHS]


def large_restarts(n: int, d: int, k: int, n_init: int) -> dict:
    """One large fit with many restarts, beside its restarts one by one."""
    x = jnp.asarray(sample(Workload("full", "float32", n, d, k), np.random.default_rng(0)))
    key = jax.random.key(0)
    _, one, single = timed(lambda: jg.fit(key, x, k, history=False), 3)
    _, several, best = timed(lambda: jg.fit(key, x, k, n_init=n_init, history=False), 1)
    keys = [jax.random.fold_in(jax.random.key(1), restart) for restart in range(n_init)]
    alone = [float(jg.fit(key, x, k, history=False).log_likelihood) / n for key in keys]
    return {
        "n": n,
        "d": d,
        "k": k,
        "n_init": n_init,
        "seconds_of_one": one,
        "seconds": several,
        "iterations_of_one": int(single.n_iter),
        "log_likelihood": float(best.log_likelihood) / n,
        "best_of_single_fits": max(alone),
        "median_of_single_fits": float(np.median(alone)),
    }


def screening(n_init: int, seeds: int) -> list[dict]:
    """What is lost, in nats per row, where restarts are left off after some steps."""
    problems = {
        "Old Faithful": (3, "full"),
        "iris": (3, "full"),
        "wine, 4 features": (3, "diag"),
        "breast cancer, 5 features": (4, "full"),
    }
    data = data_sets()
    rows = []
    for name, (k, covariance_type) in problems.items():
        x = jnp.asarray(data[name], jnp.float32)
        options = {"covariance_type": covariance_type, "n_init": n_init}
        data_of_each = jnp.broadcast_to(x, (seeds, *x.shape))
        screened = jg.fit_batch(jax.random.key(0), data_of_each, k, **options)
        finalists = restarts.FINALISTS
        restarts.FINALISTS = n_init
        jax.clear_caches()
        whole = jg.fit_batch(jax.random.key(0), data_of_each, k, **options)
        restarts.FINALISTS = finalists
        jax.clear_caches()
        lost = np.asarray(whole.objective - screened.objective, np.float64) / len(x)
        rows.append(
            {
                "data": name,
                "k": k,
                "covariance_type": covariance_type,
                "n_init": n_init,
                "seeds": seeds,
                "mean_loss": float(lost.mean()),
                "largest_loss": float(lost.max()),
                "seeds_that_lose": int(np.sum(lost > 1e-4)),
                "degenerate": int(np.sum(np.asarray(screened.status) == jg.Status.DEGENERATE)),
                "degenerate_of_all": int(np.sum(np.asarray(whole.status) == jg.Status.DEGENERATE)),
            }
        )
    return rows


def selection() -> dict:
    """Seconds of the sweep over all types and one to nine components, ten restarts each."""
    code = (
        "import time, jax, numpy as np, jaxgmm as jg, sys\n"
        "x = np.load(sys.argv[1])\n"
        "for _ in range(4):\n"
        "    begin = time.perf_counter()\n"
        "    best = jg.select(jax.random.key(0), x, range(1, 10), n_init=10).best\n"
        "    print(time.perf_counter() - begin, best.mixture.n_components,"
        " best.mixture.covariance_type)\n"
    )
    path = RESULTS / "old_faithful.npy"
    np.save(path, data_sets()["Old Faithful"].astype(np.float32))
    try:
        output = subprocess.run(
            [sys.executable, "-c", code, path], check=True, capture_output=True, text=True
        ).stdout
    finally:
        path.unlink()
    lines = [line.split() for line in output.splitlines()]
    return {
        "first_seconds": float(lines[0][0]),
        "seconds": float(np.median([float(line[0]) for line in lines[1:]])),
        "winner": " ".join(lines[0][1:]),
    }


def table(rows: list[dict]) -> str:
    """The table of the README."""
    lines = [
        "| models × points × features, K | means apart | iterations: mean, most | `fit_batch`"
        ' | `accelerate="squarem"` | `polish=True` | `vmap(fit)` | scikit-learn loop, as far'
        " | useful iterations | `fit_batch`, `tol=1e-3` | scikit-learn loop |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['models']:,} × {row['n']} × {row['d']}, {row['k']} | {row['separation']:g}"
            f" | {row['mean_iterations']:.0f}, {row['max_iterations']} | {row['seconds']:.2f} s"
            f" | {row['seconds_accelerated']:.2f} s | {row['seconds_polished']:.2f} s"
            f" | {row['vmap_seconds']:.1f} s"
            f" | {row['scikit_learn_seconds_to_the_end']:.1f} s"
            f" | {row['useful_fraction']:.0%}, `vmap` {row['useful_fraction_of_vmap']:.0%}"
            f" | {row['seconds_with_tol_of_scikit_learn']:.2f} s"
            f" | {row['scikit_learn_seconds']:.1f} s |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict]) -> None:
    """Seconds against the straggler's length."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(5, 3.5), layout="constrained")).subplots()
    lengths = [row["longest"] for row in rows]
    axes.plot(lengths, [row["vmap_seconds"] for row in rows], "s--", label="vmap(fit)")
    axes.plot(lengths, [row["seconds"] for row in rows], "o-", label="fit_batch")
    axes.set(xlabel="iterations of the slowest of 1,000 models", ylabel="seconds", yscale="log")
    axes.legend()
    figure.savefig(RESULTS / "stragglers.png", dpi=120)


def main() -> None:
    parts = {
        "selection": lambda quick: selection(),
        "many": many,
        "stragglers": lambda quick: stragglers(60 if quick else 1_000),
        "screening": lambda quick: screening(10, 2 if quick else SEEDS),
        "restarts": lambda quick: large_restarts(
            *((2_000, 2, 3, 6) if quick else (200_000, 8, 8, 32))
        ),
    }
    report = measure("batches", __doc__, parts, *COMPARED)
    if report is not None:
        (RESULTS / "batches.md").write_text(table(report["many"]["rows"]))
        draw(report["stragglers"]["rows"])


if __name__ == "__main__":
    main()
