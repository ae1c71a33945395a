"""Mixtures over a few of their features, in float64 on the host, as pictures need them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgmm.mixtures.mixture import GaussianMixture


class Components(NamedTuple):
    """A mixture's components over some of the features, each in its principal axes.

    Attributes:
        weights: (K,).
        means: (K, d).
        scales: (K, d) standard deviations along the axes, in ascending order.
        axes: (K, d, d) whose columns are unit vectors.
    """

    weights: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    axes: np.ndarray

    def log_density(self, x: np.ndarray) -> np.ndarray:
        """log(w_k N(x | μ_k, Σ_k)) of each component: (M, d) -> (K, M)."""
        centered = x[None] - self.means[:, None]
        log_volume = np.log(self.scales * np.sqrt(2 * np.pi)).sum(axis=-1)
        with np.errstate(divide="ignore", over="ignore"):
            standard = np.einsum("kmi,kij->kmj", centered, self.axes) / self.scales[:, None]
            offset = np.log(self.weights) - log_volume
            return offset[:, None] - 0.5 * (standard**2).sum(axis=-1)


def components_of(mixture: GaussianMixture, features: Sequence[int]) -> Components:
    """The components of the marginal mixture over some features.

    Args:
        mixture: K components.
        features: numbers of the d features to keep.
    """
    features = list(features)
    covariances = np.asarray(mixture.covariances, np.float64)[:, features][:, :, features]
    variances, axes = np.linalg.eigh(covariances)
    # Rounding can leave the smallest variance of a nearly flat component at or below zero.
    smallest = np.finfo(np.float64).eps * variances[:, -1:] + np.finfo(np.float64).tiny
    return Components(
        np.asarray(mixture.weights, np.float64),
        np.asarray(mixture.means, np.float64)[:, features],
        np.sqrt(np.maximum(variances, smallest)),
        axes,
    )


def density_levels(log_values: np.ndarray, masses: Sequence[float]) -> np.ndarray:
    """The levels above which the densest cells of a grid hold the given masses, ascending.

    Args:
        log_values: log density at the cells of a regular grid, any shape.
        masses: parts of the grid's whole mass.
    """
    descending = np.sort(log_values, axis=None)[::-1]
    enclosed = np.cumsum(np.exp(descending - descending[0]))
    last = np.searchsorted(enclosed, np.asarray(masses) * enclosed[-1])
    return np.unique(descending[np.minimum(last, descending.size - 1)])
