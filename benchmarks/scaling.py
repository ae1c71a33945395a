"""Time and memory of a fit as N and K grow.

    python benchmarks/scaling.py [--largest]

Each point is a process of its own, which fits (full covariance, float32, twenty iterations) and
reports its peak resident memory after that, how much of it was there when JAX was imported, and the
seconds of the second call, of an iteration (two numbers of iterations, differenced) and of the
start. Writes `results/scaling.json` and the picture `results/scaling.png`. `--largest` adds the
memory of N = 2,000,000, D = 32, K = 64, three times: of a process that compiles, of one that finds
its programs in JAX's persistent compilation cache, and, with JAX 0.10, of one that compiles in
XLA's older way, which takes less memory, but makes slower programs of few features.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import metadata

import numpy as np
from machine import RESULTS, circumstances, write_report

D = 8
N_ITER = 20
# Of the rows, all numbers of which are multiples of it.
N_PARTS = 100
OVER_N = [(n, D, 16) for n in (10_000, 30_000, 100_000, 300_000, 1_000_000)]
OVER_K = [(100_000, D, k) for k in (4, 8, 16, 32, 64, 128)]
LARGEST = (2_000_000, 32, 64)
OLDER_WAY = "--xla_cpu_use_fusion_emitters=false"


def measure(n: int, d: int, k: int) -> dict:
    """One point, in this process."""
    import jax
    from serve import peak_memory

    import jaxgmm as jg

    imported = peak_memory()

    def draw_part(key: jax.Array) -> jax.Array:
        of_rows, of_offsets = jax.random.split(key)
        offset = jax.random.randint(of_offsets, (n // N_PARTS, 1), 0, 4)
        return jax.random.normal(of_rows, (n // N_PARTS, d)) + offset.astype("float32")

    # In parts, or drawing them would take more memory than fitting them.
    @jax.jit
    def draw_rows(keys: jax.Array) -> jax.Array:
        return jax.lax.map(draw_part, keys).reshape(n, d)

    x = jax.block_until_ready(draw_rows(jax.random.split(jax.random.key(0), N_PARTS)))

    def seconds(max_iter: int) -> float:
        begin = time.perf_counter()
        result = jg.fit(jax.random.key(2), x, k, max_iter=max_iter, tol=0.0)
        jax.block_until_ready(result)
        return time.perf_counter() - begin

    row = {"n": n, "d": d, "k": k, "first_seconds": seconds(N_ITER), "data_bytes": x.nbytes}
    row |= {"imported_bytes": imported, "peak_bytes": peak_memory()}
    if (n, d, k) == LARGEST:
        return row
    counts = (0, N_ITER // 2, N_ITER)
    none, half, whole = (min(seconds(count) for _ in range(4)) for count in counts)
    iteration = (whole - half) / (N_ITER - N_ITER // 2)
    return row | {
        "seconds": whole,
        "iteration_seconds": iteration,
        "start_and_end_seconds": none,
    }


def in_a_process(point: tuple[int, int, int], **environment: str) -> dict:
    """One point, in a process of its own with these variables."""
    n, d, k = point
    command = [sys.executable, __file__, "--point", ",".join(map(str, point))]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    row = json.loads(done.stdout)
    beyond = (row["peak_bytes"] - row["data_bytes"]) / 1e6
    seconds = row.get("iteration_seconds", np.nan)
    print(f"{n} x {d}, {k}: {1e3 * seconds:.2f} ms, {beyond:.0f} MB beyond the data", flush=True)
    return row


def draw(rows: list[dict]) -> None:
    """Time of an iteration over N and over K, with lines of slope one."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.5), sharey=True, layout="constrained")
    for panel, points, axis in zip(panels, (OVER_N, OVER_K), ("n", "k"), strict=True):
        chosen = [row for row in rows if (row["n"], row["d"], row["k"]) in points]
        along = np.array([row[axis] for row in chosen])
        seconds = np.array([row["iteration_seconds"] for row in chosen])
        panel.loglog(along, 1e3 * seconds, "o", label="measured")
        panel.loglog(along, 1e3 * seconds[-1] * along / along[-1], "-", label="linear")
        panel.set_xlabel({"n": f"N (D = {D}, K = 16)", "k": f"K (N = 100,000, D = {D})"}[axis])
    panels[0].set_ylabel("milliseconds per iteration")
    panels[0].legend()
    figure.savefig(RESULTS / "scaling.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--largest", action="store_true", help="2,000,000 x 32, K = 64 as well")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(*map(int, options.point.split(",")))))
        return
    rows = []
    for point in dict.fromkeys([*OVER_N, *OVER_K]):
        rows.append(in_a_process(point))
    if options.largest:
        with tempfile.TemporaryDirectory() as cache:
            for programs in ("compiled", "cached"):
                row = in_a_process(LARGEST, JAX_COMPILATION_CACHE_DIR=cache)
                rows.append({**row, "programs": programs})
        if metadata.version("jaxlib").startswith("0.10."):
            flags = f"{os.environ.get('XLA_FLAGS', '')} {OLDER_WAY}"
            row = in_a_process(LARGEST, XLA_FLAGS=flags)
            rows.append({**row, "programs": OLDER_WAY})
    write_report(RESULTS / "scaling.json", {**circumstances("jax", "jaxgmm"), "rows": rows})
    draw(rows)


if __name__ == "__main__":
    main()
