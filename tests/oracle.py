"""Gaussian mixtures as the textbook has them: dense, in float64, in NumPy, one component at a time.

Nothing here is clever, so that it can be checked by reading. `regularization` is the matrix R of a
cloud that every row brings along: the M-step adds it to each covariance, and the logits carry
-½ tr(R Σ_k⁻¹).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """weights (K,), means (K, D), covariances (K, D, D)."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


@dataclass(frozen=True)
class Statistics:
    """Sums about an origin: count (K,), first (K, D), second (K, D, D), origin (K, D)."""

    count: np.ndarray
    first: np.ndarray
    second: np.ndarray
    origin: np.ndarray


def dense(mixture) -> Mixture:
    """A library mixture in dense float64."""
    scale = np.asarray(next(iter(vars(mixture.covariance).values())), np.float64)
    k, d = mixture.means.shape
    if scale.ndim == 3:
        factors = scale
    elif scale.ndim == 2:
        factors = np.stack([np.diag(row) for row in scale])
    else:
        factors = np.stack([value * np.eye(d) for value in scale])
    factors = np.broadcast_to(factors, (k, d, d))
    return Mixture(
        weights=np.exp(np.asarray(mixture.log_weights, np.float64)),
        means=np.asarray(mixture.means, np.float64),
        covariances=np.stack([factor @ factor.T for factor in factors]),
    )


def component_log_prob(mixture: Mixture, x: np.ndarray) -> np.ndarray:
    """log N(x | μ_k, Σ_k): (N, D) -> (N, K)."""
    columns = []
    for mean, covariance in zip(mixture.means, mixture.covariances, strict=True):
        difference = x - mean
        distance = np.sum(difference * np.linalg.solve(covariance, difference.T).T, axis=1)
        log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
        columns.append(-(distance + log_det) / 2)
    return np.stack(columns, axis=1)


def logits(mixture: Mixture, x: np.ndarray, regularization: np.ndarray | None = None) -> np.ndarray:
    """log w_k + log N(x | μ_k, Σ_k) - ½ tr(R Σ_k⁻¹): (N, D) -> (N, K)."""
    with np.errstate(divide="ignore"):
        result = np.log(mixture.weights) + component_log_prob(mixture, x)
    if regularization is not None:
        precisions = np.linalg.inv(mixture.covariances)
        result = result - np.trace(regularization @ precisions, axis1=1, axis2=2) / 2
    return result


def log_prob(mixture: Mixture, x: np.ndarray, regularization=None) -> np.ndarray:
    """log Σ_k exp(logits): (N, D) -> (N,)."""
    return np.logaddexp.reduce(logits(mixture, x, regularization), axis=1)


def responsibilities(mixture: Mixture, x: np.ndarray, regularization=None) -> np.ndarray:
    """p(component k | x): (N, D) -> (N, K)."""
    of_x = logits(mixture, x, regularization)
    return np.exp(of_x - np.logaddexp.reduce(of_x, axis=1)[:, None])


def log_likelihood(mixture: Mixture, x, weights=None, regularization=None) -> float:
    """Σ_n w_n log p(x_n); with R the objective that regularized EM climbs."""
    weights = np.ones(len(x)) if weights is None else weights
    return float(np.sum(weights * log_prob(mixture, x, regularization)))


def accumulate(x, responsibilities, weights, origin) -> Statistics:
    """Weighted count, first and second moment of each component, about its origin."""
    k, d = origin.shape
    count, first, second = np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))
    for j in range(k):
        share = weights * responsibilities[:, j]
        difference = x - origin[j]
        count[j] = share.sum()
        first[j] = share @ difference
        second[j] = (share[:, None] * difference).T @ difference
    return Statistics(count, first, second, origin)


def e_step(mixture: Mixture, x, weights=None, regularization=None) -> Statistics:
    """Statistics about the means of the mixture."""
    weights = np.ones(len(x)) if weights is None else weights
    of_x = responsibilities(mixture, x, regularization)
    return accumulate(x, of_x, weights, mixture.means)


def m_step(statistics: Statistics, covariance_type: str, regularization=None) -> Mixture:
    """The mixture that maximizes the expected log-likelihood within a covariance type."""
    count = statistics.count
    shift = statistics.first / count[:, None]
    scatter = statistics.second - np.stack(
        [n * np.outer(s, s) for n, s in zip(count, shift, strict=True)]
    )
    k, d = shift.shape
    r = np.zeros((d, d)) if regularization is None else regularization
    own = [s / n + r for s, n in zip(scatter, count, strict=True)]
    pooled = scatter.sum(axis=0) / count.sum() + r
    identity = np.eye(d)
    covariances = {
        "full": lambda: own,
        "tied": lambda: [pooled] * k,
        "diag": lambda: [np.diag(np.diag(s)) for s in own],
        "spherical": lambda: [np.trace(s) / d * identity for s in own],
        "tied_diag": lambda: [np.diag(np.diag(pooled))] * k,
        "tied_spherical": lambda: [np.trace(pooled) / d * identity] * k,
    }[covariance_type]()
    return Mixture(count / count.sum(), statistics.origin + shift, np.stack(covariances))


def em_step(mixture: Mixture, x, covariance_type: str, weights=None, regularization=None):
    """One step of EM."""
    return m_step(e_step(mixture, x, weights, regularization), covariance_type, regularization)


def em(mixture: Mixture, x, covariance_type: str, n_steps: int, weights=None, regularization=None):
    """So many steps of EM: the last mixture, and the objective after each step."""
    objectives = []
    for _ in range(n_steps):
        mixture = em_step(mixture, x, covariance_type, weights, regularization)
        objectives.append(log_likelihood(mixture, x, weights, regularization))
    return mixture, np.asarray(objectives)


def variance_of(x, covariance_type: str, weights=None) -> np.ndarray:
    """V: (D, D) the data's variances; one common value for spherical types."""
    variance = np.diag(np.cov(x.T, aweights=weights, ddof=0).reshape(x.shape[1], -1))
    if covariance_type.endswith("spherical"):
        variance = np.full_like(variance, variance.mean())
    return np.diag(variance)
