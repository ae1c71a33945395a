"""Many fits of each of many models, and the best result of each model.

A start decides which maximum a fit climbs to, but not how far it is to the top. Some steps tell
which restarts are worth more; so where there are many, only the most promising climb to the end.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays import shards
from jaxgmm.arrays.numerics import all_in_batch, varying
from jaxgmm.execution.queue import iterate_all
from jaxgmm.execution.tasks import at, in_blocks
from jaxgmm.fits.initialization import least_rows
from jaxgmm.fits.kmeans import effective_rows
from jaxgmm.fits.problems import Problems
from jaxgmm.fits.splitting import split_instead
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.solvers.degeneracy import collapsed_components, twins
from jaxgmm.solvers.implicit import as_maximum
from jaxgmm.solvers.loop import (
    Loop,
    accepted,
    begin,
    iterate,
    iteration,
    keep_going,
    limits_of_steps,
    polished,
    result_of,
    run,
)
from jaxgmm.solvers.results import FitResult, Status
from jaxgmm.solvers.settings import Limits, Settings
from jaxgmm.steps.problem import Problem, ready_to_whiten

# After so many steps so many restarts of a model are left.
SCREENING, FINALISTS = 16, 4
# Stages of as many steps in which components may collapse and others be split instead, and stages
# of climbs to the end.
TRIALS, CLIMBS = 6, 3

# So many eps of an objective are rounding: it is a sum over rows, each exact to one or two.
ROUNDING = 8


def run_all(
    problems: Problems,
    starts: GaussianMixture,
    active: Array,
    limits: Limits,
    n_models: ArrayLike,
    settings: Settings,
    splits: bool = False,
) -> FitResult:
    """`loop.run` for all restarts of many models, and the best result of each model.

    Args:
        problems: the data of M models, each with R restarts.
        starts: with a leading axis M·R.
        active: (M, K) bool, see `run`.
        limits: where climbs end.
        n_models: () int, how many of the models are wanted; what the others become says nothing.
        settings: static choices.
        splits: whether large components are split in the place of such as collapse. Static.

    Returns:
        Results, with a leading axis M.
    """
    n_tasks, n_components = starts.log_weights.shape
    n_restarts = problems.n_restarts
    n_slots = problems.n_slots(n_tasks, n_components)

    if settings.adjoint == "unroll":

        def climbed(task: Array) -> FitResult:
            of_model = active[task // n_restarts]
            return run(problems.of(task), at(starts, task), of_model, limits, settings)

        return best_of_each(in_blocks(climbed, n_tasks, n_slots), n_restarts)

    fixed = problems._replace(problem=lax.stop_gradient(problems.problem))
    first, final = lax.stop_gradient((starts, limits))
    wanted = jnp.arange(n_tasks) < jnp.asarray(n_models) * n_restarts
    restarts = Restarts(fixed, wanted, active, limits_of_steps(final, settings), settings, splits)
    loops, finalists = restarts.run(first)

    def result(place: Array) -> FitResult:
        task = finalists[place]
        problem = problems.of(task)
        mixture, trace = polished(fixed.of(task), at(loops, task), final, settings)
        mixture = as_maximum(problem, mixture, settings)
        return result_of(problem, mixture, trace, active[task // n_restarts], settings)

    results = in_blocks(result, finalists.size, n_slots)
    return best_of_each(results, min(n_restarts, FINALISTS))


class Stage(NamedTuple):
    """A stage of many climbs.

    Attributes:
        number: () int, of the stage to come.
        loops: with a leading axis, of all M·R climbs.
        healthy: (M·R,) bool, which have no degenerate component so far.
        going: (M·R,) bool, which of them take part in the stage to come.
    """

    number: Array
    loops: Loop
    healthy: Array
    going: Array


class Restarts(NamedTuple):
    """Climbs from all starts of many models, in stages.

    In the first stages all restarts make a few steps. Where components collapse others are split
    instead, and what comes of that is another start. Then the best of each model climb to the end,
    and where all of these end degenerate the others of that model do as well. Those that end with
    components that have collapsed may start again, too.

    Attributes:
        problems: the data of M models, each with R restarts.
        wanted: (M·R,) bool, which climbs are to be made.
        active: (M, K) bool, see `run`.
        limits: where climbs end.
        settings: static choices.
        splits: see `run_all`.

    Source: emEM, Biernacki, Celeux & Govaert 2003.
    """

    problems: Problems
    wanted: Array
    active: Array
    limits: Limits
    settings: Settings
    splits: bool

    def run(self, starts: GaussianMixture) -> tuple[Loop, Array]:
        """The loops, and the numbers of the best of each model: (M·R,) or (M·FINALISTS,)."""
        loops = jax.vmap(self.begin)(starts)
        if not (self.splits or self.screens):
            loops = self.iterate(loops, self.wanted, self.limits.max_iter)
            return loops, jnp.arange(self.wanted.size)
        first = Stage(jnp.asarray(0), loops, jnp.zeros_like(self.wanted), self.wanted)
        data = (self.problems, self.wanted, self.active, self.limits)
        end = lax.while_loop(
            lambda stage: jnp.any(stage.going) & (stage.number < self.n_trials + CLIMBS),
            lambda stage: varying(self.next_stage(stage), data),
            varying(first, data),
        )
        return end.loops, self.best(end.loops, end.healthy & ~self.going(end.loops))

    @property
    def n_trials(self) -> int:
        """The number of stages of a few steps."""
        return TRIALS if self.splits else 1

    @property
    def screens(self) -> bool:
        """Whether only the best restarts climb to the end."""
        return self.problems.n_restarts > FINALISTS

    def begin(self, start: GaussianMixture) -> Loop:
        """A loop from a start."""
        return begin(self.problems.problem.structure, start, self.limits.tol, self.settings)

    def going(self, loops: Loop) -> Array:
        """Mask of the loops that have another step to take: (M·R,) bool."""
        return jax.vmap(lambda trace: keep_going(trace, self.limits.max_iter))(loops[1])

    def iterate(self, loops: Loop, wanted: Array, limit: Array) -> Loop:
        """Steps of those that are wanted (M·R,), until they have converged or made so many."""
        if self.wanted.size > 1:
            return self.iterate_all(loops, wanted, limit)
        limit = jnp.where(wanted[0], limit, 0)
        problem = self.problems.of(0)
        limits = self.limits._replace(max_iter=limit)
        loop = iterate(problem, at(loops, 0), limits)
        return jax.tree.map(lambda leaf: leaf[None], loop)

    def iterate_all(self, loops: Loop, wanted: Array, limit: Array) -> Loop:
        """`iterate` for more than one, in slots that are refilled."""
        n_tasks, n_components = loops[0].log_weights.shape

        def step(data: tuple[Problem, Array, Array], loop: Loop) -> Loop:
            problem, tol, _ = data
            return iteration(problem, tol, *loop)

        return iterate_all(
            step,
            lambda loop: keep_going(loop[1], limit),
            loops,
            (self.problems.problem, self.limits.tol, limit),
            (self.problems.axes, None, None),
            wanted=wanted,
            n_slots=lambda: self.problems.n_slots(n_tasks, n_components, True),
            repeats=self.problems.n_restarts,
        )[0]

    def next_stage(self, stage: Stage) -> Stage:
        """Takes the climbs through a stage, and chooses those for the one after it."""
        trial, max_iter = stage.number < self.n_trials, self.limits.max_iter
        limit = jnp.where(trial, jnp.minimum(max_iter, SCREENING), max_iter)
        loops = self.iterate(stage.loops, stage.going, limit)
        healthy, again, loops = self.examine(loops, stage.going, stage.number)
        more = ~trial | (jnp.any(again) & (stage.number + 1 < self.n_trials))
        number = jnp.where(more, stage.number + 1, self.n_trials)
        going = self.going(loops)
        if self.screens:
            going_to_end = self.chosen(loops, healthy, number > self.n_trials)
            going &= going_to_end | (number < self.n_trials)
        return Stage(number, loops, healthy, going & self.wanted)

    def examine(self, loops: Loop, going: Array, stage: Array) -> tuple[Array, Array, Loop]:
        """Splits components in the place of twins and of those that have collapsed.

        Args:
            loops: with a leading axis.
            going: (M·R,) bool, whose loops may begin again; all others stay as they are.
            stage: () int, its number.

        Returns:
            Which loops are finite and have no degenerate component: (M·R,) bool; which begin
            again: (M·R,) bool; and the loops.
        """
        n_tasks, n_components = loops[0].log_weights.shape
        last = stage == self.n_trials + CLIMBS - 1

        def of_task(task: Array) -> tuple[Array, Array, Loop]:
            loop, problem = at(loops, task), self.problems.of(task)
            model = task // self.problems.n_restarts
            mixture, trace = accepted(*loop)
            whitening = ready_to_whiten(mixture)
            collapsed = collapsed_components(whitening, problem.regularization)
            # Before the end components may be alike because they have hardly begun to part.
            none = varying((jnp.zeros_like(collapsed),) * 2, whitening)
            on_the_way = keep_going(trace, self.limits.max_iter)
            alike = lax.cond(
                all_in_batch(on_the_way), lambda: none, lambda: varying(twins(whitening), none)
            )
            are_twins, repeats = (flags & ~on_the_way for flags in alike)
            degenerate = (collapsed | repeats) & self.active[model]
            healthy = trace.finite & ~jnp.any((degenerate | are_twins) & self.active[model])
            if not self.splits:
                return healthy, jnp.asarray(False), loop
            # If most are flat, on many rows, that is what the data or the regularization make them.
            has_rows = self.has_rows(problem, mixture)
            flat = collapsed & has_rows & self.active[model]
            inherent = 2 * jnp.sum(flat) > jnp.sum(self.active[model])
            useless = degenerate & ~(flat & inherent)
            spare = self.active[model] & ~degenerate & has_rows
            split = split_instead(mixture, useless, spare)
            again = going[task] & trace.finite & (trace.n_iter > 0) & ~last
            again &= jnp.any(useless) & jnp.any(spare)
            return healthy, again, jax.tree.map(partial(jnp.where, again), self.begin(split), loop)

        size = self.problems.n_slots(n_tasks, n_components)
        return in_blocks(of_task, n_tasks, size)

    def has_rows(self, problem: Problem, mixture: GaussianMixture) -> Array:
        """Mask of the components that have enough rows for two: (K,) bool."""
        n_rows = effective_rows(problem.weight, shards.total(jnp.sum(problem.rows.weights**2)))
        least = least_rows(problem.structure, mixture.n_features)
        return mixture.weights * n_rows >= least.astype(n_rows.dtype)

    def chosen(self, loops: Loop, healthy: Array, others: Array) -> Array:
        """The best of each model, or else all of models without hope: (M·R,) bool.

        Args:
            loops: with a leading axis.
            healthy: (M·R,) bool.
            others: () bool, whether the best have had their turn.
        """
        n_restarts = self.problems.n_restarts
        best = jnp.zeros_like(healthy).at[self.best(loops, healthy)].set(True)
        hopeful = jnp.any((healthy & ~self.going(loops)).reshape(-1, n_restarts), axis=1)
        return jnp.where(others, ~jnp.repeat(hopeful, n_restarts), best)

    def best(self, loops: Loop, healthy: Array) -> Array:
        """The numbers of the best of each model: (M·R,) or (M·FINALISTS,)."""
        n_restarts = self.problems.n_restarts
        if not self.screens:
            return jnp.arange(healthy.size)
        healthy = healthy.reshape(-1, n_restarts)
        objective = jax.vmap(collapse_ties)(loops[1].objective.reshape(-1, n_restarts), healthy)
        order = jnp.sort(jnp.lexsort((-objective, ~healthy), axis=-1)[:, :FINALISTS], axis=-1)
        return (order + n_restarts * jnp.arange(len(order))[:, None]).ravel()


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
    objective = collapse_ties(results.objective, among)
    best = jnp.argmax(jnp.where(among, objective, -jnp.inf))
    return jax.tree.map(lambda leaf: leaf[best], results)


def collapse_ties(objective: Array, among: Array) -> Array:
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
