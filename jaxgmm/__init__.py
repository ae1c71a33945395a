"""Gaussian mixtures in JAX: compiled, batched and differentiable.

A mixture is an inert pytree (`GaussianMixture`). `e_step` turns data and a mixture into
`SufficientStatistics`, which add; `m_step` turns statistics into a mixture; `em` repeats the two
until nothing is left to gain; `fit` finds starts for it, and `select` the number of components.
`fit_batch` and `select_batch` do so for many data sets at once.
"""

from importlib.metadata import version as _version

from jaxgmm.algebra import affine as affine
from jaxgmm.algebra import condition as condition
from jaxgmm.algebra import marginal as marginal
from jaxgmm.algebra import regress as regress
from jaxgmm.batching import fit_batch as fit_batch
from jaxgmm.combination import match as match
from jaxgmm.combination import product as product
from jaxgmm.combination import reduce as reduce
from jaxgmm.coordinates import Coordinates as Coordinates
from jaxgmm.coordinates import constrain as constrain
from jaxgmm.coordinates import unconstrain as unconstrain
from jaxgmm.covariance import Diagonal as Diagonal
from jaxgmm.covariance import Full as Full
from jaxgmm.covariance import Spherical as Spherical
from jaxgmm.criteria import aic as aic
from jaxgmm.criteria import bic as bic
from jaxgmm.criteria import icl as icl
from jaxgmm.criteria import log_likelihood as log_likelihood
from jaxgmm.criteria import n_parameters as n_parameters
from jaxgmm.divergences import Estimate as Estimate
from jaxgmm.divergences import cauchy_schwarz_divergence as cauchy_schwarz_divergence
from jaxgmm.divergences import component_entropies as component_entropies
from jaxgmm.divergences import entropy as entropy
from jaxgmm.divergences import kl_divergence as kl_divergence
from jaxgmm.divergences import l2_distance as l2_distance
from jaxgmm.divergences import overlap as overlap
from jaxgmm.divergences import wasserstein_distance as wasserstein_distance
from jaxgmm.fitting import fit as fit
from jaxgmm.gradient import fit_gradient as fit_gradient
from jaxgmm.interchange import from_sklearn as from_sklearn
from jaxgmm.interchange import to_numpyro as to_numpyro
from jaxgmm.interchange import to_sklearn as to_sklearn
from jaxgmm.loop import em as em
from jaxgmm.mixture import GaussianMixture as GaussianMixture
from jaxgmm.priors import NIWPrior as NIWPrior
from jaxgmm.priors import linear_dynamics as linear_dynamics
from jaxgmm.priors import niw_prior as niw_prior
from jaxgmm.results import FitError as FitError
from jaxgmm.results import FitResult as FitResult
from jaxgmm.results import Status as Status
from jaxgmm.selection import Selection as Selection
from jaxgmm.selection import select as select
from jaxgmm.selection import select_batch as select_batch
from jaxgmm.statistics import SufficientStatistics as SufficientStatistics
from jaxgmm.steps import accumulate as accumulate
from jaxgmm.steps import e_step as e_step
from jaxgmm.steps import em_step as em_step
from jaxgmm.steps import m_step as m_step
from jaxgmm.storage import load as load
from jaxgmm.storage import save as save
from jaxgmm.tails import cdf as cdf
from jaxgmm.tails import highest_density_level as highest_density_level
from jaxgmm.tails import mahalanobis as mahalanobis
from jaxgmm.tails import outlier_score as outlier_score
from jaxgmm.tails import quantile as quantile
from jaxgmm.uncertainty import StandardErrors as StandardErrors
from jaxgmm.uncertainty import observed_information as observed_information
from jaxgmm.uncertainty import standard_errors as standard_errors

__version__ = _version("jaxgmm")
