"""EM as the textbook has it, in NumPy and float64: the yardstick of the other scripts.

Covariances are in scikit-learn's shapes: full (K, D, D), tied (D, D), diag (K, D), spherical (K,).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

ROWS = 8192


class Parameters(NamedTuple):
    """Of a mixture of K Gaussians: weights (K,), means (K, D), covariances by their type."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray


def dense(covariances: np.ndarray, covariance_type: str, shape: tuple[int, int]) -> np.ndarray:
    """Covariances in scikit-learn's shapes as (K, D, D); `shape` is (K, D)."""
    if covariance_type == "spherical":
        covariances = np.broadcast_to(covariances[:, None], shape)
    if covariance_type in ("diag", "spherical"):
        return covariances[:, :, None] * np.eye(shape[1])
    return np.broadcast_to(covariances, (*shape, shape[1]))


def restrict(weights: np.ndarray, scatters: np.ndarray, covariance_type: str) -> np.ndarray:
    """The covariances of a type that are most likely, given each component's own.

    Args:
        weights: (K,).
        scatters: (K, D, D) covariance about the component's mean.
        covariance_type: full, tied, diag or spherical.
    """
    diagonals = np.einsum("kdd->kd", scatters)
    return {
        "full": scatters,
        "tied": np.einsum("k,kij->ij", weights, scatters),
        "diag": diagonals,
        "spherical": diagonals.mean(axis=1),
    }[covariance_type]


def estimate(x: np.ndarray, labels: np.ndarray, covariance_type: str) -> Parameters:
    """The M-step of a hard partition of x (N, D) by labels (N,) int."""
    groups = [x[labels == k] for k in range(labels.max() + 1)]
    weights = np.array([len(group) for group in groups]) / len(x)
    means = np.stack([group.mean(axis=0) for group in groups])
    scatters = np.stack([np.atleast_2d(np.cov(group.T, bias=True)) for group in groups])
    return Parameters(weights, means, restrict(weights, scatters, covariance_type))


def joint_log_prob(
    log_weights: np.ndarray, means: np.ndarray, factors: np.ndarray, x: np.ndarray
) -> np.ndarray:
    """log w_k + log N(x_n | μ_k, L_k L_kᵀ): (N, K).

    Args:
        log_weights: (K,).
        means: (K, D).
        factors: (K, D, D) lower Cholesky factors of the covariances.
        x: (N, D).
    """
    columns = []
    for log_weight, mean, factor in zip(log_weights, means, factors, strict=True):
        whitened = np.linalg.solve(factor, (x - mean).T)
        log_det = np.log(np.diag(factor)).sum() + len(mean) * np.log(2 * np.pi) / 2
        columns.append(log_weight - log_det - np.sum(whitened**2, axis=0) / 2)
    return np.stack(columns, axis=1)


def expectation(
    parameters: Parameters, covariance_type: str, x: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Rows in float64 (n, D), their log-density (n,) and responsibilities (n, K), in chunks."""
    weights, means, covariances = (np.asarray(field, np.float64) for field in parameters)
    factors = np.linalg.cholesky(dense(covariances, covariance_type, means.shape))
    for first in range(0, len(x), ROWS):
        chunk = x[first : first + ROWS].astype(np.float64)
        logits = joint_log_prob(np.log(weights), means, factors, chunk)
        log_prob = np.logaddexp.reduce(logits, axis=1)
        yield chunk, log_prob, np.exp(logits - log_prob[:, None])


def log_likelihood(parameters: Parameters, covariance_type: str, x: np.ndarray) -> float:
    """Of x (N, D), whatever its dtype, in float64; NaN if a covariance has no Cholesky factor."""
    try:
        return float(sum(part.sum() for _, part, _ in expectation(parameters, covariance_type, x)))
    except np.linalg.LinAlgError:
        return float("nan")


def em_step(parameters: Parameters, covariance_type: str, x: np.ndarray) -> Parameters:
    """One step; second moments are about the means before it, near those after it."""
    means = np.asarray(parameters.means, np.float64)
    n_components, n_features = means.shape
    count = np.zeros(n_components)
    first = np.zeros((n_components, n_features))
    second = np.zeros((n_components, n_features, n_features))
    for chunk, _, responsibilities in expectation(parameters, covariance_type, x):
        count += responsibilities.sum(axis=0)
        for k, column in enumerate(responsibilities.T):
            offset = chunk - means[k]
            first[k] += column @ offset
            second[k] += (offset * column[:, None]).T @ offset
    shift = first / count[:, None]
    scatters = second / count[:, None, None] - shift[:, :, None] * shift[:, None, :]
    weights = count / len(x)
    return Parameters(weights, means + shift, restrict(weights, scatters, covariance_type))
