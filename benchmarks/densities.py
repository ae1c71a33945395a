"""Regression and sampling with a fitted density, beside gmr, scikit-learn and NumPy.

    python benchmarks/densities.py [--quick] [PART ...]

Parts, each written to `results/densities.json`:

* regression: mean of two features given six, for many rows: `regress` (which has the covariances,
  too) beside the `predict` of gmr, on the same parameters, in float64 as gmr computes;
* sampling: rows per second in float32, beside scikit-learn's `sample`, and beside NumPy's random
  numbers alone, which any sampler has to draw.
"""

import time

import gmr
import jax
import jax.numpy as jnp
import numpy as np
from parts import measure
from timing import timed

import jaxgmm as jg

COMPARED = ("jaxgmm", "jax", "jaxlib", "gmr", "numpy", "scikit-learn")


def random_mixture(k: int, d: int, dtype: str) -> jg.GaussianMixture:
    """With full covariances."""
    random = np.random.default_rng(0)
    roots = random.normal(size=(k, d, d)) + 2 * np.eye(d)
    covariances = roots @ np.swapaxes(roots, 1, 2)
    means = 5 * random.normal(size=(k, d))
    parameters = (random.dirichlet(np.ones(k)), means, covariances)
    return jg.GaussianMixture.create(*(jnp.asarray(part, dtype) for part in parameters))


def regression(quick: bool) -> list[dict]:
    """Two features given six."""
    given, n, rows = list(range(6)), 2_000 if quick else 1_000_000, []
    with jax.enable_x64(True):
        exact = random_mixture(16, 8, "float64")
        x = np.asarray(exact.sample(jax.random.key(1), n)[:, :6])
        parameters = (exact.weights, exact.means, exact.covariances)
        peer = gmr.GMM(16, *(np.asarray(part) for part in parameters))
    begin = time.perf_counter()
    expected = peer.predict(np.array(given), x)
    theirs = time.perf_counter() - begin
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            mixture = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), exact)
            values = jnp.asarray(x, dtype)
            row = {"n": n, "d": 8, "k": 16, "dtype": dtype, "gmr_seconds": theirs}
            row["seconds"] = timed(lambda m=mixture, v=values: jg.regress(m, given, v)).seconds
            error = np.abs(np.asarray(jg.regress(mixture, given, values)[0]) - expected)
            rows.append(row | {"largest_difference": float(error.max())})
    return rows


def sampling(quick: bool) -> list[dict]:
    """Draws, and what they are made of."""
    rows = []
    for n, d, k in [(20_000, 2, 4)] if quick else [(10_000_000, 2, 4), (10_000_000, 8, 16)]:
        mixture = random_mixture(k, d, "float32")
        estimator = jg.to_sklearn(mixture)
        keys = iter(jax.random.split(jax.random.key(0), 100))
        ours = timed(lambda mixture=mixture, keys=keys, n=n: mixture.sample(next(keys), n)).seconds
        random = np.random.default_rng(0)
        noise = timed(
            lambda random=random, shape=(n, d): random.standard_normal(shape, np.float32), 3
        ).seconds
        theirs = timed(lambda estimator=estimator, n=n: estimator.sample(n)[0], 1).seconds
        row = {"n": n, "d": d, "k": k, "seconds": ours, "scikit_learn_seconds": theirs}
        rows.append(row | {"numpy_normal_seconds": noise})
    return rows


if __name__ == "__main__":
    measure("densities", __doc__, {"regression": regression, "sampling": sampling}, *COMPARED)
