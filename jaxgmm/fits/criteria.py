"""Log-likelihood, free parameters and information criteria of a mixture."""

from functools import partial
from typing import TypeVar

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.numerics import weighted_sum
from jaxgmm.arrays.validation import as_log_prior, check_fit_arguments
from jaxgmm.covariances.structures import structure_named
from jaxgmm.execution.programs import PlatformProgram, rows_from
from jaxgmm.mixtures import densities
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.expectation import total_log_prob
from jaxgmm.steps.rows import Rows, as_they_are, weights_in_own_unit

T = TypeVar("T", Array, float)


def log_likelihood(
    mixture: GaussianMixture,
    x: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    log_prior: ArrayLike | None = None,
) -> Array:
    """Σ w_n log p(x_n), in row chunks: (), in nats.

    Args:
        mixture: K components.
        x: (N, D), whose rows may be spread over devices, see `em`.
        weights: (N,) sample weights; 0 removes a row, which may then hold anything.
        log_prior: (N, K) added to the logits, see `em`.

    Raises:
        TypeError: x is not numeric.
        ValueError: shapes don't agree; where values are known, NaN or infinity in x.
    """
    mixture, x, weights = check_fit_arguments(mixture, x, weights)
    log_prior = as_log_prior(log_prior, x, mixture.n_components, weights)
    return _log_likelihood(mixture, x, weights, log_prior)


def n_parameters(mixture: GaussianMixture, covariance_type: str | None = None) -> int:
    """Free parameters: K - 1 weights, K·D means, and the covariances'.

    Args:
        mixture: K components.
        covariance_type: as which it was estimated; by default what the storage says.
    """
    covariance_type = covariance_type or mixture.covariance_type
    return free_parameters(mixture.n_components, mixture.n_features, covariance_type)


def free_parameters(n_components: int, n_features: int, covariance_type: str) -> int:
    """`n_parameters` of a mixture of this size and type."""
    of_covariances = structure_named(covariance_type).n_parameters(n_components, n_features)
    return n_components - 1 + n_components * n_features + of_covariances


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
        x: (N, D), whose rows may be spread over devices, see `em`.
        weights: (N,) sample weights.
        covariance_type: as which the mixture was estimated; by default what the storage says.
    """
    return criterion_values(mixture, x, weights, covariance_type)["aic"]


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
        x: (N, D), whose rows may be spread over devices, see `em`.
        weights: (N,) sample weights, of which N is then the sum.
        covariance_type: as which the mixture was estimated; by default what the storage says.
    """
    return criterion_values(mixture, x, weights, covariance_type)["bic"]


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
        x: (N, D), whose rows may be spread over devices, see `em`.
        weights: (N,) sample weights.
        covariance_type: as which the mixture was estimated; by default what the storage says.

    Source: Biernacki, Celeux & Govaert 2000, with the most probable component as in mclust, which
    prints the negative.
    """
    return criterion_values(mixture, x, weights, covariance_type)["icl"]


def criterion_values(
    mixture: GaussianMixture,
    x: ArrayLike,
    weights: ArrayLike | None,
    covariance_type: str | None,
) -> dict[str, Array]:
    """All criteria by name, from two passes over the data."""
    parameters = float(n_parameters(mixture, covariance_type))
    mixture, x, weights = check_fit_arguments(mixture, x, weights)
    total, certain, log_n_rows = _totals(mixture, x, weights)
    return criteria_of(total, certain, parameters, log_n_rows)


def criteria_of(
    log_likelihood: T, log_map_responsibility: T, n_parameters: float, log_n_rows: T
) -> dict[str, T]:
    """AIC, BIC and ICL.

    Args:
        log_likelihood: weighted total.
        log_map_responsibility: weighted total, see the function of that name.
        n_parameters: free ones.
        log_n_rows: logarithm of the sum of the weights.
    """
    bic = n_parameters * log_n_rows - 2 * log_likelihood
    aic = 2 * n_parameters - 2 * log_likelihood
    return {"aic": aic, "bic": bic, "icl": bic - 2 * log_map_responsibility}


@partial(PlatformProgram, layout=rows_from(1, 3))
def _log_likelihood(
    mixture: GaussianMixture, x: Array, weights: Array, log_prior: Array | None
) -> Array:
    weights, unit = weights_in_own_unit(weights)
    rows = as_they_are(x, weights, log_prior)
    return unit * total_log_prob(rows, mixture, mixture.log_weights)[0]


@partial(PlatformProgram, layout=rows_from(1, 2))
def _totals(mixture: GaussianMixture, x: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Log-likelihood, `log_map_responsibility`, and the logarithm of the sum of the weights."""
    weights, unit = weights_in_own_unit(weights)
    rows = as_they_are(x, weights)
    log_likelihood = total_log_prob(rows, mixture, mixture.log_weights)[0]
    log_n_rows = jnp.log(unit) + jnp.log(rows.total_weight())
    return unit * log_likelihood, unit * log_map_responsibility(mixture, rows), log_n_rows


def log_map_responsibility(mixture: GaussianMixture, rows: Rows) -> Array:
    """Σ w_n log max_k r_nk: ()."""

    def summand(_: Array, weights: Array, z: Array) -> Array:
        log_responsibilities = densities.log_responsibilities(
            mixture.log_weights, mixture.covariance, mixture.means, z
        )
        label = jnp.argmax(log_responsibilities, axis=-1)[:, None]
        largest = jnp.take_along_axis(log_responsibilities, label, axis=-1)[:, 0]
        return weighted_sum(weights, largest)

    return rows.sum(summand, rows.chunk_rows(mixture.means.size))
