"""EM in three functions: data to statistics, statistics to mixture, and the two in a row."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays import shards
from jaxgmm.arrays.conversion import as_float_array
from jaxgmm.arrays.host import is_concrete, unit_weights
from jaxgmm.arrays.validation import (
    as_log_prior,
    as_responsibilities,
    check_data,
    check_fit_arguments,
    check_mixture,
)
from jaxgmm.covariances.storage import is_isotropic
from jaxgmm.covariances.structures import structure_named
from jaxgmm.execution.programs import PlatformProgram, rows_from
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.accumulation import accumulate_soft
from jaxgmm.steps.expectation import expected_statistics
from jaxgmm.steps.forms import extent_of, forms_of
from jaxgmm.steps.maximization import (
    maximize,
    means_of,
)
from jaxgmm.steps.problem import ready_to_whiten
from jaxgmm.steps.regularization import with_penalty
from jaxgmm.steps.rows import Rows, as_they_are, standardization_of, weights_in_own_unit
from jaxgmm.steps.standardization import Standardization
from jaxgmm.steps.statistics import SufficientStatistics


def e_step(
    mixture: GaussianMixture,
    x: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    covariance_type: str | None = None,
    log_prior: ArrayLike | None = None,
    regularization: ArrayLike | None = None,
) -> SufficientStatistics:
    """Sufficient statistics of the data under the responsibilities of a mixture.

    Rows are read in chunks, so that nothing of size N·K exists.

    Args:
        mixture: K components.
        x: (N, D), whose rows may be spread over devices, see `em`.
        weights: (N,) sample weights; 0 removes a row, which may then hold anything.
        covariance_type: for which the statistics are gathered; by default what the mixture's
            storage says.
        log_prior: (N, K) added to the logits, for partial labels, gating or hidden Markov models.
        regularization: () or (D,) variances that an `m_step` is to be given, too. The logits carry
            the matching term, and the log-likelihood includes it: what the two in a row climb.

    Returns:
        Statistics about the means of the mixture.

    Raises:
        TypeError: x is not numeric.
        ValueError: shapes don't agree; where values are known, NaN or infinity in x.
    """
    mixture, x, weights = check_fit_arguments(mixture, x, weights)
    structure = structure_named(covariance_type or mixture.covariance_type)
    log_prior = as_log_prior(log_prior, x, mixture.n_components, weights)
    variances = check_regularization(regularization, x)
    return _e_step(
        mixture, x, weights, log_prior, variances, full_second_moment=structure.full_second_moment
    )


def accumulate(
    x: ArrayLike,
    responsibilities: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    covariance_type: str,
    origin: ArrayLike | None = None,
) -> SufficientStatistics:
    """Sufficient statistics for responsibilities that come from elsewhere.

    Args:
        x: (N, D), whose rows may be spread over devices, see `em`.
        responsibilities: (N, K).
        weights: (N,) sample weights.
        covariance_type: for which the statistics are gathered.
        origin: (K, D) what the moments are about; by default the components' means.

    Returns:
        Statistics with a log-likelihood of 0.

    Raises:
        TypeError: x is not numeric.
        ValueError: shapes don't agree; where values are known, NaN or infinity in x.
    """
    structure = structure_named(covariance_type)
    x, weights = check_data(x, weights)
    responsibilities = as_responsibilities(responsibilities, x, weights=weights).astype(x.dtype)
    weights = unit_weights(x) if weights is None else weights
    shape = (responsibilities.shape[1], x.shape[1])
    if origin is not None:
        origin = as_float_array("origin", origin).astype(x.dtype)
        if origin.shape != shape:
            raise ValueError(f"origin must be {shape}, got {origin.shape}")
    return _accumulate(
        x, responsibilities, weights, origin, full_second_moment=structure.full_second_moment
    )


def m_step(
    statistics: SufficientStatistics,
    covariance_type: str = "full",
    *,
    previous: GaussianMixture | None = None,
    regularization: ArrayLike | None = None,
) -> GaussianMixture:
    """The mixture that maximizes the expected log-likelihood of the statistics.

    Args:
        statistics: from `e_step` or `accumulate`.
        covariance_type: a row of the table in `structures.py`.
        previous: the mixture before; components without any weight keep its mean and covariance,
            but for what these share with others.
            Without it they stay where their moments are about, with the average covariance within
            components.
        regularization: () or (D,) variances in the squared units of the data. Every row is a
            small cloud with this covariance, which is added to those of the components. Where EM
            is to climb, `e_step` needs it, too.

    Raises:
        ValueError: the statistics lack the second moments that the type needs, or are a batch.
    """
    structure = structure_named(covariance_type)
    if statistics.count.ndim != 1:
        raise ValueError(
            "statistics of one mixture are expected, with count (K,), got "
            f"{statistics.count.shape}; for a batch use jax.vmap"
        )
    if previous is not None:
        check_mixture(previous)
    if (statistics.second.ndim == 3) < structure.full_second_moment:
        raise ValueError(
            f"covariance_type={structure.name!r} needs second moments (K, D, D), the statistics "
            f"have {statistics.second.shape}; gather them with that covariance_type"
        )
    variances = check_regularization(
        0 if regularization is None else regularization, statistics.first
    )
    previous = jax.tree.map(lambda leaf: leaf.astype(variances.dtype), previous)
    return maximize(structure, statistics, previous, variances)


def check_regularization(regularization: Any, x: Array) -> Any:
    """(D,) for x (N, D), in its dtype; None stays None.

    Raises:
        ValueError: of another shape; where values are known, negative or not finite.
    """
    if regularization is None:
        return None
    given = jnp.asarray(regularization, x.dtype)
    if given.shape not in ((), x.shape[1:]):
        raise ValueError(f"regularization must be () or {x.shape[1:]}, got shape {given.shape}")
    if is_concrete(given) and not np.all((np.asarray(given) >= 0) & np.isfinite(given)):
        raise ValueError(f"regularization must be finite and at least 0, got {given}")
    return jnp.broadcast_to(given, x.shape[1:])


def em_step(
    mixture: GaussianMixture,
    x: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    covariance_type: str | None = None,
    log_prior: ArrayLike | None = None,
    regularization: ArrayLike | None = None,
) -> tuple[GaussianMixture, Array]:
    """One step of EM: `m_step` of `e_step`, each with the same options.

    Args:
        mixture: K components.
        x: (N, D), whose rows may be spread over devices, see `em`.
        weights: (N,) sample weights.
        covariance_type: of the new mixture; by default what the storage says.
        log_prior: (N, K) added to the logits.
        regularization: () or (D,) variances in the squared units of the data, see `m_step`.

    Returns:
        The new mixture, and the log-likelihood of the one that went in: with regularization the
        objective, log-likelihood plus the regularization's term.

    Raises:
        TypeError, ValueError: as for `e_step`.
    """
    covariance_type = covariance_type or mixture.covariance_type
    statistics = e_step(
        mixture,
        x,
        weights,
        covariance_type=covariance_type,
        log_prior=log_prior,
        regularization=regularization,
    )
    new = m_step(statistics, covariance_type, previous=mixture, regularization=regularization)
    return new, statistics.log_likelihood


@partial(PlatformProgram, static_argnames="full_second_moment", layout=rows_from(1, 3))
def _e_step(
    mixture: GaussianMixture,
    x: Array,
    weights: Array,
    log_prior: Array | None,
    regularization: Array | None,
    full_second_moment: bool,
) -> SufficientStatistics:
    if regularization is not None:
        mixture = with_penalty(mixture, regularization)
    weights, unit = weights_in_own_unit(weights)
    rows = as_they_are(x, weights, log_prior)
    if extent_of(rows, mixture.n_components, None) is None:
        return unit * expected_statistics(rows, mixture, full_second_moment)
    return unit * _long_e_step(
        mixture, x, weights, log_prior, full_second_moment, shards.row_axes()
    )


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _long_e_step(
    mixture: GaussianMixture,
    x: Array,
    weights: Array,
    log_prior: Array | None,
    full_second_moment: bool,
    axes: tuple[str, ...],
) -> SufficientStatistics:
    """The E-step of long data: by matrix products if these are accurate, but not in derivatives."""
    standardization = standardization_of(x, weights, is_isotropic(mixture.covariance))
    rows = Rows(standardization, x, weights, log_prior)
    extent = extent_of(rows, mixture.n_components, None)
    standardized = ready_to_whiten(rows.standardization.transform(mixture))
    # Whatever the statistics are for, they are as exact as those of differences.
    forms = None if extent is None else forms_of(rows, standardized, extent, smallest_gain=None)
    statistics = expected_statistics(rows, standardized, full_second_moment, extent, forms)
    return in_units_of_data(
        statistics.about(standardized.means), rows.standardization, mixture.means
    )


@_long_e_step.defjvp
@shards.rule_over_rows
def _differentiate_long_e_step(
    full_second_moment: bool,
    axes: tuple[str, ...],
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[SufficientStatistics, SufficientStatistics]:
    def by_differences(
        mixture: GaussianMixture, x: Array, weights: Array, log_prior: Array | None
    ) -> SufficientStatistics:
        return expected_statistics(as_they_are(x, weights, log_prior), mixture, full_second_moment)

    return jax.jvp(by_differences, primals, tangents)


def in_units_of_data(
    statistics: SufficientStatistics, standardization: Standardization, origin: Array
) -> SufficientStatistics:
    """Statistics in standardized coordinates, about the same origin in the data's units."""
    scale = standardization.scale
    squared = scale[:, None] * scale[None] if statistics.second.ndim == 3 else scale**2
    return replace(
        statistics,
        first=scale[None] * statistics.first,
        second=squared[None] * statistics.second,
        origin=origin,
    )


@partial(PlatformProgram, static_argnames="full_second_moment", layout=rows_from(0, 2))
def _accumulate(
    x: Array,
    responsibilities: Array,
    weights: Array,
    origin: Array | None,
    full_second_moment: bool,
) -> SufficientStatistics:
    weights, unit = weights_in_own_unit(weights)
    rows = as_they_are(x, weights)

    def given(numbers: Array, _: Array) -> Array:
        return responsibilities[numbers]

    if origin is None:
        zero = jnp.zeros((responsibilities.shape[1], x.shape[1]), x.dtype)
        origin = means_of(accumulate_soft(rows, given, zero, full_second_moment=False))
    return unit * accumulate_soft(rows, given, origin, full_second_moment)
