"""The loop: EM steps from a given start until nothing is left to gain."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays import shards
from jaxgmm.arrays.numerics import varying
from jaxgmm.arrays.padding import with_padding
from jaxgmm.arrays.placement import is_split
from jaxgmm.arrays.validation import as_log_prior, check_fit_arguments
from jaxgmm.covariances.structures import Structure, structure_named
from jaxgmm.covariances.traced import AnyStructure
from jaxgmm.execution.programs import Program, rows_from
from jaxgmm.execution.tasks import one_by_one
from jaxgmm.mixtures.mixture import GaussianMixture, is_finite
from jaxgmm.solvers.acceleration import METHODS, Accelerator
from jaxgmm.solvers.convergence import Progress, Step, gain_of
from jaxgmm.solvers.degeneracy import degenerate_components
from jaxgmm.solvers.implicit import as_maximum
from jaxgmm.solvers.newton import NEWTON_STEPS, newton
from jaxgmm.solvers.results import FitResult, Status, in_unit_of_weights, with_places
from jaxgmm.solvers.settings import Limits, Settings, check_limits, check_reg_covar, check_settings
from jaxgmm.steps.problem import Problem, by_differences, problem_of, ready_to_whiten
from jaxgmm.steps.products import products_in_pass
from jaxgmm.steps.rows import weights_in_own_unit

# The gain per unit of weight that is left where steps of Newton's method take over.
POLISH_FROM = 1e-3


class Trace(NamedTuple):
    """The trace of a loop: what is known besides its mixture, iterations, progress and objectives.

    The objective is that of the mixture before the last step. Where the loop accelerates, its
    mixture may be an extrapolation, and the pilot has what can be relied on.
    """

    n_iter: Array
    finite: Array
    objective: Array
    progress: Progress
    history: Array
    accelerator: Accelerator | None


Loop = tuple[GaussianMixture, Trace]


def em(
    mixture: GaussianMixture,
    x: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    log_prior: ArrayLike | None = None,
    covariance_type: str | None = None,
    max_iter: int = 1000,
    tol: ArrayLike = 1e-7,
    reg_covar: ArrayLike | None = None,
    accelerate: str | None = None,
    polish: bool = False,
    adjoint: str = "implicit",
    history: bool = True,
    axis_name: str | tuple[str, ...] | None = None,
) -> FitResult:
    """EM from a given start until the extrapolated gain still to come is below `tol`.

    Pure: works under `jax.jit`, `jax.vmap` and `jax.grad`. For each step the loop does what
    `em_step` does, in centered and scaled coordinates.

    Args:
        mixture: the start, K components.
        x: (N, D). An array of JAX is read in chunks and never copied, unless it is small; what is
            not JAX's, a memory-mapped file for instance, is copied whole first, once. Rows that are
            spread over the devices of a mesh stay where they are, and each device goes through its
            own; the result is the same on all of them.
        weights: (N,) sample weights; 0 removes a row, which may then hold anything.
        log_prior: (N, K) added to the logits: 0 and -inf for rows of known component, or anything
            between for what is known beforehand.
        covariance_type: of the fit; by default what the start's storage says.
        max_iter: at most so many steps. Not traced.
        tol: gain of the objective still to come, extrapolated, in nats per unit of weight. EM has
            converged when five estimates in a row were below; 0 runs all `max_iter` steps. May be
            traced; a negative number or NaN is then like 0.
        reg_covar: λ ≥ 0, without units: every row is a cloud with covariance λ·V, V the data's
            variance, feature by feature. The default is 1e-15 in float64 and 1e-9 in float32.
            May be traced; a negative number or NaN then gives `Status.NON_FINITE`.
        accelerate: None for plain steps; "squarem" or "anderson" for extrapolated ones in between,
            of which none is kept that lowers the objective.
        polish: whether to end with Newton steps, which start where 1e-3 is left to gain. They count
            as iterations, and take several passes over the data each, but few of them do what many
            steps of EM would where components overlap. Where they don't reach a maximum, EM goes
            on. Static.
        adjoint: how derivatives pass through: "implicit" (as those of the maximum, whatever the
            number of iterations; Newton steps first go all the way to it, so that the result is
            slightly better than without derivatives), "one_step" (through the last step only:
            biased by the rate of convergence) or "unroll" (through every step). Static.
        history: whether to record the objective of each iteration. Static.
        axis_name: inside of `jax.shard_map` or `jax.vmap`, of the axes that the rows of all x are
            spread over, which are then fitted together. What all devices' rows have together is
            summed once a step; everything but rows has to be the same on all devices.

    Returns:
        A `FitResult`; it says whether it converged and which components are degenerate.

    Raises:
        TypeError: x is not numeric.
        ValueError: shapes or names are wrong; where values are known, NaN or infinity in x.

    Example:
        >>> import jaxgmm as jg
        >>> x = [[0.0], [1.0], [2.0], [9.0], [10.0], [11.0]]
        >>> start = jg.GaussianMixture.create([0.5, 0.5], [[0.0], [9.0]], [[1.0], [1.0]], "diag")
        >>> jg.em(start, x).check().mixture.means.round(3).tolist()
        [[1.0], [10.0]]
    """
    mixture, x, weights = check_fit_arguments(mixture, x, weights)
    structure = structure_named(covariance_type or mixture.covariance_type)
    settings = check_settings(max_iter, accelerate, adjoint, history, polish)
    log_prior = as_log_prior(log_prior, x, mixture.n_components, weights)
    x, weights, log_prior = with_padding(x, weights, (mixture, tol, reg_covar), log_prior)
    numbers = (check_limits(tol, max_iter, x), check_reg_covar(reg_covar, x))
    if axis_name is not None and is_split(x, 0):
        raise ValueError("axis_name is for rows inside of jax.shard_map; x is spread over devices")
    with shards.rows_over(shards.row_axes() if axis_name is None else axis_name):
        result = _em(mixture, x, weights, log_prior, *numbers, structure, settings=settings)
    return with_places(result, max_iter)


@partial(
    Program,
    static_argnames="settings",
    layout=rows_from(1, 3),
    pass_size=lambda mixture, x, *_, **__: products_in_pass(x, mixture.n_components),
)
def _em(
    mixture: GaussianMixture,
    x: Array,
    weights: Array,
    log_prior: Array | None,
    limits: Limits,
    reg_covar: ArrayLike,
    structure: Structure,
    settings: Settings,
) -> FitResult:
    weights, unit = weights_in_own_unit(weights)
    problem = problem_of(x, weights, reg_covar, mixture.n_components, structure, log_prior)
    active = jnp.ones(mixture.n_components, bool)
    limits = limits._replace(tol=limits.tol.astype(x.dtype))
    result = run(problem, problem.start_at(mixture), active, limits, settings)
    return in_unit_of_weights(result, unit)


def run(
    problem: Problem, start: GaussianMixture, active: Array, limits: Limits, settings: Settings
) -> FitResult:
    """EM from a start, both in standardized coordinates; the result is in the data's units.

    Args:
        problem: the data.
        start: K components.
        active: (K,) bool, which of them there are; the others have no weight.
        limits: where it ends.
        settings: static choices.
    """
    if settings.adjoint == "unroll":
        mixture, trace = iterate_unrolled(by_differences(problem), start, limits, settings)
    else:
        fixed, first, final = lax.stop_gradient((problem, start, limits))
        coarse = limits_of_steps(final, settings)
        loop = iterate(fixed, begin(problem.structure, first, coarse.tol, settings), coarse)
        mixture, trace = polished(fixed, loop, final, settings)
        mixture = as_maximum(problem, mixture, settings)
    return result_of(problem, mixture, trace, active, settings)


def result_of(
    problem: Problem,
    mixture: GaussianMixture,
    trace: Trace,
    active: Array,
    settings: Settings,
) -> FitResult:
    """The result of a loop that has ended; see `run`."""
    whitening = ready_to_whiten(mixture)
    totals = problem.log_likelihood_and_objective(whitening)
    result = summary(whitening, trace, totals, problem.regularization, active, settings)
    return replace(result, mixture=problem.rows.standardization.inverse_transform(mixture))


def summary(
    mixture: GaussianMixture,
    trace: Trace,
    totals: tuple[Array, ...],
    regularization: Array,
    active: Array,
    settings: Settings,
) -> FitResult:
    """What a loop that has ended says about its mixture.

    Args:
        mixture: that can be relied on, with a covariance that is `with_inverse`.
        trace: of the loop.
        totals: log-likelihood and objective of the mixture.
        regularization: (D,) variances in its coordinates.
        active: (K,) bool, which components there are.
        settings: static choices.
    """
    log_likelihood, objective = totals
    finite = trace.finite & jnp.isfinite(objective) & jnp.isfinite(log_likelihood)
    degenerate = finite & active & degenerate_components(mixture, regularization)
    status = jnp.where(trace.progress.converged(), Status.CONVERGED, Status.MAX_ITER)
    status = jnp.where(jnp.any(degenerate), Status.DEGENERATE, status)
    status = jnp.where(finite, status, Status.NON_FINITE)
    done = jnp.arange(settings.capacity, dtype=jnp.int32) >= trace.n_iter - 1
    return FitResult(
        mixture=mixture,
        log_likelihood=log_likelihood,
        objective=objective,
        n_iter=trace.n_iter,
        status=status.astype(jnp.int32),
        degenerate=degenerate,
        remaining_gain=trace.progress.remaining,
        history=jnp.where(done, objective, trace.history) if settings.history else None,
    )


def step(problem: Problem, mixture: GaussianMixture, smallest_gain: ArrayLike = jnp.inf) -> Step:
    """The step from a mixture; `smallest_gain` is for `forms_of`."""
    whitening = ready_to_whiten(mixture)
    forms = problem.forms(whitening, smallest_gain)
    if forms is None:
        error, statistics = 0.0, problem.expected_statistics(whitening)
    else:
        of_one = one_by_one(Problem.expected_statistics)
        error, statistics = forms.error, of_one(problem, whitening, forms)
    new = problem.maximize(statistics, mixture)
    return Step(new, statistics.log_likelihood, gain_of(new, whitening, error))


def begin(structure: AnyStructure, start: GaussianMixture, tol: Array, settings: Settings) -> Loop:
    """The loop before its first step."""
    dtype = start.means.dtype
    n_recorded = settings.capacity if settings.history else 0
    accelerator = None
    if settings.accelerate is not None:
        accelerator = Accelerator.begin(structure.chart, start, METHODS[settings.accelerate], tol)
    trace = Trace(
        n_iter=jnp.asarray(0, jnp.int32),
        finite=jnp.asarray(True),
        objective=jnp.asarray(-jnp.inf, dtype),
        progress=Progress.begin(start.log_weights),
        history=jnp.zeros(n_recorded, dtype),
        accelerator=accelerator,
    )
    return start, trace


def iteration(problem: Problem, tol: Array, mixture: GaussianMixture, trace: Trace) -> Loop:
    """One turn of the loop; a step that isn't finite is not taken."""
    # Without a tolerance there is nothing to be judged, and no gain has to be seen.
    smallest_gain = jnp.where((tol > 0) & (trace.n_iter > 0), trace.progress.gain, jnp.inf)
    taken = step(problem, mixture, smallest_gain)
    return advance(problem.structure, mixture, trace, taken, problem.weight, tol)


