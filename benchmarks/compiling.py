"""How long a new user waits: the first call of each function, less the second.

    python benchmarks/compiling.py

Of 1000 x 3 and three components, each call in a process of its own without any cache of programs,
in turns; medians. Beside jaxgmm a textbook EM in JAX, whose loop makes 1000 steps of log densities
by triangular solves, and gmmx, which runs in an environment of its own (see `environments.py`).
The report goes to `results/compiling.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SHAPE, N_COMPONENTS, N_MODELS = (1000, 3), 3, 8


def data() -> np.ndarray:
    """Three clusters: (N, D)."""
    rng = np.random.default_rng(0)
    centers = 4 * rng.standard_normal((N_COMPONENTS, SHAPE[1]))
    rows = centers[np.arange(SHAPE[0]) % N_COMPONENTS] + rng.standard_normal(SHAPE)
    return rows.astype(np.float32)


def textbook() -> Callable[[], Any]:
    """A page of JAX: responsibilities, moments, Cholesky factors."""
    import jax
    import jax.numpy as jnp
    from jax.scipy.linalg import solve_triangular
    from jax.scipy.special import logsumexp

    x = jnp.asarray(data())

    def log_prob(log_weight, mean, factor):
        z = solve_triangular(factor, (x - mean).T, lower=True)
        return log_weight - jnp.sum(z**2, axis=0) / 2 - jnp.sum(jnp.log(jnp.diag(factor)))

    def step(_, parameters):
        logits = jax.vmap(log_prob)(*parameters)
        shares = jnp.exp(logits - logsumexp(logits, axis=0))
        count = jnp.sum(shares, axis=1)
        means = shares @ x / count[:, None]
        apart = x[None] - means[:, None]
        covariances = jnp.einsum("kn,kni,knj->kij", shares, apart, apart) / count[:, None, None]
        factors = jnp.linalg.cholesky(covariances + 1e-6 * jnp.eye(x.shape[1]))
        return jnp.log(count / len(x)), means, factors

    @jax.jit
    def em(parameters):
        return jax.lax.fori_loop(0, 1000, step, parameters)

    start = (jnp.zeros(N_COMPONENTS), x[:N_COMPONENTS], jnp.stack([jnp.eye(3)] * N_COMPONENTS))
    return lambda: em(start)


def gmmx() -> Callable[[], Any]:
    """gmmx.EMFitter, from a start."""
    import jax.numpy as jnp
    from gmmx import EMFitter, GaussianMixtureModelJax

    x = jnp.asarray(data())
    start = GaussianMixtureModelJax.from_squeezed(
        means=x[:N_COMPONENTS],
        covariances=jnp.stack([jnp.eye(SHAPE[1])] * N_COMPONENTS),
        weights=jnp.full(N_COMPONENTS, 1 / N_COMPONENTS),
        covariance_type="full",
    )
    return lambda: EMFitter(max_iter=1000).fit(x, start)


def ours(name: str) -> Callable[[], Any]:
    """A function of jaxgmm, with its defaults."""
    import jax
    import jax.numpy as jnp

    import jaxgmm as jg

    x, key = jnp.asarray(data()), jax.random.key(0)
    start = jg.GaussianMixture.create(
        np.full(N_COMPONENTS, 1 / N_COMPONENTS),
        data()[:N_COMPONENTS],
        np.stack([np.eye(SHAPE[1])] * N_COMPONENTS),
    )

    def loss(x):
        return jg.em(start, x, history=False).log_likelihood

    slope = jax.jit(jax.grad(loss))
    batch = jnp.stack([x] * N_MODELS)
    return {
        "em": lambda: jg.em(start, x),
        "fit": lambda: jg.fit(key, x, N_COMPONENTS),
        "gradient of em": lambda: slope(x),
        "fit_batch": lambda: jg.fit_batch(key, batch, N_COMPONENTS),
        "log_prob": lambda: start.log_prob(x),
    }[name]


OTHERS = {"textbook EM": textbook, "gmmx": gmmx}
OURS = ("em", "fit", "gradient of em", "fit_batch", "log_prob")


def measure(case: str) -> float:
    """Seconds of the first call in this process, less those of the second."""
    import jax

    call = OTHERS[case]() if case in OTHERS else ours(case)
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(call()))
        seconds.append(time.perf_counter() - begin)
    return seconds[0] - seconds[1]


def in_a_process(python: str, case: str) -> float:
    """`measure` in a process of its own, without a cache."""
    environment = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    command = [python, __file__, "--case", case]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.case)))
        return
    # Not imported where another environment runs this file.
    from environments import build
    from machine import RESULTS, circumstances, write_report

    pythons = dict.fromkeys((*OURS, "textbook EM"), sys.executable)
    pythons["gmmx"] = str(build("gmmx"))
    seconds: dict[str, list[float]] = {case: [] for case in pythons}
    for _ in range(options.repeats):
        for case, python in pythons.items():
            seconds[case].append(in_a_process(python, case))
    rows = [
        {"case": case, "seconds": float(np.median(of)), "range": [min(of), max(of)]}
        for case, of in seconds.items()
    ]
    for row in rows:
        print(f"{row['case']:16} {row['seconds']:6.2f} s")
    report = {**circumstances("jax", "jaxlib", "jaxgmm"), "shape": SHAPE, "rows": rows}
    write_report(RESULTS / "compiling.json", report)


if __name__ == "__main__":
    main()
