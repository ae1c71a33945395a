"""What the speed benchmark runs on: shapes, data, starts, and the arithmetic that a step needs."""

from typing import NamedTuple

import numpy as np
from reference import Parameters, estimate

SEPARATION = 4.0
LLOYD_STEPS = 2
ROWS_PER_FEATURE, MOST_DRAWS = 2, 100
TYPES = ("full", "tied", "diag", "spherical")
DTYPES = ("float32", "float64")
KINDS = ("round", "correlated", "one tight", "heavy tails")
TIGHTNESS = 0.03
DEGREES_OF_FREEDOM = 3
# The share of the average within clusters in the covariances of a start, unless they are round.
SHRINKAGE = 0.1


class Workload(NamedTuple):
    """One row of a table: N rows, D features, K components, and what the clusters are like."""

    covariance_type: str
    dtype: str
    n: int
    d: int
    k: int
    kind: str = "round"


FULL_32 = ((100_000, 2, 8), (100_000, 8, 16), (100_000, 16, 32), (50_000, 32, 64), (50_000, 64, 32))
FULL_64 = ((100_000, 8, 16), (100_000, 16, 32), (50_000, 32, 64))
OTHERS = ((100_000, 8, 16), (100_000, 32, 16))
QUICK = ((5_000, 2, 4),)


def planned(shapes: tuple[tuple[int, int, int], ...] | None = None) -> list[Workload]:
    """The rows of all tables; with `shapes` every table has these instead of its own."""
    plan = [("full", "float32", FULL_32), ("full", "float64", FULL_64)]
    plan += [(covariance_type, "float32", OTHERS) for covariance_type in TYPES[1:]]
    return [
        Workload(covariance_type, dtype, *shape, kind)
        for covariance_type, dtype, own in plan
        for kind in KINDS
        for shape in shapes or own
    ]


def sample(
    workload: Workload, rng: np.random.Generator, separation: float = SEPARATION
) -> np.ndarray:
    """Rows of a random mixture: (N, D) in the workload's dtype.

    Weights lie within a factor of three of each other, and two means are typically `separation`
    apart whatever D is: components overlap, more where many of them share few dimensions. Round
    clusters have random axes with standard deviations between 0.7 and 1.4. Correlated ones are
    white noise times I + G / √D, with G of normal numbers: some of the K are nearly singular. One
    tight cluster is a thirtieth as wide as the others, and heavy tails are Student's t with three
    degrees of freedom.
    """
    _, dtype, n, d, k, kind = workload
    weights = rng.uniform(0.5, 1.5, k)
    labels = rng.choice(k, n, p=weights / weights.sum())
    means = rng.standard_normal((k, d)) * separation / np.sqrt(2 * d)
    axes = np.linalg.qr(rng.standard_normal((k, d, d)))[0]
    factors = axes * rng.uniform(0.7, 1.4, (k, 1, d))
    if kind == "correlated":
        factors = np.eye(d) + rng.standard_normal((k, d, d)) / np.sqrt(d)
    elif kind == "one tight":
        factors[0] *= TIGHTNESS
    x = np.empty((n, d))
    for component in range(k):
        chosen = labels == component
        noise = rng.standard_normal((chosen.sum(), d))
        if kind == "heavy tails":
            square = rng.chisquare(DEGREES_OF_FREEDOM, (len(noise), 1))
            noise /= np.sqrt(square / DEGREES_OF_FREEDOM)
        x[chosen] = means[component] + noise @ factors[component].T
    return x.astype(dtype)


def start(
    workload: Workload, x: np.ndarray, rng: np.random.Generator, shrinkage: float | None = None
) -> Parameters:
    """The M-step of a partition: rows go to the nearest of K rows drawn at random, after two steps
    of Lloyd's algorithm. Centers of groups that then have too few rows for a covariance are drawn
    anew, and where clusters aren't round covariances are drawn toward their average.

    Computed in float64, and rounded to the dtype of x.
    """
    wide = x.astype(np.float64)
    centers = wide[rng.choice(len(x), workload.k, replace=False)]
    labels = nearest(wide, centers)
    for _ in range(LLOYD_STEPS):
        centers = np.stack([wide[labels == k].mean(axis=0) for k in range(workload.k)])
        labels = nearest(wide, centers)
    for _ in range(MOST_DRAWS):
        few = np.bincount(labels, minlength=workload.k) < ROWS_PER_FEATURE * workload.d
        if not few.any():
            break
        centers[few] = wide[rng.choice(len(x), few.sum(), replace=False)]
        labels = nearest(wide, centers)
    else:
        raise RuntimeError(f"no {workload.k} groups with {ROWS_PER_FEATURE} rows for each feature")
    found = estimate(wide, labels, workload.covariance_type)
    if shrinkage is None:
        shrinkage = 0 if workload.kind == "round" else SHRINKAGE
    if shrinkage and workload.covariance_type != "tied":
        average = np.tensordot(found.weights, found.covariances, 1)
        shrunk = (1 - shrinkage) * found.covariances + shrinkage * average
        found = found._replace(covariances=shrunk)
    return Parameters(*(field.astype(x.dtype) for field in found))


def nearest(x: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Which of the centers (K, D) each row of x (N, D) is nearest to: (N,) int."""
    return np.argmax(x @ centers.T - np.sum(centers**2, axis=1) / 2, axis=1)


def step_flop(workload: Workload) -> int:
    """Floating point operations of one EM step's two matrix products, where logits and moments are
    linear in features of a row: all products of two coordinates for full covariances, the squares
    for diag and spherical, the coordinates alone for tied."""
    covariance_type, _, n, d, k, _ = workload
    features = {
        "full": (d + 1) * (d + 2) // 2,
        "tied": d + 1,
        "diag": 2 * d + 1,
        "spherical": 2 * d + 1,
    }
    return 4 * n * k * features[covariance_type]
