"""The pass over the data: densities and sufficient statistics of all rows, a chunk at a time."""

from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays import shards
from jaxgmm.arrays.chunks import conditional_sum
from jaxgmm.arrays.numerics import logsumexp, made_once, weighted_sum
from jaxgmm.mixtures.densities import log_density
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.differences import by_differences_apart, statistics_by_differences
from jaxgmm.steps.forms import DataExtent, Forms, forms_of
from jaxgmm.steps.pass_record import write_down
from jaxgmm.steps.products import statistics_by_products
from jaxgmm.steps.rows import Rows
from jaxgmm.steps.statistics import SufficientStatistics


def expected_statistics(
    rows: Rows,
    mixture: GaussianMixture,
    full_second_moment: bool,
    extent: DataExtent | None = None,
    forms: Forms | None = None,
    origin: Array | None = None,
) -> SufficientStatistics:
    """The E-step: statistics of the rows under the responsibilities of a mixture.

    Args:
        rows: the data; mixture and statistics are in their coordinates, the log-likelihood is of x.
        mixture: K components, whose weights needn't sum to 1.
        full_second_moment: whether second moments (K, D, D) are wanted, or their diagonals.
        extent: of the rows, for matrix products of the components for which they are accurate, or
            where these share a covariance, if they are for all; None for never.
        forms: of the pass, by default those that the objective asks for.
        origin: (K, D) of what is summed by differences, by default the means; products have their
            own.

    Returns:
        Statistics about any origin. With an `extent.second_moment`, the second moments are the sum
        of those of all components, each about its own origin: (1, D, D) or (1, D).
    """
    own_origin = mixture.means if origin is None else origin
    if extent is None:
        write_down(mixture, None)
        found = statistics_by_differences(rows, mixture, full_second_moment, origin=origin)
        return over_all_devices(found, own_origin)
    forms = forms_of(rows, mixture, extent) if forms is None else forms
    write_down(mixture, forms)
    second_moment = extent.second_moment

    def by_products(wanted: Array | None) -> SufficientStatistics:
        return statistics_by_products(
            rows, mixture, full_second_moment, second_moment, wanted, origin=forms.origin
        )

    def by_both(wanted: Array | None) -> SufficientStatistics:
        apart = by_differences_apart(
            mixture, full_second_moment, forms, origin, prior=rows.log_prior is not None
        )
        return statistics_by_products(
            rows, mixture, full_second_moment, None, wanted, apart, forms.origin
        )

    def by_differences(wanted: Array | None) -> SufficientStatistics:
        found = statistics_by_differences(rows, mixture, full_second_moment, wanted, origin)
        return replace(found, second=jnp.sum(found.second, axis=0, keepdims=True))

    otherwise = by_both if second_moment is None else by_differences
    found = conditional_sum(jnp.any(forms.apart).astype(int), [by_products, otherwise])
    about = jnp.where(forms.moments_apart[:, None], own_origin, forms.origin[None])
    return over_all_devices(found, about)


def over_all_devices(own: SufficientStatistics, origin: Array) -> SufficientStatistics:
    """The statistics of all rows, from those of this device's own.

    Args:
        own: about the origin.
        origin: (K, D), the same on all devices.
    """
    if not shards.row_axes():
        return own
    sums = shards.total((own.log_likelihood, own.count, own.first, own.second))
    return SufficientStatistics(*sums, origin)


def total_log_prob(rows: Rows, mixture: GaussianMixture, *log_weights: Array) -> tuple[Array, ...]:
    """Σ w_n log p(x_n) of x, for each of several sets of mixing weights, with the rows' prior.

    Args:
        rows: the data.
        mixture: K components in the coordinates of the rows.
        log_weights: each (K,), in place of the mixture's own.

    Returns:
        () for each of them.
    """

    def summand(numbers: Array, weights: Array, z: Array) -> Array:
        of_components = log_density(mixture.covariance, mixture.means, made_once(z))
        of_components, most = rows.with_prior(of_components, numbers, weights)
        log_probs = [logsumexp(of_components + given[:, None], axis=0) for given in log_weights]
        log_probs = log_probs if most is None else [found + most for found in log_probs]
        # One by one: what joins rows XLA's CPU backend computes number by number.
        sums = [weighted_sum(weights, of_rows) for of_rows in log_probs]
        return jnp.stack([jnp.sum(weights), *sums])

    count, *totals = rows.sum(summand, rows.chunk_rows(mixture.means.size))
    return tuple(total - count * rows.standardization.log_volume() for total in totals)
