"""Mixtures from other libraries, and for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.arrays.validation import check_known, check_mixture
from jaxgmm.covariances.storage import (
    diagonal_of_factors,
    factors,
    is_diagonal,
)
from jaxgmm.mixtures.mixture import GaussianMixture

# Types that scikit-learn has, too; the others are stored as tied ones there.
SKLEARN_TYPES = ("full", "tied", "diag", "spherical")


def from_sklearn(estimator: Any) -> GaussianMixture:
    """The mixture that an estimator of scikit-learn has fitted.

    Args:
        estimator: a fitted `GaussianMixture`, or `BayesianGaussianMixture`, which itself scores
            rows not by these parameters but by the distribution of all.

    Raises:
        TypeError: something else.
        ValueError: it isn't fitted, or its parameters are not those of a mixture; in float32 a
            covariance of a condition number above 1e7 may not be one.

    Example:
        >>> import numpy as np, jaxgmm as jg
        >>> from sklearn.mixture import GaussianMixture
        >>> x = np.float32([[0.0], [1.0], [8.0], [9.0]])
        >>> mixture = jg.from_sklearn(GaussianMixture(2, random_state=0).fit(x))
        >>> sorted(mixture.weights.round(4).tolist())
        [0.5, 0.5]
    """
    if not all(hasattr(estimator, name) for name in ("covariance_type", "fit", "n_components")):
        raise TypeError(
            "expected a GaussianMixture or BayesianGaussianMixture of scikit-learn, got "
            f"{type(estimator).__name__}"
        )
    if not hasattr(estimator, "covariances_"):
        raise ValueError(f"the {type(estimator).__name__} has no parameters yet: fit it first")
    return GaussianMixture.create(
        estimator.weights_, estimator.means_, estimator.covariances_, estimator.covariance_type
    )


def to_sklearn(mixture: GaussianMixture) -> Any:
    """A `GaussianMixture` of scikit-learn, as if it had been fitted.

    Args:
        mixture: K components; "tied_diag" and "tied_spherical" become "tied".

    Returns:
        In float64, ready to predict, score and sample.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: a batch.
    """
    import sklearn.mixture

    check_mixture(mixture)
    check_known("to_sklearn", mixture)
    covariance_type = mixture.covariance_type
    if covariance_type not in SKLEARN_TYPES:
        covariance_type = "tied"
    # In its convention Σ⁻¹ = U Uᵀ with U upper triangular.
    if covariance_type in ("full", "tied"):
        lower = np.asarray(factors(mixture.covariance, mixture.n_features), np.float64)
        upper = np.swapaxes(np.linalg.inv(lower), 1, 2)
        arrays = lower @ np.swapaxes(lower, 1, 2), upper @ np.swapaxes(upper, 1, 2), upper
    else:
        scale = np.asarray(jax.tree.leaves(mixture.covariance)[0], np.float64)
        arrays = scale**2, (1 / scale) ** 2, 1 / scale
    if covariance_type == "tied":
        arrays = tuple(array[0] for array in arrays)
    weights = np.exp(np.asarray(mixture.log_weights, np.float64))
    estimator = sklearn.mixture.GaussianMixture(
        mixture.n_components, covariance_type=covariance_type
    )
    estimator.weights_ = weights / weights.sum()
    estimator.means_ = np.asarray(mixture.means, np.float64)
    estimator.covariances_, estimator.precisions_, estimator.precisions_cholesky_ = arrays
    estimator.n_features_in_ = mixture.n_features
    estimator.converged_, estimator.n_iter_ = True, 0
    return estimator


def to_numpyro(mixture: GaussianMixture) -> Any:
    """A distribution of NumPyro with the same density, for use in a probabilistic program.

    Args:
        mixture: K components over D features; leaves may be traced, for instance be samples
            themselves.

    Returns:
        A `MixtureSameFamily` with events (D,).

    Raises:
        ImportError: NumPyro is missing.
        ValueError: a batch.
    """
    from numpyro import distributions

    check_mixture(mixture)
    means = mixture.means
    if is_diagonal(mixture.covariance):
        scale = diagonal_of_factors(mixture.covariance, mixture.n_features)
        parts = distributions.Normal(means, jnp.broadcast_to(scale, means.shape)).to_event(1)
    else:
        scale_tril = factors(mixture.covariance, mixture.n_features)
        shape = (*means.shape, mixture.n_features)
        parts = distributions.MultivariateNormal(
            means, scale_tril=jnp.broadcast_to(scale_tril, shape)
        )
    shares = distributions.Categorical(logits=mixture.log_weights)
    return distributions.MixtureSameFamily(shares, parts)
