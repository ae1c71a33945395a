"""Many fits of each of many models, and the best result of each model.

A start decides which maximum a fit climbs to, but not how far it is to the top. Some steps tell
which restarts are worth more; so where there are many, only the most promising climb to the end.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.covariance import prepared
from jaxgmm.diagnosis import degenerate_components
from jaxgmm.implicit import as_maximum
from jaxgmm.loop import (
    Loop,
    begin,
    climb,
    ended,
    finished,
    goes_on,
    landed,
    tol_of_steps,
)
from jaxgmm.mixture import GaussianMixture
from jaxgmm.numerics import varying
from jaxgmm.results import FitResult, Status
from jaxgmm.rounds import Problems, at, in_blocks, iterate_all, slots_for
from jaxgmm.settings import Settings

# After so many steps so many restarts of a model are left.
SCREENING, FINALISTS = 16, 4

# So many eps of an objective are rounding: it is a sum over rows, each exact to one or two.
ROUNDING = 8


def climb_all(
    problems: Problems,
    starts: GaussianMixture,
    active: Array,
    tol: Array,
    n_models: ArrayLike,
    settings: Settings,
) -> FitResult:
    """`loop.climb` for all restarts of many models, and the best result of each model.

    Args:
        problems: the data of M models, each with R restarts.
        starts: with a leading axis M·R.
        active: (M, K) bool, see `climb`.
        tol: () gain per unit of weight that may remain.
        n_models: () int, how many of the models are wanted; what the others become says nothing.
        settings: static choices.

    Returns:
        Results, with a leading axis M.
    """
    n_tasks, n_components = starts.log_weights.shape
    n_restarts = problems.n_restarts
    n_slots = problems.n_slots(n_tasks, n_components)

    def climbed(task: Array) -> FitResult:
        of_model = active[task // n_restarts]
        return climb(problems.of(task), at(starts, task), of_model, tol, settings)

    if settings.adjoint == "unroll" or n_tasks == 1:
        return best_of_each(in_blocks(climbed, n_tasks, n_slots), n_restarts)

    fixed = problems._replace(problem=lax.stop_gradient(problems.problem))
    first, final = lax.stop_gradient((starts, tol))
    limit = tol_of_steps(final, settings)
    loops = jax.vmap(lambda start: begin(start, limit, settings))(first)
    wanted = jnp.arange(n_tasks) < jnp.asarray(n_models) * n_restarts
    if n_restarts <= FINALISTS:
        loops, _ = iterate_all(fixed, loops, wanted, limit, settings.max_iter, settings)
        finalists = jnp.arange(n_tasks)
    else:
        loops, finalists = iterate_screened(fixed, loops, wanted, active, limit, settings)

    def result(place: Array) -> FitResult:
        task = finalists[place]
        problem = problems.of(task)
        mixture, trace = finished(fixed.of(task), at(loops, task), final, settings)
        mixture = as_maximum(problem, mixture, settings)
        return ended(problem, mixture, trace, active[task // n_restarts], settings)

    results = in_blocks(result, finalists.size, n_slots)
    return best_of_each(results, min(n_restarts, FINALISTS))


def iterate_screened(
    problems: Problems, loops: Loop, wanted: Array, active: Array, tol: Array, settings: Settings
) -> tuple[Loop, Array]:
    """`iterate_all` for restarts of which, after some steps, only the best of each model go on.

    Where all of these end degenerate or not finite, the others of that model go on as well.

    Args:
        problems: the data.
        loops: with a leading axis, of all M·R fits.
        wanted: (M·R,) bool, which of them are to be made.
        active: (M, K) bool, see `climb`.
        tol: () gain per unit of weight that may remain.
        settings: static choices.

    Returns:
        The loops, and the numbers of the best of each model: (M·FINALISTS,).

    Source: emEM, Biernacki, Celeux & Govaert 2003.
    """
    n_tasks, n_restarts = wanted.size, problems.n_restarts

    def ranked(loops: Loop, healthy: Array) -> Array:
        """The best of each model: (M·FINALISTS,)."""
        healthy = healthy.reshape(-1, n_restarts)
        objective = jax.vmap(comparable)(loops[1].objective.reshape(-1, n_restarts), healthy)
        order = jnp.sort(jnp.lexsort((-objective, ~healthy), axis=-1)[:, :FINALISTS], axis=-1)
        return (order + n_restarts * jnp.arange(len(order))[:, None]).ravel()

    def stage(number: Array, loops: Loop) -> Loop:
        healthy = healthy_among(problems, loops, active)
        best = jnp.zeros(n_tasks, bool).at[ranked(loops, healthy)].set(True)
        hopeful = jnp.any((healthy & has_ended(loops)).reshape(-1, n_restarts), axis=1)
        going = jnp.stack([jnp.ones(n_tasks, bool), best, ~jnp.repeat(hopeful, n_restarts)])
        limit = jnp.where(number == 0, min(SCREENING, settings.max_iter), settings.max_iter)
        return iterate_all(problems, loops, wanted & going[number], tol, limit, settings)[0]

    def has_ended(loops: Loop) -> Array:
        return ~jax.vmap(lambda trace: goes_on(trace, settings.max_iter))(loops[1])

    loops = lax.fori_loop(0, 3, stage, varying(loops, problems, wanted, active, tol))
    return loops, ranked(loops, healthy_among(problems, loops, active) & has_ended(loops))


def healthy_among(problems: Problems, loops: Loop, active: Array) -> Array:
    """Which of M·R loops are finite so far, and have no degenerate component: (M·R,) bool."""
    n_tasks = loops[0].means.shape[0]

    def is_healthy(task: Array) -> Array:
        mixture, trace = landed(*at(loops, task))
        ready = replace(mixture, covariance=prepared(mixture.covariance))
        degenerate = degenerate_components(ready, problems.of(task).regularization)
        return trace.finite & ~jnp.any(degenerate & active[task // problems.n_restarts])

    return in_blocks(is_healthy, n_tasks, slots_for(n_tasks, loops[0].means[0].size ** 2))


def best_of_each(results: FitResult, n_restarts: int) -> FitResult:
    """The best of each R results in a row: leaves lead with M·R, and then with M."""
    if n_restarts == 1:
        return results
    n_models = results.status.size // n_restarts
    shape = (n_models, n_restarts)
    of_models = jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), results)
    return jax.vmap(best_of)(of_models)


def best_of(results: FitResult) -> FitResult:
    """The healthiest and then the highest of a batch of results, and the first of equal ones."""
    healthy = (results.status == Status.CONVERGED) | (results.status == Status.MAX_ITER)
    among = jnp.where(jnp.any(healthy), healthy, True)
    objective = comparable(results.objective, among)
    best = jnp.argmax(jnp.where(among, objective, -jnp.inf))
    return jax.tree.map(lambda leaf: leaf[best], results)


def comparable(objective: Array, among: Array) -> Array:
    """Objectives (R,) of which those that differ by rounding only from the highest are equal to it.

    Restarts often reach the same maximum with other numbers for its components. Which of them is
    the highest then says nothing, and would not be the same for other blocks or on another machine.

    Args:
        objective: (R,); where NaN, it is the lowest.
        among: (R,) bool, which of them the highest is sought among.
    """
    objective = jnp.where(jnp.isnan(objective), -jnp.inf, objective)
    highest = jnp.max(jnp.where(among, objective, -jnp.inf))
    rounding = ROUNDING * float(jnp.finfo(objective.dtype).eps) * jnp.abs(highest)
    near = among & (objective >= highest - rounding)
    return jnp.where(near, highest, objective)
