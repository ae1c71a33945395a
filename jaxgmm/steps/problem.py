"""The problem that is solved: data in their own coordinates, with their regularization."""

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.numerics import at_least, smallest_variance
from jaxgmm.covariances.storage import with_inverse
from jaxgmm.covariances.structures import structure_named
from jaxgmm.covariances.traced import TracedStructure
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.expectation import expected_statistics
from jaxgmm.steps.maximization import with_penalty
from jaxgmm.steps.products import DataExtent, extent_of
from jaxgmm.steps.rows import Rows, standardization_of
from jaxgmm.steps.statistics import SufficientStatistics


class Problem(NamedTuple):
    """A maximization problem: all that the EM map depends on besides the mixture.

    Attributes:
        rows: the data and the coordinates of the mixture.
        regularization: (D,) variances in standardized coordinates.
        extent: of the rows, or None where no step is to be made by matrix products.
        form: of "full" covariances, or None where they have none in particular.
    """

    rows: Rows
    regularization: Array
    extent: DataExtent | None
    form: TracedStructure | None

    def expected_statistics(
        self,
        mixture: GaussianMixture,
        covariance_type: str,
        smallest_gain: ArrayLike = jnp.inf,
    ) -> SufficientStatistics:
        """The E-step in standardized coordinates; its log-likelihood is the regularized objective.

        Args:
            mixture: in standardized coordinates, with a covariance that is `with_inverse`.
            covariance_type: of the fit.
            smallest_gain: see `expectation.expected_statistics`.
        """
        full_second_moment = structure_named(covariance_type).full_second_moment
        penalized = with_penalty(mixture, self.regularization)
        return expected_statistics(
            self.rows, penalized, None, full_second_moment, self.extent, smallest_gain
        )


def problem_of(
    x: Array,
    weights: Array,
    reg_covar: ArrayLike,
    n_components: int,
    covariance_type: str,
    form: TracedStructure | None = None,
) -> Problem:
    """Data in the coordinates that a covariance type allows, with their regularization."""
    structure = structure_named(covariance_type)
    isotropic = structure.isotropic if form is None else form.isotropic
    standardization = standardization_of(x, weights, isotropic)
    rows = Rows(standardization, x, weights)
    floor = smallest_variance(x.dtype)
    scale = at_least(jnp.asarray(reg_covar, x.dtype), floor)
    extent = extent_of(rows, n_components, structure)
    return Problem(rows, scale * standardization.variance, extent, form)


def by_differences(problem: Problem) -> Problem:
    """The problem without matrix products, for derivatives with respect to the data, and where
    everything depends on the last digits."""
    return problem._replace(extent=None)


def ready_to_whiten(mixture: GaussianMixture) -> GaussianMixture:
    """The mixture with the inverses of its Cholesky factors at hand, for much whitening."""
    return replace(mixture, covariance=with_inverse(mixture.covariance))
