"""Where a fit begins: as scikit-learn draws it, with what is given and what labels say."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans, kmeans_plusplus

from jaxgmm.sklearn.climb import Start


def start_of(
    given: tuple[ArrayLike | None, ArrayLike | None, np.ndarray | None],
    init_params: str,
    n_components: int,
    X: np.ndarray,
    weights: np.ndarray,
    labels: np.ndarray | None,
    random_state: np.random.RandomState,
) -> Start:
    """A start, of which nothing is drawn if all of it is given.

    Args:
        given: weights, means and covariances, or None for each that isn't.
        init_params: how responsibilities are drawn.
        n_components: K.
        X: (N, D).
        weights: (N,) of the rows.
        labels: (N,) see `prior_of`, or None.
        random_state: that is drawn from.
    """
    if all(part is not None for part in given):
        return Start(None, *given)
    shares = drawn_responsibilities(init_params, n_components, X, weights, random_state)
    if labels is not None:
        known = labels >= 0
        told = np.eye(n_components, dtype=X.dtype)[labels[known]]
        # Of each component the part that has most rows of its label.
        _, part = linear_sum_assignment(-told.T @ (weights[:, None] * shares)[known])
        shares = shares[:, part]
        shares[known] = told
    return Start(shares, *given)


def drawn_responsibilities(
    init_params: str,
    n_components: int,
    X: np.ndarray,
    weights: np.ndarray,
    random_state: np.random.RandomState,
) -> np.ndarray:
    """Of the first M-step, as scikit-learn draws them, among rows with weight: (N, K)."""
    shares = np.zeros((len(X), n_components), X.dtype)
    components = np.arange(n_components)
    if init_params == "kmeans":
        clusters = KMeans(n_components, n_init=1, random_state=random_state)
        of_rows = clusters.fit(X, sample_weight=weights).labels_
        shares[np.arange(len(X)), of_rows] = 1
    elif init_params == "random":
        shares[:] = random_state.uniform(size=shares.shape)
        shares /= shares.sum(axis=1, keepdims=True)
    elif init_params == "random_from_data":
        present = np.flatnonzero(weights)
        rows = random_state.choice(len(present), size=n_components, replace=False)
        shares[present[rows], components] = 1
    else:
        _, rows = kmeans_plusplus(X, n_components, sample_weight=weights, random_state=random_state)
        shares[rows, components] = 1
    return shares


def prior_of(labels: np.ndarray, n_components: int, dtype: Any) -> np.ndarray:
    """What labels (N,) say as a `log_prior`, those below 0 nothing: (N, K)."""
    other = labels[:, None] != np.arange(n_components)[None]
    return np.where((labels >= 0)[:, None] & other, -np.inf, 0).astype(dtype)
