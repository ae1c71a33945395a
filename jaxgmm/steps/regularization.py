"""The regularization: every row is a cloud of covariance R, a diagonal matrix, rather than a point.

The expected log density of such a row is less by ½ tr(R Σ⁻¹). So the E-step lowers the mixing
weights, and the M-step has larger sums of squares; the log-likelihood under the lowered weights is
the objective that both climb.
"""

from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from jaxgmm.covariances.storage import precision_diagonal
from jaxgmm.mixtures.mixture import GaussianMixture


def with_penalty(mixture: GaussianMixture, regularization: Array) -> GaussianMixture:
    """The mixture with weights w_k exp(-½ tr(R Σ_k⁻¹)), which are not normalized.

    Args:
        mixture: K components.
        regularization: (D,) diagonal of R.
    """
    diagonal = precision_diagonal(mixture.covariance, mixture.n_features)
    term = jnp.sum(diagonal * regularization[None], axis=1) / 2
    return replace(mixture, log_weights=mixture.log_weights - term)


def with_clouds(square: Array, count: Array, regularization: Array) -> Array:
    """The sums of squares of points, as those of clouds of covariance R.

    Args:
        square: (K, D, D), or diagonals (K, D), of each component, or of all together (1, ...).
        count: (K,) of the components.
        regularization: (D,) diagonal of R.
    """
    count = count if square.shape[0] == count.size else jnp.sum(count, keepdims=True)
    if square.ndim == 3:
        return square + count[:, None, None] * jnp.diag(regularization)[None]
    return square + count[:, None] * regularization[None]
