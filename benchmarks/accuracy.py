"""What a logit loses in the pass by matrix products, and where the guard gives it up.

    python benchmarks/accuracy.py

Clusters become tighter and tighter beside the distances between them. For each extent of the data
(the largest distance from their center, in standard deviations of the tightest component in its
tightest direction) the script compares the logits of both forms of the pass, by products and by
differences, with those that NumPy has in float64 from the same parameters and rows. Logits near the
largest of their row are what counts: differences are taken over those within 30 nats of it.

A second table has the clusters of the speed benchmark after some steps of EM in float32: the error
of logits that products are used for, again within 30 nats of the largest of their row, how many
components are apart, and how far the log-likelihood is from that in float64.

Prints the tables and writes `results/accuracy.json`.
"""

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from machine import RESULTS, circumstances, write_report
from reference import joint_log_prob
from scipy.special import logsumexp
from workloads import KINDS, Workload, sample, start

import jaxgmm as jg
from jaxgmm.arrays import budgets
from jaxgmm.mixtures.densities import log_density
from jaxgmm.steps.expectation import expected_statistics
from jaxgmm.steps.features import features_for
from jaxgmm.steps.forms import LOGIT_ERROR, Forms, extent_of, forms_of
from jaxgmm.steps.problem import ready_to_whiten
from jaxgmm.steps.products import logit_coefficients
from jaxgmm.steps.rows import Rows, standardization_of

N_ROWS = 4000
N_COMPONENTS = 4
TIGHTNESS = 10.0 ** np.arange(0, 8.5, 0.5)
NATS_BELOW = 30.0
SHAPES = ((60_000, 3, 8), (60_000, 8, 16), (60_000, 12, 24), (60_000, 16, 32), (30_000, 32, 64))
STEPS = (1, 5, 20, 60)


def by_products(mixture: jg.GaussianMixture, forms: Forms, z: jax.Array, full: bool) -> np.ndarray:
    """Logits by products about the origin of the forms: (N, K)."""
    moved = replace(mixture, means=mixture.means - forms.origin[None])
    features = features_for(mixture, full)
    values = features.of(z - forms.origin[None])
    return np.asarray(logit_coefficients(moved, features).at(values).T, np.float64)


def in_double(mixture: jg.GaussianMixture, z: np.ndarray) -> np.ndarray:
    """Logits in float64 from the same parameters and rows (N, D): (N, K)."""
    log_weights, means = np.float64(mixture.log_weights), np.float64(mixture.means)
    return joint_log_prob(log_weights, means, factors_of(mixture), z)


def factors_of(mixture: jg.GaussianMixture) -> np.ndarray:
    """Lower Cholesky factors of the covariances: (K, D, D) float64."""
    scale = np.float64(jax.tree.leaves(mixture.covariance)[0])
    return scale if scale.ndim == 3 else scale[:, :, None] * np.eye(scale.shape[1])


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
    forms = forms_of(rows, mixture, extent_of(rows, N_COMPONENTS, None))
    products = by_products(mixture, forms, z, covariance_type == "full")
    differences = log_density(mixture.covariance, mixture.means, z).T + mixture.log_weights[None]
    exact = in_double(mixture, np.asarray(z, np.float64))
    counts = exact > exact.max(axis=1, keepdims=True) - NATS_BELOW
    tightest = min(np.linalg.svd(of, compute_uv=False)[-1] for of in factors_of(mixture))
    return {
        "extent": float(np.linalg.norm(np.asarray(z), axis=1).max() / tightest),
        "by_products": float(np.abs(products - exact)[counts].max()),
        "by_differences": float(np.abs(np.asarray(differences) - exact)[counts].max()),
        "accepted": not np.any(forms.logits_apart),
    }


def of_workload(workload: Workload) -> dict:
    """One row of the second table."""
    random = np.random.default_rng(0)
    data = sample(workload, random)
    first = start(workload, data, random)
    x = jnp.asarray(data)
    weights = jnp.ones_like(x[:, 0])
    rows = Rows(standardization_of(x, weights, isotropic=False), x, weights)
    z = rows.standardization.standardize(x, weights)
    extent = extent_of(rows, workload.k, None)
    begin = jg.GaussianMixture.create(first.weights, first.means, first.covariances, "full")
    found = {"logit_error": 0.0, "log_likelihood_error": 0.0, "apart": [], "moments_apart": []}
    for n_steps in STEPS:
        fit = jg.em(begin, x, covariance_type="full", max_iter=n_steps, tol=0, reg_covar=0)
        mixture = ready_to_whiten(rows.standardization.transform(fit.mixture))
        forms = forms_of(rows, mixture, extent)
        total = jax.jit(expected_statistics, static_argnums=2)(rows, mixture, True, extent)
        kept = ~np.asarray(forms.logits_apart)
        exact_total, volume = 0.0, np.sum(np.log(np.float64(rows.standardization.scale)))
        for part in np.array_split(np.arange(len(data)), len(data) // 5000):
            chunk = z[part]
            exact = in_double(mixture, np.asarray(chunk, np.float64))
            counts = (exact > exact.max(axis=1, keepdims=True) - NATS_BELOW) & kept[None]
            error = np.abs(by_products(mixture, forms, chunk, True) - exact)
            found["logit_error"] = max(found["logit_error"], float(error[counts].max(initial=0)))
            exact_total += np.sum(logsumexp(exact, axis=1) - volume)
        error = abs(float(total.log_likelihood) - exact_total) / abs(exact_total)
        found["log_likelihood_error"] = max(found["log_likelihood_error"], float(error))
        found["apart"].append(int(np.sum(~kept)))
        found["moments_apart"].append(int(np.sum(forms.moments_apart)))
    return found


def main() -> None:
    # However few rows there are.
    budgets.CPU = budgets.CPU._replace(smallest_pass=0)
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
    of_workloads = []
    for kind, shape in product(KINDS, SHAPES):
        workload = Workload("full", "float32", *shape, kind)
        found = of_workload(workload)
        of_workloads.append({**workload._asdict(), **found})
        print(*workload, found, flush=True)
    bounds = {f"float{bits}": bound for bits, bound in LOGIT_ERROR.items()}
    report = {**circumstances("jax", "jaxgmm", "numpy"), "stated_error": bounds, "rows": rows}
    report |= {"steps": STEPS, "workloads": of_workloads}
    write_report(RESULTS / "accuracy.json", report)


if __name__ == "__main__":
    main()
