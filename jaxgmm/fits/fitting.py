"""Fitting from data alone: start, restart, climb, and keep the best."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays.conversion import in_common_dtype
from jaxgmm.arrays.numerics import in_own_unit
from jaxgmm.arrays.padding import with_padding
from jaxgmm.arrays.validation import (
    as_log_prior,
    as_responsibilities,
    check_choice,
    check_count,
    check_data,
    check_key,
    check_n_components,
)
from jaxgmm.covariances.structures import Structure, structure_named
from jaxgmm.covariances.traced import AnyStructure
from jaxgmm.execution.programs import Program
from jaxgmm.execution.tasks import in_blocks, slots_for
from jaxgmm.fits.initialization import STARTS, as_given, least_rows, respecting, start_from
from jaxgmm.fits.problems import Problems
from jaxgmm.fits.restarts import run_all
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.solvers.loop import em
from jaxgmm.solvers.results import FitResult, in_unit_of_weights, with_places
from jaxgmm.solvers.settings import Limits, Settings, check_limits, check_reg_covar, check_settings
from jaxgmm.steps.problem import Problem, problem_of
from jaxgmm.steps.rows import Rows


def fit(
    key: Array,
    x: ArrayLike,
    n_components: int,
    *,
    covariance_type: str = "full",
    weights: ArrayLike | None = None,
    log_prior: ArrayLike | None = None,
    init: str | GaussianMixture | ArrayLike = "k-means++",
    n_init: int = 1,
    max_iter: int = 1000,
    tol: ArrayLike = 1e-7,
    reg_covar: ArrayLike | None = None,
    accelerate: str | None = None,
    polish: bool = False,
    adjoint: str = "implicit",
    history: bool = True,
) -> FitResult:
    """A Gaussian mixture of the data: starts, EM from each, and the best of the results.

    Pure: works under `jax.jit`, `jax.vmap` and `jax.grad`. The best result is the one with the
    highest objective among those without degenerate components, or among all where none is.

    Args:
        key: a JAX PRNG key; restart r uses `jax.random.fold_in(key, r)`.
        x: (N, D), see `em`.
        n_components: K, at most N.
        covariance_type: "full", "tied", "diag", "spherical", "tied_diag", "tied_spherical" or
            "VEI" (diagonals of the same shape and volumes of their own); or mclust's names of them.
        weights: (N,) sample weights; 0 removes a row, which may then hold anything.
        log_prior: (N, K), see `em`. Named starts respect it: their parts are the components that it
            says most of, and rows are where it wants them.
        init: "k-means++" (the partition that k-means reaches from greedy seeds in five iterations,
            and in five more with features measured by their deviation within its clusters),
            "kmeans" (the partition that it converges to from these seeds), "random" (random
            responsibilities), "random_from_data" (the nearest-seed partition of K random rows), a
            `GaussianMixture`, or responsibilities (N, K). Seeds are chosen, and the ten iterations
            made, on max(8192, 128 K) rows where there are more. A partition becomes a mixture by
            one M-step. For the named ones, parts with fewer rows than twice what a covariance takes
            are merged with others, and large ones are split instead; and where a component
            collapses all the same a large one is split in its place, which is another start (not
            with `adjoint="unroll"`).
        n_init: number of restarts; a given mixture or given responsibilities are one start. Of more
            than four restarts, the four that are best after 16 steps climb to the end; all others
            do too where these end degenerate.
        max_iter: at most so many steps from each start, of which `n_iter` and `history` count those
            from the last. Not traced.
        tol: see `em`.
        reg_covar: see `em`.
        accelerate: see `em`.
        polish: see `em`.
        adjoint: see `em`.
        history: whether to record the objective of each iteration. Static.

    Returns:
        A `FitResult`; it says whether it converged and which components are degenerate.

    Raises:
        TypeError: no key, or x is not numeric.
        ValueError: shapes, counts or names are wrong, K > N; where values are known, NaN or
            infinity in x.

    Example:
        >>> import jax, jaxgmm as jg
        >>> key = jax.random.key(0)
        >>> centers = jax.numpy.tile(jax.numpy.array([[0.0, 0.0], [9.0, 9.0]]), (100, 1))
        >>> x = centers + jax.random.normal(key, (200, 2))
        >>> jg.fit(key, x, 2).check().mixture.weights.round(3).tolist()
        [0.5, 0.5]
    """
    key = check_key(key)
    x, weights = check_data(x, weights)
    n_components = check_n_components(n_components, x.shape[0])
    n_init = check_count("n_init", n_init, 1)
    if isinstance(init, GaussianMixture):
        if init.n_components != n_components:
            raise ValueError(f"init has {init.n_components} components, not {n_components}")
        return em(
            init,
            x,
            weights=weights,
            log_prior=log_prior,
            covariance_type=covariance_type,
            max_iter=max_iter,
            tol=tol,
            reg_covar=reg_covar,
            accelerate=accelerate,
            polish=polish,
            adjoint=adjoint,
            history=history,
        )
    given = None
    if isinstance(init, str):
        check_choice("init", init, STARTS)
    else:
        given = as_responsibilities(init, x, n_components, weights=weights)
        x, weights, given = in_common_dtype(x, weights, given)
        init, n_init = "given", 1
    log_prior = as_log_prior(log_prior, x, n_components, weights)
    numbers = (check_limits(tol, max_iter, x), check_reg_covar(reg_covar, x))
    structure = structure_named(covariance_type)
    settings = check_settings(max_iter, accelerate, adjoint, history, polish)
    active = np.ones(n_components, bool)
    of_rows = (log_prior, given)
    x, weights, of_rows = with_padding(x, weights, (key, tol, reg_covar), of_rows)
    data = (key, x, weights, *of_rows, active, *numbers, structure)
    result = fit_active(*data, init=init, n_init=n_init, settings=settings)
    return with_places(result, max_iter)


@partial(Program, static_argnames=("init", "n_init", "settings"))
def fit_active(
    key: Array,
    x: Array,
    weights: Array,
    log_prior: Array | None,
    given: Array | None,
    active: ArrayLike,
    limits: Limits,
    reg_covar: ArrayLike,
    structure: Structure,
    init: str,
    n_init: int,
    settings: Settings,
) -> FitResult:
    """`fit` for arguments known to be good; for `active` (K,) and all others see `fit_all`."""
    given = None if given is None else given[None]
    active = jnp.asarray(active)[None]
    data = (key[None], x, weights, log_prior, given, active, limits, reg_covar, structure, 1)
    results = fit_all(*data, init, n_init, settings)
    return jax.tree.map(lambda leaf: leaf[0], results)


def fit_all(
    keys: Array,
    x: Array,
    weights: Array,
    log_prior: Array | None,
    given: Any,
    active: Array,
    limits: Limits,
    reg_covar: ArrayLike,
    structure: AnyStructure,
    n_models: ArrayLike,
    init: str,
    n_init: int,
    settings: Settings,
) -> FitResult:
    """`fit` for M models and arguments known to be good.

    Args:
        keys: (M,), one for each model.
        x: (N, D), for all, or (M, N, D).
        weights: (N,), for all, or (M, N).
        log_prior: (N, K), for all, or (M, N, K), or None.
        given: responsibilities (M, N, K), mixtures (M, ...), or None where `init` is a name.
        active: (M, K) bool, which components there are. The others have no weight from the start,
            and so never have any: fits with different numbers of components can be one program.
        limits: where fits end.
        reg_covar: () see `em`.
        structure: the covariance type; of each model, with a leading axis, where that is data.
        n_models: () how many of the models are wanted; what the others become says nothing.
        init: one of `STARTS`, or "given".
        n_init: number of restarts.
        settings: static choices.

    Returns:
        Results, with a leading axis M.
    """
    n_tasks = keys.shape[0] * n_init
    weights, unit = in_own_unit(weights)
    problem = problem_of_each(x, weights, log_prior, reg_covar, active, structure)
    problems = Problems(problem, n_init)

    def start(task: Array) -> GaussianMixture:
        problem, model = problems.of(task), task // n_init
        if isinstance(given, GaussianMixture):
            mixture = jax.tree.map(lambda leaf: leaf[model], given)
            return problem.start_at(mixture)
        if given is None:
            key = jax.random.fold_in(keys[model], task % n_init)
            least = least_rows(problem.structure, x.shape[-1])
            rows = lax.stop_gradient(problem.rows)
            responsibilities = STARTS[init](key, rows, active[model], least)
            if rows.log_prior is not None:
                responsibilities = respecting(responsibilities, rows)
        else:
            responsibilities = as_given(given[model])
        return start_from(
            responsibilities,
            problem.rows,
            active[model],
            problem.structure,
            problem.regularization,
            pseudocounts=given is None,
        )

    starts = in_blocks(start, n_tasks, problems.n_slots(n_tasks, active.shape[1]))
    limits = limits._replace(tol=limits.tol.astype(x.dtype))
    # A start that is given is where the climb begins, whatever becomes of it.
    splits = given is None
    results = run_all(problems, starts, active, limits, n_models, settings, splits)
    return in_unit_of_weights(results, unit)


def problem_of_each(
    x: Array,
    weights: Array,
    log_prior: Array | None,
    reg_covar: ArrayLike,
    active: Array,
    structure: AnyStructure,
) -> Problem:
    """The problem that all models have, or those of all, with a leading axis; see `fit_all`."""
    n_models, n_components = active.shape

    of_each = bool(jax.tree.leaves(structure))
    of_each |= log_prior is not None and log_prior.ndim == 3
    if x.ndim == 2 and weights.ndim == 1 and not of_each:
        return problem_of(x, weights, reg_covar, n_components, structure, log_prior)

    def of_model(model: Array) -> Problem:
        own_x = x[model] if x.ndim == 3 else x
        own_weights = weights[model] if weights.ndim == 2 else weights
        own = jax.tree.map(lambda flag: flag[model], structure)
        problem = problem_of(own_x, own_weights, reg_covar, n_components, own)
        return problem._replace(rows=Rows(problem.rows.standardization, none, none))

    none = jnp.zeros((), x.dtype)
    n_rows, n_features = x.shape[-2:]
    problem = in_blocks(of_model, n_models, slots_for(n_models, n_rows * n_features))
    return problem._replace(rows=Rows(problem.rows.standardization, x, weights, log_prior))
