"""The entry program: the fits of M models, from starts that are named or given."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.covariances.structures import Structure
from jaxgmm.covariances.traced import AnyStructure
from jaxgmm.execution.programs import Axes, Program
from jaxgmm.execution.tasks import at, in_blocks, slots_for
from jaxgmm.fits.initialization import STARTS, as_given, least_rows, respecting, start_from
from jaxgmm.fits.problems import Problems
from jaxgmm.fits.restarts import run_all
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.solvers.results import FitResult, in_unit_of_weights
from jaxgmm.solvers.settings import Limits, Settings
from jaxgmm.steps.problem import Problem, problem_of
from jaxgmm.steps.products import products_in_pass
from jaxgmm.steps.rows import Rows, weights_in_own_unit


def size_of_passes(
    key: Array,
    model_ids: np.ndarray | None,
    x: Array,
    *_: Any,
    n_components: int,
    n_init: int,
    **__: Any,
) -> int:
    """The size of all models' passes, of the arguments of `fit_models`."""
    n_models = 1 if model_ids is None else len(model_ids)
    return products_in_pass(x, n_models * n_components * n_init)


def axes_of_data(
    key: Array,
    model_ids: np.ndarray | None,
    x: Array,
    weights: Array,
    log_prior: Array | None,
    given: Any,
    *_: Any,
) -> dict[int, Axes]:
    """The axes of rows and models that arguments of `fit_models` have."""
    axes = {2: own_axes(x, 2), 3: own_axes(weights, 1)}
    if log_prior is not None:
        axes[4] = own_axes(log_prior, 2)
    if isinstance(given, GaussianMixture):
        axes[5] = Axes() if model_ids is None else Axes(models=0)
    elif given is not None:
        axes[5] = own_axes(given, 2)
    return axes if model_ids is None else {**axes, 1: Axes(models=0)}


def own_axes(array: Array, n_axes: int) -> Axes:
    """The axes of an array of rows: that of models before so many of one model's, or none."""
    return Axes(rows=0) if array.ndim == n_axes else Axes(rows=1, models=0)


@partial(
    Program,
    static_argnames=("n_components", "init", "n_init", "settings"),
    pass_size=size_of_passes,
    layout=axes_of_data,
)
def fit_models(
    key: Array,
    model_ids: ArrayLike | None,
    x: Array,
    weights: Array,
    log_prior: Array | None,
    given: Any,
    limits: Limits,
    reg_covar: ArrayLike,
    structure: Structure,
    n_models: ArrayLike | None,
    n_components: int,
    init: str,
    n_init: int,
    settings: Settings,
) -> FitResult:
    """`fit_all` for many models, or for one without a leading axis on anything that is its own.

    Args:
        key: model b has `jax.random.fold_in(key, model_ids[b])`.
        model_ids: (M,) int, or None for a single model, of which this is the key.
        x, weights, log_prior, given: see `fit_all`.
        limits, reg_covar, structure: see `fit_all`.
        n_models: () how many of the models are wanted, see `fit_all`; None for all.
        n_components: K.
        init, n_init, settings: see `fit_all`.
    """
    if model_ids is None:
        keys = key[None]
        given = jax.tree.map(lambda leaf: leaf[None], given)
    else:
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(model_ids))
    n_models = keys.size if n_models is None else n_models
    wanted = jnp.arange(keys.size) < n_models
    active = jnp.broadcast_to(wanted[:, None], (keys.size, n_components))
    data = (keys, x, weights, log_prior, given, active, limits, reg_covar, structure, n_models)
    results = fit_all(*data, init, n_init, settings)
    return at(results, 0) if model_ids is None else results


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
    weights, unit = weights_in_own_unit(weights)
    problem = problem_of_each(x, weights, log_prior, reg_covar, active, structure)
    problems = Problems(problem, n_init)

    def start(task: Array) -> GaussianMixture:
        problem, model = problems.of(task), task // n_init
        if isinstance(given, GaussianMixture):
            return problem.start_at(at(given, model))
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