def advance(
    structure: AnyStructure,
    mixture: GaussianMixture,
    trace: Trace,
    taken: Step,
    weight: Array,
    tol: Array,
) -> Loop:
    """The loop after a step from its mixture.

    Args:
        structure: the covariance type.
        mixture: where the step began.
        trace: before it.
        taken: the step.
        weight: () of all rows.
        tol: () gain per unit of weight that may remain.
    """
    finite = jnp.isfinite(taken.objective) & is_finite(taken.mixture)
    if trace.accelerator is None:
        accelerator, objective = None, taken.objective
        following = jax.tree.map(partial(jnp.where, finite), taken.mixture, mixture)
        progress = trace.progress.update(taken.gain, tol)
    else:
        following, accelerator = trace.accelerator.update(
            structure.chart, mixture, taken, finite, weight, tol
        )
        finite |= ~trace.accelerator.is_plain
        progress, objective = accelerator.progress, accelerator.objective
    # The start's own objective lands in the last place, which is filled when the loop has ended.
    history = trace.history
    if history.size:
        history = history.at[trace.n_iter - 1].set(objective)
    return following, Trace(trace.n_iter + 1, finite, objective, progress, history, accelerator)


def keep_going(trace: Trace, limit: ArrayLike) -> Array:
    """Whether there is another step to take, of so many: () bool."""
    has_ended = trace.progress.converged() | ~trace.finite
    return ~has_ended & (trace.n_iter < limit)


