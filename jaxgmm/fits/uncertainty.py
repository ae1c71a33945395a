"""Information and standard errors: how well the data determine a mixture."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.numerics import at_least, einsum, in_own_unit, logsumexp, varying
from jaxgmm.arrays.validation import check_choice, check_fit_arguments
from jaxgmm.covariances.structures import Structure
from jaxgmm.execution.programs import PlatformProgram, rows_from
from jaxgmm.mixtures.densities import log_density
from jaxgmm.mixtures.mixture import GaussianMixture, structure_of
from jaxgmm.mixtures.parameters import constrain, unconstrain
from jaxgmm.solvers.tangent import retraction, zero_tangent
from jaxgmm.steps.expectation import total_log_prob
from jaxgmm.steps.rows import Rows, as_they_are, standardization_of, weights_in_own_unit

# Products with the curvature that are computed together.
DIRECTIONS = 8
# A direction in which a mixture is known no better than this, in standard deviations of a row, is
# not known: there the log-likelihood is no parabola.
UNCERTAIN = 0.2


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class StandardErrors:
    """Standard errors of the parameters that people read.

    Attributes:
        weights: (K,) of the mixing weights.
        means: (K, D) in the data's units.
        covariances: of variances and covariances, in the shape that `GaussianMixture.create` takes
            for the mixture's covariance type.
    """

    weights: Array
    means: Array
    covariances: Array


def observed_information(
    mixture: GaussianMixture,
    x: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    covariance_type: str | None = None,
) -> Array:
    """The negative Hessian of the log-likelihood in the coordinates of `unconstrain`: (P, P).

    Args:
        mixture: K components, all with weight.
        x: (N, D), whose rows may be spread over devices, see `em`.
        weights: (N,) sample weights.
        covariance_type: as which it was estimated; by default what the storage says.

    Returns:
        Symmetric; rows and columns are in the order of
        `ravel_pytree(jaxgmm.unconstrain(mixture, covariance_type))` of `jax.flatten_util`. Its
        inverse is the asymptotic covariance of these coordinates at a maximum.

    Raises:
        TypeError: x is not numeric.
        ValueError: shapes don't agree; where values are known, NaN or infinity in x.
    """
    mixture, x, weights = check_fit_arguments(mixture, x, weights)
    return _observed_information(mixture, x, weights, structure_of(mixture, covariance_type))


@partial(PlatformProgram, layout=rows_from(1, 2))
def _observed_information(
    mixture: GaussianMixture, x: Array, weights: Array, structure: Structure
) -> Array:
    weights, unit = weights_in_own_unit(weights)
    rows = as_they_are(x, weights)
    point, unravel = ravel_pytree(varying(unconstrain(mixture, structure.name), rows))

    def log_likelihood(point: Array) -> Array:
        moved = constrain(unravel(point))
        return total_log_prob(rows, moved, moved.log_weights)[0]

    return -unit * hessian(log_likelihood, point)


def hessian(function: Callable[[Array], Array], point: Array) -> Array:
    """Second derivatives (P, P) of a function of (P,), some directions at a time."""
    directions = varying(jnp.eye(point.size, dtype=point.dtype), point)

    def column(direction: Array) -> Array:
        return jax.jvp(jax.grad(function), (point,), (direction,))[1]

    columns = lax.map(column, directions, batch_size=min(DIRECTIONS, point.size))
    return (columns + columns.T) / 2


def standard_errors(
    mixture: GaussianMixture,
    x: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    kind: str = "sandwich",
    covariance_type: str | None = None,
) -> StandardErrors:
    """Asymptotic standard errors of a maximum likelihood fit.

    Args:
        mixture: a fit of x without much regularization.
        x: (N, D), whose rows may be spread over devices, see `em`.
        weights: (N,) sample weights, which are counts: an integer weight is a repeated row.
        kind: "sandwich", which holds for data that are no mixture of Gaussians, too, or
            "information", the inverse of `observed_information`.
        covariance_type: as which it was estimated; by default what the storage says.

    Returns:
        `StandardErrors`, by the delta method. NaN, with a warning where values are known, where the
        data don't determine the parameters: where the information is not positive, or so small that
        some direction is uncertain by more than the size of a component. One component too many
        does that.

    Raises:
        TypeError: x is not numeric.
        ValueError: the kind is unknown, shapes don't agree; where values are known, NaN or infinity
            in x.

    Example:
        >>> import jax, jaxgmm as jg
        >>> x = jax.random.normal(jax.random.key(0), (400, 1))
        >>> mixture = jg.fit(jax.random.key(1), x, 1, covariance_type="diag").mixture
        >>> print(jg.standard_errors(mixture, x).means.round(2))
        [[0.05]]

    Source: Huber 1967, White 1982.
    """
    check_choice("kind", kind, ("sandwich", "information"))
    mixture, x, weights = check_fit_arguments(mixture, x, weights)
    structure = structure_of(mixture, covariance_type)
    errors = _standard_errors(mixture, x, weights, structure, kind=kind)
    if is_concrete(errors.means) and bool(jnp.any(jnp.isnan(errors.means))):
        warnings.warn(
            "the data don't determine all parameters of this mixture, and its standard errors are "
            "NaN; use fewer components or a simpler covariance_type, or fit with a smaller tol",
            RuntimeWarning,
            stacklevel=2,
        )
    return errors


@partial(PlatformProgram, static_argnames="kind", layout=rows_from(1, 2))
def _standard_errors(
    mixture: GaussianMixture, x: Array, weights: Array, structure: Structure, kind: str
) -> StandardErrors:
    weights, unit = weights_in_own_unit(weights)
    standardization = standardization_of(x, weights, structure.isotropic)
    rows = Rows(standardization, x, weights)
    center = standardization.transform(mixture)
    origin, unravel = ravel_pytree(varying(zero_tangent(center, structure.chart), rows))

    def mixture_at(step: Array) -> GaussianMixture:
        return retraction(center, unravel(step))

    def log_likelihood(step: Array) -> Array:
        moved = mixture_at(step)
        return total_log_prob(rows, moved, moved.log_weights)[0]

    def read(step: Array) -> StandardErrors:
        moved = standardization.inverse_transform(mixture_at(step))
        variances = structure.variances(moved.covariance, moved.n_features)
        return StandardErrors(moved.weights, moved.means, variances)

    values, axes = jnp.linalg.eigh(-hessian(log_likelihood, origin))
    determined = jnp.min(values) * UNCERTAIN**2 > 1 / unit
    inverse = einsum("ij,kj->ik", axes / jnp.where(determined, values, 1)[None], axes)
    covariance = inverse
    if kind == "sandwich":
        scatter = _scatter_of_scores(rows, mixture_at, origin)
        covariance = einsum("ij,jk->ik", einsum("ij,jk->ik", inverse, scatter), inverse)
    slopes = jax.jacfwd(read)(origin)

    def error(slope: Array) -> Array:
        flat, size = in_own_unit(slope.reshape(-1, origin.size))
        variance = einsum("qi,qi->q", einsum("qj,ji->qi", flat, covariance), flat)
        root = size * (jnp.sqrt(at_least(variance, 0)) / jnp.sqrt(unit))
        return jnp.where(determined, root, jnp.nan).reshape(slope.shape[:-1])

    return jax.tree.map(error, slopes)


def _scatter_of_scores(
    rows: Rows, mixture_at: Callable[[Array], GaussianMixture], origin: Array
) -> Array:
    """Σ w_n s_n s_nᵀ over the gradients of the rows' log densities: (P, P)."""

    def log_prob(step: Array, row: Array) -> Array:
        mixture = mixture_at(step)
        of_components = log_density(mixture.covariance, mixture.means, row[None])
        return logsumexp(of_components[:, 0] + mixture.log_weights)

    def summand(_: Array, weights: Array, z: Array) -> Array:
        # Of each device's own: what is the same on all of them has a gradient that is summed.
        here = varying(origin, z, as_rows=True)
        scores = jax.vmap(jax.grad(log_prob), (None, 0))(here, z)
        return einsum("ni,nj->ij", weights[:, None] * scores, scores)

    return rows.sum(summand, rows.chunk_rows(4 * origin.size))
