"""The problem that is solved: data in their own coordinates, with their regularization."""

from dataclasses import replace
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.numerics import at_least, smallest_variance
from jaxgmm.covariances.storage import with_inverse
from jaxgmm.covariances.traced import AnyStructure
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.expectation import expected_statistics, total_log_prob
from jaxgmm.steps.forms import DataExtent, Forms, extent_of, forms_of
from jaxgmm.steps.maximization import maximize, stored_as
from jaxgmm.steps.regularization import with_penalty
from jaxgmm.steps.rows import Rows, standardization_of
from jaxgmm.steps.statistics import SufficientStatistics


class Problem(NamedTuple):
    """A maximization problem: all that the EM map depends on besides the mixture.

    Attributes:
        rows: the data and the coordinates of the mixture.
        structure: the covariance type.
        regularization: (D,) variances in standardized coordinates.
        extent: of the rows, or None where no step is to be made by matrix products.
        weight: () of all rows.
    """

    rows: Rows
    structure: AnyStructure
    regularization: Array
    extent: DataExtent | None
    weight: Array

    def expected_statistics(
        self,
        mixture: GaussianMixture,
        forms: Forms | None = None,
        origin: Array | None = None,
    ) -> SufficientStatistics:
        """The E-step in standardized coordinates; its log-likelihood is the regularized objective.

        Args:
            mixture: in standardized coordinates, with a covariance that is `with_inverse`.
            forms, origin: see `expectation.expected_statistics`.
        """
        penalized = with_penalty(mixture, self.regularization)
        wanted = self.structure.full_second_moment
        return expected_statistics(self.rows, penalized, wanted, self.extent, forms, origin)

    def forms(self, mixture: GaussianMixture, smallest_gain: ArrayLike | None) -> Forms | None:
        """The forms of an E-step; None where it is made by differences.

        Args, see `forms_of`; the mixture is as for `expected_statistics`.
        """
        if self.extent is None:
            return None
        penalized = with_penalty(mixture, self.regularization)
        return forms_of(self.rows, penalized, self.extent, smallest_gain, mixture.weights)

    def maximize(
        self, statistics: SufficientStatistics, previous: GaussianMixture
    ) -> GaussianMixture:
        """The M-step in standardized coordinates; `previous` is the mixture before."""
        return maximize(self.structure, statistics, previous, self.regularization)

    def log_likelihood_and_objective(self, mixture: GaussianMixture) -> tuple[Array, Array]:
        """Log-likelihood of x, and what EM climbs: the same with the regularization: (), ().

        Args:
            mixture: in standardized coordinates.
        """
        mixture = ready_to_whiten(mixture)
        penalized = with_penalty(mixture, self.regularization)
        log_likelihood, objective = total_log_prob(
            self.rows, mixture, mixture.log_weights, penalized.log_weights
        )
        return log_likelihood, objective

    def start_at(self, mixture: GaussianMixture) -> GaussianMixture:
        """A mixture in the data's units as a start in standardized coordinates, of the type."""
        return stored_as(self.structure, self.rows.standardization.transform_start(mixture))


def problem_of(
    x: Array,
    weights: Array,
    reg_covar: ArrayLike,
    n_components: int,
    structure: AnyStructure,
    log_prior: Array | None = None,
) -> Problem:
    """Data in the coordinates that a covariance type allows, with their regularization."""
    standardization = standardization_of(x, weights, structure.isotropic)
    rows = Rows(standardization, x, weights, log_prior)
    floor = smallest_variance(x.dtype)
    scale = at_least(jnp.asarray(reg_covar, x.dtype), floor)
    extent = extent_of(rows, n_components, structure)
    regularization = scale * standardization.variance
    return Problem(rows, structure, regularization, extent, rows.total_weight())


def by_differences(problem: Problem) -> Problem:
    """The problem without matrix products, for derivatives with respect to the data, and where
    everything depends on the last digits."""
    return problem._replace(extent=None)


def ready_to_whiten(mixture: GaussianMixture) -> GaussianMixture:
    """The mixture with the inverses of its Cholesky factors at hand, for much whitening."""
    return replace(mixture, covariance=with_inverse(mixture.covariance))
