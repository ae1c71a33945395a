"""EM for statistics that come from anywhere: files, other processes, a user's own E-step."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays.conversion import in_common_dtype
from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.numerics import at_least, smallest_variance, varying
from jaxgmm.arrays.validation import check_mixture
from jaxgmm.covariances.structures import Structure, structure_named
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.solvers.convergence import Step, gain_of
from jaxgmm.solvers.loop import Loop, Trace, accepted, advance, begin, keep_going, summary
from jaxgmm.solvers.results import FitResult, with_places
from jaxgmm.solvers.settings import Limits, check_limits, check_settings, default_reg_covar
from jaxgmm.steps.em_step import check_regularization
from jaxgmm.steps.maximization import maximize, stored_as
from jaxgmm.steps.problem import ready_to_whiten
from jaxgmm.steps.regularization import with_penalty
from jaxgmm.steps.statistics import SufficientStatistics

Source = Callable[[GaussianMixture], SufficientStatistics]


class Iteration(NamedTuple):
    """An iteration of `em_from_statistics`, as a callback sees it.

    Attributes:
        n_iter: int, which one it was, from 1.
        objective: float, of the mixture that it began with.
        remaining_gain: float, extrapolated, per unit of weight; see `FitResult`.
        mixture: the highest so far: a start for another call.
    """

    n_iter: int
    objective: float
    remaining_gain: float
    mixture: GaussianMixture


def em_from_statistics(
    statistics: Source,
    start: GaussianMixture,
    *,
    covariance_type: str | None = None,
    max_iter: int = 1000,
    tol: ArrayLike = 1e-7,
    regularization: ArrayLike | None = None,
    accelerate: str | None = None,
    history: bool = True,
    callback: Callable[[Iteration], None] | None = None,
) -> FitResult:
    """EM from a given start, by an E-step that the caller brings.

    The loop of `em`, with its stopping rule, status and acceleration. Where the start is known the
    E-step is called by Python, once in each iteration and three times besides, and may read files
    or ask other processes; where the start is traced, so is the E-step. Under `jax.shard_map` it
    ends with `SufficientStatistics.psum`.

    Args:
        statistics: maps a mixture to `SufficientStatistics` of all data under it: those of `e_step`
            without `regularization`, or a sum of such over blocks of rows.
        start: K components.
        covariance_type: of the fit; by default what the start's storage says. The mixtures that the
            E-step is called with are stored so, and the statistics must have the second moments
            that it needs.
        max_iter: at most so many steps. Not traced.
        tol: see `em`.
        regularization: () or (D,) variances in the squared units of the data, see `m_step`. The
            E-step is not to know of it: the mixture that it is called with has weights
            w_k exp(-½ tr(R Σ_k⁻¹)), so that its log-likelihood is the regularized objective. By
            default as much as `em` adds by default, of the variance that the first statistics tell.
        accelerate: see `em`.
        history: whether to record the objective of each iteration. Static.
        callback: called by Python after each iteration with an `Iteration`.

    Returns:
        A `FitResult`. It can't be differentiated backward, as `em` can.

    Raises:
        TypeError: no mixture, or not statistics.
        ValueError: shapes or names are wrong; a callback while the start is traced.

    Example:
        >>> import jaxgmm as jg
        >>> blocks = [[[0.0], [1.0], [2.0]], [[9.0], [10.0], [11.0]]]
        >>> start = jg.GaussianMixture.create([0.5, 0.5], [[0.0], [9.0]], [[1.0], [1.0]], "diag")
        >>> fit = jg.em_from_statistics(lambda m: sum(jg.e_step(m, x) for x in blocks), start)
        >>> fit.check().mixture.means.round(3).tolist()
        [[1.0], [10.0]]
    """
    check_mixture(start)
    structure = structure_named(covariance_type or start.covariance_type)
    settings = check_settings(max_iter, accelerate, "implicit", history)
    limits = check_limits(tol, max_iter, start.means)
    begun = stored_as(structure, start)
    first = _checked(statistics(begun), start, structure)
    begun, _ = in_common_dtype(begun, first)
    limits = limits._replace(tol=limits.tol.astype(begun.means.dtype))
    dtype, scale = begun.means.dtype, _squared_scale(first, structure)
    variances = check_regularization(regularization, begun.means)
    if variances is None:
        variances = default_reg_covar(dtype) * scale
    variances = jnp.maximum(variances, smallest_variance(dtype) * scale)

    def source(mixture: GaussianMixture) -> SufficientStatistics:
        found = _checked(statistics(with_penalty(mixture, variances)), start, structure)
        return jax.tree.map(lambda leaf: leaf.astype(dtype), found)

    loop = begin(structure, begun, limits.tol, settings)
    if is_concrete(*jax.tree.leaves((begun, first, variances, limits))):
        loop = _iterate_by_python(source, loop, structure, variances, limits, callback)
    elif callback is not None:
        raise ValueError("callback is called by Python, which sees nothing while values are traced")
    else:
        loop = lax.while_loop(
            lambda loop: keep_going(loop[1], limits.max_iter),
            lambda loop: _turn(*loop, source(loop[0]), structure, variances, limits.tol),
            varying(loop, begun, first, variances, limits),
        )
    mixture, trace = accepted(*loop)
    of_mixture, of_objective = statistics(mixture), source(mixture)
    totals = of_mixture.log_likelihood, of_objective.log_likelihood
    active = jnp.ones(start.n_components, bool)
    result = _summary(ready_to_whiten(mixture), trace, totals, variances, active, settings)
    return with_places(replace(result, mixture=mixture), max_iter)


_summary = partial(jax.jit, static_argnames="settings")(summary)


def _checked(
    statistics: SufficientStatistics, start: GaussianMixture, structure: Structure
) -> SufficientStatistics:
    """Statistics, known to be those of such a mixture.

    Raises:
        TypeError: no statistics.
        ValueError: of other shapes, or without the second moments that the type needs.
    """
    if not isinstance(statistics, SufficientStatistics):
        raise TypeError(
            "statistics must map a mixture to SufficientStatistics, as e_step does, got "
            f"{type(statistics).__name__}"
        )
    if statistics.first.shape != start.means.shape:
        raise ValueError(
            f"statistics must have first moments {start.means.shape}, those of the start's "
            f"components, got {statistics.first.shape}"
        )
    if (statistics.second.ndim == 3) < structure.full_second_moment:
        raise ValueError(
            f"covariance_type={structure.name!r} needs second moments (K, D, D), got "
            f"{statistics.second.shape}; gather them with that covariance_type"
        )
    return statistics


@jax.jit
def _squared_scale(statistics: SufficientStatistics, structure: Structure) -> Array:
    """The variance of the data that statistics are of, feature by feature: (D,).

    Of a constant its square, and 1 of zeros, as the standardization has it.
    """
    total = jnp.sum(statistics.count)
    share = (statistics.count / total)[:, None]
    mean = jnp.sum(share * statistics.origin + statistics.first / total, axis=0)
    second = statistics.about(jnp.broadcast_to(mean[None], statistics.first.shape)).second
    squares = jnp.diagonal(second, axis1=1, axis2=2) if second.ndim == 3 else second
    variance = at_least(jnp.sum(squares, axis=0) / total, 0)
    magnitude = mean**2
    if structure.isotropic:
        variance, magnitude = (jnp.full_like(of, jnp.mean(of)) for of in (variance, magnitude))
    constant = variance <= (4 * float(jnp.finfo(variance.dtype).eps)) ** 2 * magnitude
    return jnp.where(constant, jnp.where(magnitude > 0, magnitude, 1), variance)


def _iterate_by_python(
    source: Source,
    loop: Loop,
    structure: Structure,
    regularization: Array,
    limits: Limits,
    callback: Callable[[Iteration], None] | None,
) -> Loop:
    while bool(keep_going(loop[1], limits.max_iter)):
        loop = _turn(*loop, source(loop[0]), structure, regularization, limits.tol)
        if callback is not None:
            mixture, trace = accepted(*loop)
            numbers = (float(trace.objective), float(trace.progress.remaining))
            callback(Iteration(int(trace.n_iter), *numbers, mixture))
    return loop


@jax.jit
def _turn(
    mixture: GaussianMixture,
    trace: Trace,
    statistics: SufficientStatistics,
    structure: Structure,
    regularization: Array,
    tol: Array,
) -> Loop:
    """One iteration of the loop, of which the E-step has been made."""
    new = maximize(structure, statistics, mixture, regularization)
    taken = Step(new, statistics.log_likelihood, gain_of(new, ready_to_whiten(mixture)))
    weight = jnp.sum(statistics.count)
    return advance(structure, mixture, trace, taken, weight, tol)
