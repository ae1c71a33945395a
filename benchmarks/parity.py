"""Fixed points of EM beside scikit-learn's: three data sets, four types, one to five components.

Both libraries start from the same hard partition, use no regularization, and run in float64 until
nothing changes any more. A cell counts as singular, and is not compared, where scikit-learn finds
no Cholesky factor or `fit` calls a component degenerate: without regularization there the
likelihood has no maximum.

    python benchmarks/parity.py

prints the table and writes it to `results/parity.json`.
"""

import warnings

import jax
import numpy as np
from machine import RESULTS, circumstances, write_report
from reference import dense, estimate
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Peer

import jaxgmm as jg

DATA = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
TYPES = ("full", "tied", "diag", "spherical")
COUNTS = (1, 2, 3, 4, 5)
TOL = 1e-14
MAX_ITER = 20_000


def partition(x: np.ndarray, n_components: int) -> np.ndarray:
    """Labels of k-means on standardized features: (N,) int."""
    standardized = (x - x.mean(axis=0)) / x.std(axis=0)
    return KMeans(n_components, n_init=3, random_state=0).fit(standardized).labels_


def fit_peer(x: np.ndarray, labels: np.ndarray, covariance_type: str) -> Peer:
    """scikit-learn's fixed point; ValueError where a covariance is singular."""
    weights, means, covariances = estimate(x, labels, covariance_type)
    invert = np.linalg.inv if covariance_type in ("full", "tied") else np.reciprocal
    try:
        precisions = invert(covariances)
    except np.linalg.LinAlgError as error:
        raise ValueError(str(error)) from None
    peer = Peer(
        len(means),
        covariance_type=covariance_type,
        tol=TOL,
        reg_covar=0,
        max_iter=MAX_ITER,
        weights_init=weights,
        means_init=means,
        precisions_init=precisions,
    )
    with warnings.catch_warnings():
        # At the level of rounding the log-likelihood may never stop changing.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return peer.fit(x)


def compare(x: np.ndarray, labels: np.ndarray, covariance_type: str) -> dict:
    """How far the two fixed points are apart.

    Args:
        x: (N, D) float64.
        labels: (N,) the partition from which both start.
        covariance_type: one of `TYPES`.

    Returns:
        singular: for which library there is nothing to compare, or None; and if None: the total
        log-likelihood and the difference from scikit-learn's, the largest difference of means in
        standard deviations of the component, and of log-determinants.
    """
    n_components = int(labels.max()) + 1
    with jax.enable_x64(True):
        result = jg.fit(
            jax.random.key(0),
            x,
            n_components,
            covariance_type=covariance_type,
            init=np.eye(n_components)[labels],
            reg_covar=0,
            tol=TOL,
            max_iter=MAX_ITER,
            history=False,
        )
        means = np.asarray(result.mixture.means)
        covariances = np.asarray(result.mixture.covariances)
    row = {"status": jg.Status(int(result.status)).name, "n_iter": int(result.n_iter)}
    degenerate = bool(np.any(result.degenerate))
    try:
        peer = fit_peer(x, labels, covariance_type)
    except ValueError:
        return {**row, "singular": "both" if degenerate else "scikit-learn"}
    if degenerate:
        return {**row, "singular": "jaxgmm"}
    covariances_of_peer = dense(peer.covariances_, covariance_type, means.shape)
    deviations = np.sqrt(np.einsum("kdd->kd", covariances_of_peer))
    log_determinants = np.linalg.slogdet(covariances)[1] - np.linalg.slogdet(covariances_of_peer)[1]
    log_likelihood = float(result.log_likelihood)
    return {
        **row,
        "singular": None,
        "n_iter_of_peer": int(peer.n_iter_),
        "log_likelihood": log_likelihood,
        "log_likelihood_difference": log_likelihood - float(np.sum(peer.score_samples(x))),
        "means_difference": float(np.max(np.abs(means - peer.means_) / deviations)),
        "log_determinants_difference": float(np.max(np.abs(log_determinants))),
    }


def main() -> None:
    rows = []
    print(f"{'data':14}{'type':10}{'K':>2}{'log-likelihood':>18}{'difference':>12}", end="")
    print(f"{'means':>10}{'log-det':>10}{'steps':>12}")
    for name, load in DATA.items():
        x = load().data.astype(np.float64)
        for covariance_type in TYPES:
            for count in COUNTS:
                cell = compare(x, partition(x, count), covariance_type)
                row = {"data": name, "covariance_type": covariance_type, "n_components": count}
                rows.append({**row, **cell})
                print(f"{name:14}{covariance_type:10}{count:2}", end="", flush=True)
                if cell["singular"] is not None:
                    print(f"   singular for {cell['singular']} ({cell['status']})")
                    continue
                print(
                    f"{cell['log_likelihood']:18.6f}{cell['log_likelihood_difference']:12.1e}"
                    f"{cell['means_difference']:10.1e}{cell['log_determinants_difference']:10.1e}"
                    f"{cell['n_iter']:6}{cell['n_iter_of_peer']:6}  {cell['status']}"
                )
    compared = [row for row in rows if row["singular"] is None]
    largest = {
        field: max(abs(row[field]) for row in compared)
        for field in (
            "log_likelihood_difference",
            "means_difference",
            "log_determinants_difference",
        )
    }
    print(f"{len(compared)} of {len(rows)} cells compared; largest differences:", largest)
    report = {
        **circumstances("jax", "jaxgmm", "numpy", "scikit-learn"),
        "compared": len(compared),
        "largest": largest,
        "cells": rows,
    }
    write_report(RESULTS / "parity.json", report)


if __name__ == "__main__":
    main()
