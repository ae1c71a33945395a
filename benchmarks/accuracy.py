"""What a logit loses in the pass by matrix products, and where the guard gives it up.

    python benchmarks/accuracy.py

Clusters become tighter and tighter beside the distances between them. For each extent of the data
(the largest distance from their center, in standard deviations of the tightest component in its
tightest direction) the script compares the logits of both forms of the pass, by products and by
differences, with those that NumPy has in float64 from the same parameters and rows. Logits near the
largest of their row are what counts: differences are taken over those within 30 nats of it.

Prints a table and writes `results/accuracy.json`.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from machine import RESULTS, circumstances, write_report
from reference import joint_log_prob

import jaxgmm as jg
from jaxgmm.mixtures.densities import log_density
from jaxgmm.steps.features import features_for
from jaxgmm.steps.products import LOGIT_ERROR, is_accurate, logit_coefficients
from jaxgmm.steps.rows import Rows, standardization_of

N_ROWS = 4000
N_COMPONENTS = 4
TIGHTNESS = 10.0 ** np.arange(0, 8.5, 0.5)
NATS_BELOW = 30.0


def errors(x: jax.Array, labels: np.ndarray, covariance_type: str) -> dict:
    """One row of the table.

    Args:
        x: (N, D).
        labels: (N,) int, the components that the mixture is estimated from.
        covariance_type: "full" or "diag".
    """
    weights = jnp.ones_like(x[:, 0])
    rows = Rows(standardization_of(x, weights, isotropic=False), x, weights)
    z = rows.standardization.standardize(x, weights)
    shares = jnp.asarray(np.eye(N_COMPONENTS)[labels], x.dtype)
    statistics = jg.accumulate(z, shares, covariance_type=covariance_type)
    # What the smallest regularization of a fit leaves of a component without any width.
    smallest = float(jnp.finfo(x.dtype).eps) ** 2
    mixture = jg.m_step(statistics, covariance_type, regularization=smallest)
    features = features_for(mixture, covariance_type == "full")
    products = logit_coefficients(mixture, features).at(features.of(z)).T
    differences = log_density(mixture.covariance, mixture.means, z).T + mixture.log_weights[None]

    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), mixture)
    scale = next(iter(jax.tree.leaves(wide.covariance)))
    factors = scale if scale.ndim == 3 else scale[:, :, None] * np.eye(scale.shape[1])
    exact = joint_log_prob(wide.log_weights, wide.means, factors, np.asarray(z, np.float64))
    counts = exact > exact.max(axis=1, keepdims=True) - NATS_BELOW
    tightest = min(np.linalg.svd(factor, compute_uv=False)[-1] for factor in factors)
    return {
        "extent": float(np.linalg.norm(np.asarray(z), axis=1).max() / tightest),
        "by_products": float(np.abs(np.asarray(products) - exact)[counts].max()),
        "by_differences": float(np.abs(np.asarray(differences) - exact)[counts].max()),
        "accepted": bool(jnp.all(is_accurate(mixture, jnp.max(jnp.abs(z), axis=0)))),
    }


def main() -> None:
    rows = []
    print(f"{'dtype':9}{'type':6}{'D':>3}{'extent/σ':>12}{'products':>12}{'differences':>13}  used")
    for dtype, covariance_type, n_features in product(
        ("float32", "float64"), ("full", "diag"), (2, 8, 32)
    ):
        rng = np.random.default_rng(0)
        labels = np.arange(N_ROWS) % N_COMPONENTS
        centers = rng.normal(size=(N_COMPONENTS, n_features))[labels]
        noise = rng.normal(size=(N_ROWS, n_features))
        for tightness in TIGHTNESS:
            with jax.enable_x64(dtype == "float64"):
                x = jnp.asarray(centers + noise / tightness, dtype)
                row = errors(x, labels, covariance_type)
            choices = {"dtype": dtype, "covariance_type": covariance_type, "d": n_features}
            rows.append({**choices, **row})
            print(
                f"{dtype:9}{covariance_type:6}{n_features:3}{row['extent']:12.3g}"
                f"{row['by_products']:12.2g}{row['by_differences']:13.2g}"
                f"  {'products' if row['accepted'] else 'differences'}",
                flush=True,
            )
    bounds = {f"float{bits}": bound for bits, bound in LOGIT_ERROR.items()}
    report = {**circumstances("jax", "jaxgmm", "numpy"), "stated_error": bounds, "rows": rows}
    write_report(RESULTS / "accuracy.json", report)


if __name__ == "__main__":
    main()
