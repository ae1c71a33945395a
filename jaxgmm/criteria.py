"""Log-likelihood, free parameters and information criteria of a mixture."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm import densities
from jaxgmm.expectation import total_log_prob
from jaxgmm.mixture import GaussianMixture
from jaxgmm.steps import as_they_are, check_fit_arguments
from jaxgmm.structures import structure_named


def log_likelihood(
    mixture: GaussianMixture, x: ArrayLike, weights: ArrayLike | None = None
) -> Array:
    """Σ w_n log p(x_n), in row chunks: (), in nats.

    Args:
        mixture: K components.
        x: (N, D).
        weights: (N,) sample weights; 0 removes a row, which may then hold anything.

    Raises:
        TypeError: x is not numeric.
        ValueError: shapes don't agree; where values are known, NaN or infinity in x.
    """
    mixture, x, weights = check_fit_arguments(mixture, x, weights)
    return _log_likelihood(mixture, x, weights)


def n_parameters(mixture: GaussianMixture, covariance_type: str | None = None) -> int:
    """Free parameters: K - 1 weights, K·D means, and the covariances'.

    Args:
        mixture: K components.
        covariance_type: as which it was estimated; by default what the storage says.
    """
    k, d = mixture.n_components, mixture.n_features
    structure = structure_named(covariance_type or mixture.covariance_type)
    return k - 1 + k * d + structure.n_parameters(k, d)


def aic(
    mixture: GaussianMixture,
    x: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    covariance_type: str | None = None,
) -> Array:
    """Akaike's criterion, 2 p - 2 log L: (). Lower is better.

    Args:
        mixture: K components.
        x: (N, D).
        weights: (N,) sample weights.
        covariance_type: as which the mixture was estimated; by default what the storage says.
    """
    penalty = 2 * n_parameters(mixture, covariance_type)
    return penalty - 2 * log_likelihood(mixture, x, weights)


def bic(
    mixture: GaussianMixture,
    x: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    covariance_type: str | None = None,
) -> Array:
    """Schwarz's criterion, p log N - 2 log L: (). Lower is better; mclust prints the negative.

    Args:
        mixture: K components.
        x: (N, D).
        weights: (N,) sample weights, of which N is then the sum.
        covariance_type: as which the mixture was estimated; by default what the storage says.
    """
    mixture, x, weights = check_fit_arguments(mixture, x, weights)
    penalty = n_parameters(mixture, covariance_type) * jnp.log(jnp.sum(weights))
    return penalty - 2 * _log_likelihood(mixture, x, weights)


def icl(
    mixture: GaussianMixture,
    x: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    covariance_type: str | None = None,
) -> Array:
    """Integrated completed likelihood, BIC - 2 Σ w_n log max_k r_nk: (). Lower is better.

    Args:
        mixture: K components.
        x: (N, D).
        weights: (N,) sample weights.
        covariance_type: as which the mixture was estimated; by default what the storage says.

    Source: Biernacki, Celeux & Govaert 2000, with the most probable component as in mclust, which
    prints the negative.
    """
    mixture, x, weights = check_fit_arguments(mixture, x, weights)
    uncertainty = _log_certainty(mixture, x, weights)
    return bic(mixture, x, weights, covariance_type=covariance_type) - 2 * uncertainty


@jax.jit
def _log_likelihood(mixture: GaussianMixture, x: Array, weights: Array) -> Array:
    return total_log_prob(as_they_are(x, weights), mixture)


@jax.jit
def _log_certainty(mixture: GaussianMixture, x: Array, weights: Array) -> Array:
    """Σ w_n log max_k r_nk: ()."""

    def summand(_: Array, weights: Array, z: Array) -> Array:
        certainty = jnp.max(
            densities.log_responsibilities(
                mixture.log_weights, mixture.covariance, mixture.means, z
            ),
            axis=-1,
        )
        return jnp.sum(jnp.where(weights > 0, weights * certainty, 0))

    return as_they_are(x, weights).sum(summand, mixture.means.size)
