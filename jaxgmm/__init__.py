"""Gaussian mixtures in JAX: compiled, batched and differentiable.

A mixture is an inert pytree (`GaussianMixture`). `e_step` turns data and a mixture into
`SufficientStatistics`, which add; `m_step` turns statistics into a mixture; `em` repeats the two
until nothing is left to gain; `fit` finds starts for it, and `select` the number of components.
`fit_batch` and `select_batch` do so for many data sets at once.

Each folder is a floor, and knows those below it: `kernels` are small programs for a GPU, `arrays`
are numbers, and `execution` is how programs run; `covariances` and `mixtures` are the model;
`operations` take mixtures alone, `steps` are EM's; `files` keep mixtures, `solvers` go from a start
to a maximum, and `fits` from data to a mixture; `plot` and `command_line` show them, and `sklearn`
makes an estimator of them.
"""

from importlib.metadata import version as _version

from jaxgmm.operations.algebra import affine
from jaxgmm.operations.algebra import condition
from jaxgmm.operations.algebra import marginal
from jaxgmm.operations.algebra import regress
from jaxgmm.fits.batching import fit_batch
from jaxgmm.operations.combination import match
from jaxgmm.operations.combination import product
from jaxgmm.operations.combination import reduce
from jaxgmm.mixtures.parameters import Coordinates
from jaxgmm.mixtures.parameters import constrain
from jaxgmm.mixtures.parameters import unconstrain
from jaxgmm.covariances.storage import Diagonal
from jaxgmm.covariances.storage import Full
from jaxgmm.covariances.storage import Spherical
from jaxgmm.fits.criteria import aic
from jaxgmm.fits.criteria import bic
from jaxgmm.fits.criteria import icl
from jaxgmm.fits.criteria import log_likelihood
from jaxgmm.fits.criteria import n_parameters
from jaxgmm.operations.divergences import Estimate
from jaxgmm.operations.divergences import cauchy_schwarz_divergence
from jaxgmm.operations.divergences import component_entropies
from jaxgmm.operations.divergences import entropy
from jaxgmm.operations.divergences import kl_divergence
from jaxgmm.operations.divergences import l2_distance
from jaxgmm.operations.divergences import overlap
from jaxgmm.operations.divergences import wasserstein_distance
from jaxgmm.fits.fitting import fit
from jaxgmm.solvers.gradient import fit_gradient
from jaxgmm.solvers.from_statistics import Iteration
from jaxgmm.solvers.from_statistics import em_from_statistics
from jaxgmm.files.interchange import from_sklearn
from jaxgmm.files.interchange import to_numpyro
from jaxgmm.files.interchange import to_sklearn
from jaxgmm.solvers.loop import em
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.operations.priors import NIWPrior
from jaxgmm.operations.priors import linear_dynamics
from jaxgmm.operations.priors import niw_prior
from jaxgmm.solvers.results import FitError
from jaxgmm.solvers.results import FitResult
from jaxgmm.solvers.results import Status
from jaxgmm.fits.ranking import Selection
from jaxgmm.fits.selection import select
from jaxgmm.fits.selection import select_batch
from jaxgmm.steps.statistics import SufficientStatistics
from jaxgmm.steps.em_step import accumulate
from jaxgmm.steps.em_step import e_step
from jaxgmm.steps.em_step import em_step
from jaxgmm.steps.em_step import m_step
from jaxgmm.steps.pass_record import PassRecord
from jaxgmm.steps.pass_record import record_passes
from jaxgmm.files.storage import load
from jaxgmm.files.storage import save
from jaxgmm.operations.quantiles import cdf
from jaxgmm.operations.quantiles import highest_density_level
from jaxgmm.operations.quantiles import mahalanobis
from jaxgmm.operations.quantiles import outlier_score
from jaxgmm.operations.quantiles import quantile
from jaxgmm.fits.uncertainty import StandardErrors
from jaxgmm.fits.uncertainty import observed_information
from jaxgmm.fits.uncertainty import standard_errors

__version__ = _version("jaxgmm")

__all__ = [
    "Coordinates",
    "Diagonal",
    "Estimate",
    "FitError",
    "FitResult",
    "Full",
    "GaussianMixture",
    "Iteration",
    "NIWPrior",
    "PassRecord",
    "Selection",
    "Spherical",
    "StandardErrors",
    "Status",
    "SufficientStatistics",
    "__version__",
    "accumulate",
    "affine",
    "aic",
    "bic",
    "cauchy_schwarz_divergence",
    "cdf",
    "component_entropies",
    "condition",
    "constrain",
    "e_step",
    "em",
    "em_from_statistics",
    "em_step",
    "entropy",
    "fit",
    "fit_batch",
    "fit_gradient",
    "from_sklearn",
    "highest_density_level",
    "icl",
    "kl_divergence",
    "l2_distance",
    "linear_dynamics",
    "load",
    "log_likelihood",
    "m_step",
    "mahalanobis",
    "marginal",
    "match",
    "n_parameters",
    "niw_prior",
    "observed_information",
    "outlier_score",
    "overlap",
    "product",
    "quantile",
    "record_passes",
    "reduce",
    "regress",
    "save",
    "select",
    "select_batch",
    "standard_errors",
    "to_numpyro",
    "to_sklearn",
    "unconstrain",
    "wasserstein_distance",
]


def __dir__() -> list[str]:
    """The public names, without the modules that they are from."""
    return __all__