def limits_of_steps(limits: Limits, settings: Settings) -> Limits:
    """Where EM steps end, if Newton steps may follow."""
    return limits._replace(tol=jnp.maximum(limits.tol, POLISH_FROM)) if settings.polish else limits


def iterate(problem: Problem, loop: Loop, limits: Limits) -> Loop:
    """Steps until there is nothing left to gain, or until so many are made."""
    return lax.while_loop(
        lambda loop: keep_going(loop[1], limits.max_iter),
        lambda loop: iteration(problem, limits.tol, *loop),
        varying(loop, problem, limits),
    )


def polished(problem: Problem, loop: Loop, limits: Limits, settings: Settings) -> Loop:
    """A loop that has ended, with the mixture that can be relied on, polished if that is wanted."""
    mixture, trace = accepted(*loop)
    if not settings.polish:
        return mixture, trace
    left = jnp.minimum(limits.max_iter - trace.n_iter, NEWTON_STEPS)
    ascent = newton(problem, mixture, left)
    progress = Progress.known(mixture.log_weights, ascent.gain_left(), limits.tol)
    n_iter = trace.n_iter + ascent.n_tried
    history = trace.history
    if history.size:
        skipped = jnp.arange(history.size, dtype=jnp.int32) >= trace.n_iter - 1
        skipped &= ascent.n_tried > 0
        history = jnp.where(skipped, ascent.statistics.log_likelihood, history)
    after_newton = trace._replace(n_iter=n_iter, progress=progress, history=history)
    trace = jax.tree.map(partial(jnp.where, trace.finite), after_newton, trace)
    return iterate(problem, (ascent.mixture, trace), limits)


def accepted(mixture: GaussianMixture, trace: Trace) -> Loop:
    """A loop that has ended, with the mixture that can be relied on."""
    if trace.accelerator is None:
        return mixture, trace
    return trace.accelerator.safe, trace._replace(accelerator=None)


def iterate_unrolled(
    problem: Problem, start: GaussianMixture, limits: Limits, settings: Settings
) -> Loop:
    """The same steps as a loop of `max_iter` turns, which reverse mode can go back through."""

    @jax.checkpoint
    def next_turn(loop: Loop, _: None) -> tuple[Loop, None]:
        new = iteration(problem, limits.tol, *loop)
        going = keep_going(loop[1], limits.max_iter)
        return jax.tree.map(partial(jnp.where, going), new, loop), None

    first = varying(begin(problem.structure, start, limits.tol, settings), problem)
    return lax.scan(next_turn, first, None, length=settings.capacity)[0]
