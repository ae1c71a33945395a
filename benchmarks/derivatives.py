"""Derivatives of a fit: what they cost, how wrong they are; and gradients instead of EM.

    python benchmarks/derivatives.py [--quick] [PART ...]

Parts:

* cost: a gradient with respect to all rows beside the fit itself, time and memory (XLA's count of
  temporaries and output, beside the data), from separated to overlapping components, with the rate
  at which EM converges on them;
* memory: temporaries of a gradient, implicit and unrolled, by the number of iterations allowed;
* error: of derivatives by implicit differentiation, one step, and so many unrolled steps, beside
  those of a fit run to its end, in float64, where EM converges fast and slowly;
* optimizers: EM, plain, accelerated and polished, L-BFGS, Adam and Adam on drawn rows from the same
  starts: seconds, iterations, and nats per row below the highest.

Writes `results/derivatives.json`, `derivatives.md`, `derivatives.png` and `memory.png`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from machine import RESULTS
from parts import measure
from timing import timed

import jaxgmm as jg

COMPARED = ("jaxgmm", "jax", "jaxlib", "optax", "numpy")
STEPS = (3, 10, 30, 100, 300, 1000, 3000, 10_000)
ALLOWED = (10, 30, 100, 300, 1000)
SEPARATIONS = {
    "cost": (3.0, 2.5, 1.8),
    "error": (3.2, 1.8, 0.4),
    "optimizers": (6.0, 3.0, 2.0),
}


def problem(n: int, d: int, k: int, separation: float, dtype: str) -> tuple:
    """Rows of a mixture whose means are drawn so far from zero, and a start near the truth."""
    random = np.random.default_rng(0)
    means = random.normal(size=(k, d)) * separation
    x = means[random.integers(k, size=n)] + random.normal(size=(n, d))
    near = means + 0.3 * random.normal(size=means.shape)
    start = (np.full(k, 1 / k), near, np.ones(k))
    mixture = jg.GaussianMixture.create(*(jnp.asarray(a, dtype) for a in start), "spherical")
    return jnp.asarray(x, dtype), mixture


def line(n: int, separation: float) -> tuple:
    """Rows of two unequal components so far apart, and a start at the truth, in float64."""
    random = np.random.default_rng(0)
    left, right = random.normal(size=(n // 2, 2)), random.normal(size=(n - n // 2, 2))
    x = np.concatenate([left, right * [1.0, 0.7] + [separation, 0.0]])
    start = ([0.5, 0.5], [[0.0, 0.0], [separation, 0.0]], [1.0, 1.0])
    return jnp.asarray(x), jg.GaussianMixture.create(*start, "spherical")


def cost(quick: bool) -> list[dict]:
    """A gradient beside the fit, float32."""
    rows = []
    for separation in SEPARATIONS["cost"]:
        x, start = problem(2_000 if quick else 200_000, 8, 8, separation, "float32")

        def fit(x: jax.Array, start=start) -> jg.FitResult:
            return jg.em(start, x, covariance_type="full", history=False)

        def number(x: jax.Array, fit=fit) -> jax.Array:
            return jnp.sum(jnp.sin(fit(x).mixture.means))

        compiled = {"fit": jax.jit(fit), "gradient": jax.jit(jax.grad(number))}
        row = {"n": len(x), "d": 8, "k": 8, "separation": separation}
        for name, function in compiled.items():
            memory = function.lower(x).compile().memory_analysis()
            _, row[f"{name}_seconds"], result = timed(partial(function, x))
            row[f"{name}_temporaries_mb"] = memory.temp_size_in_bytes / 1e6
            if name == "fit":
                row |= {"iterations": int(result.n_iter), "status": int(result.status)}
        row["data_mb"] = x.nbytes / 1e6
        row["rate"] = rate(x, start)
        rows.append(row)
    return rows


def rate(x: jax.Array, start: jg.GaussianMixture, max_iter: int = 400) -> float:
    """By what an iteration shortens the distance to the maximum, where nothing else is left.

    The gain of an iteration goes with the square of the distance.
    """
    with jax.enable_x64(True):
        x, start = jax.tree.map(lambda leaf: leaf.astype("float64"), (x, start))
        result = jg.em(start, x, covariance_type="full", max_iter=max_iter, tol=1e-13)
        gains = np.diff(np.asarray(result.history)[: int(result.n_iter)])
    (seen,) = np.nonzero(gains > 1e-12 * abs(float(result.objective)))
    last = seen[-1]
    return float((gains[last] / gains[last - 5]) ** (1 / 10))


def memory(quick: bool) -> list[dict]:
    """Temporaries of a gradient with respect to all rows, float32; nothing is run."""
    x, start = problem(2_000 if quick else 200_000, 8, 8, 3.0, "float32")
    rows = []
    for adjoint in ("implicit", "unroll"):
        for max_iter in ALLOWED[: 2 if quick else None]:

            def number(x: jax.Array, max_iter=max_iter, adjoint=adjoint) -> jax.Array:
                options = {"max_iter": max_iter, "adjoint": adjoint, "history": False}
                return jnp.sum(jg.em(start, x, covariance_type="full", **options).mixture.means)

            used = jax.jit(jax.grad(number)).lower(x).compile().memory_analysis()
            row = {"n": len(x), "d": 8, "k": 8, "adjoint": adjoint, "max_iter": max_iter}
            rows.append(row | {"temporaries_mb": used.temp_size_in_bytes / 1e6})
    return rows


def error(quick: bool) -> list[dict]:
    """Relative errors of the gradient of a smooth number."""
    rows = []
    with jax.enable_x64(True):
        for separation in SEPARATIONS["error"]:
            x, start = line(200 if quick else 1_000, separation)

            def number(x: jax.Array, max_iter: int, tol: float, adjoint: str, start=start):
                result = jg.em(
                    start,
                    x,
                    covariance_type="full",
                    max_iter=max_iter,
                    tol=tol,
                    adjoint=adjoint,
                    history=False,
                )
                return jnp.sum(jnp.sin(result.mixture.means)), result.n_iter

            gradient = jax.jit(jax.grad(number, has_aux=True), static_argnums=(1, 3))
            exact, n_iter = gradient(x, 20_000, 1e-14, "implicit")
            speed = rate(x, start, 20_000)
            ways = [("implicit", 20_000, tol) for tol in (1e-3, 1e-5, 1e-7)]
            ways += [("one_step", 20_000, 1e-14)]
            ways += [("unroll", steps, 0.0) for steps in STEPS[: 3 if quick else None]]
            for adjoint, max_iter, tol in ways:
                found, steps = gradient(x, max_iter, tol, adjoint)
                wrong = jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)
                row = {"separation": separation, "adjoint": adjoint, "tol": tol}
                row |= {"iterations": int(steps), "relative_error": float(wrong)}
                row |= {"iterations_to_1e-14": int(n_iter), "rate": speed}
                rows.append(row)
    return rows


def optimizers(quick: bool) -> list[dict]:
    """The same starts, many ways up, float32."""
    adam, key = optax.adam(0.05), jax.random.key(0)
    many = {"max_iter": 5_000, "history": False, "covariance_type": "full"}
    ways = {
        "EM": jg.em,
        "EM, anderson": partial(jg.em, accelerate="anderson"),
        "EM, polish": partial(jg.em, polish=True),
        "L-BFGS": jg.fit_gradient,
        "Adam": lambda start, x, **options: jg.fit_gradient(start, x, adam, **options),
        "Adam, 1024 drawn rows": partial(jg.fit_gradient, key=key),
    }
    rows = []
    for separation in SEPARATIONS["optimizers"]:
        x, start = problem(500 if quick else 20_000, 4, 5, separation, "float32")
        of_this = []
        for name, way in ways.items():
            options = many | ({"max_iter": 2_000} if "drawn" in name else {})
            _, taken, result = timed(partial(jax.jit(partial(way, start, **options)), x))
            row = {"n": len(x), "d": 4, "k": 5, "separation": separation, "way": name}
            row |= {"seconds": taken, "iterations": int(result.n_iter)}
            row |= {"converged": bool(result.converged)}
            row |= {"log_likelihood": float(result.log_likelihood) / len(x)}
            of_this.append(row)
        top = max(row["log_likelihood"] for row in of_this)
        for row in of_this:
            row["below_highest"] = top - row["log_likelihood"]
        rows += of_this
    return rows


def table(rows: list[dict]) -> str:
    """Markdown of the optimizers."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    lines = ["| means apart | " + " | ".join(ways) + " |", "|---:|" + "---|" * len(ways)]
    for separation in dict.fromkeys(row["separation"] for row in rows):
        cells = []
        for row in rows:
            if row["separation"] == separation:
                mark = "" if row["converged"] else ", not converged"
                cells.append(
                    f"{row['seconds']:.2f} s, {row['iterations']}, {row['below_highest']:.0e}{mark}"
                )
        lines.append(f"| {separation:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict]) -> None:
    """Error against iterations, for each rate at which EM converges."""
    from matplotlib.figure import Figure

    rates = list(dict.fromkeys(row["rate"] for row in rows))
    figure = Figure(figsize=(3 * len(rates), 3), layout="constrained")
    panels = figure.subplots(1, len(rates), sharey=True)
    for axes, rate_of_em in zip(panels, rates, strict=True):
        for adjoint, style in (("unroll", "o-"), ("implicit", "s-"), ("one_step", "^")):
            own = [row for row in rows if (row["rate"], row["adjoint"]) == (rate_of_em, adjoint)]
            steps = [row["iterations"] for row in own]
            axes.plot(steps, [row["relative_error"] for row in own], style, label=adjoint)
        axes.set(xscale="log", yscale="log", xlabel="iterations", title=f"rate {rate_of_em:.3f}")
    figure.axes[0].set_ylabel("relative error of the gradient")
    figure.axes[0].legend()
    figure.savefig(RESULTS / "derivatives.png", dpi=120)


def draw_memory(rows: list[dict]) -> None:
    """Temporaries against the number of iterations."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(5, 3.5), layout="constrained")).subplots()
    for adjoint, style in (("unroll", "o-"), ("implicit", "s-")):
        own = [row for row in rows if row["adjoint"] == adjoint]
        counts = [row["max_iter"] for row in own]
        axes.plot(counts, [row["temporaries_mb"] for row in own], style, label=adjoint)
    axes.set(xscale="log", ylim=(0, None), xlabel="iterations allowed", ylabel="temporaries, MB")
    axes.legend()
    figure.savefig(RESULTS / "memory.png", dpi=120)


def main() -> None:
    parts = {"cost": cost, "memory": memory, "error": error, "optimizers": optimizers}
    report = measure("derivatives", __doc__, parts, *COMPARED)
    if report is not None:
        (RESULTS / "derivatives.md").write_text(table(report["optimizers"]["rows"]))
        draw(report["error"]["rows"])
        draw_memory(report["memory"]["rows"])


if __name__ == "__main__":
    main()
