"""Fitting from data alone: start, restart, climb, and keep the best."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.initialization import STARTS, as_given, start_from
from jaxgmm.loop import (
    Settings,
    check_reg_covar,
    check_settings,
    check_tol,
    climb,
    em,
    problem_of,
)
from jaxgmm.mixture import GaussianMixture
from jaxgmm.padding import with_padding, with_rows
from jaxgmm.results import FitResult, Status
from jaxgmm.steps import as_responsibilities
from jaxgmm.structures import structure_named
from jaxgmm.validation import (
    check_choice,
    check_count,
    check_data,
    check_key,
    check_n_components,
    in_common_dtype,
)


def fit(
    key: Array,
    x: ArrayLike,
    n_components: int,
    *,
    covariance_type: str = "full",
    weights: ArrayLike | None = None,
    init: str | GaussianMixture | ArrayLike = "k-means++",
    n_init: int = 1,
    max_iter: int = 1000,
    tol: ArrayLike = 1e-7,
    reg_covar: ArrayLike | None = None,
    accelerate: str | None = None,
    adjoint: str = "implicit",
    history: bool = True,
) -> FitResult:
    """A Gaussian mixture of the data: starts, EM from each, and the best of the results.

    Pure: works under `jax.jit`, `jax.vmap` and `jax.grad`. The best result is the one with the
    highest objective among those without degenerate components, or among all where none is.

    Args:
        key: a JAX PRNG key; restart r uses `jax.random.fold_in(key, r)`.
        x: (N, D).
        n_components: K, at most N.
        covariance_type: "full", "tied", "diag", "spherical", "tied_diag" or "tied_spherical".
        weights: (N,) sample weights; 0 removes a row, which may then hold anything.
        init: "k-means++" (the partition that k-means reaches in three iterations from greedy
            seeds), "kmeans" (the one that it converges to), "random" (random responsibilities),
            "random_from_data" (the nearest-seed partition of K random rows), a `GaussianMixture`,
            or responsibilities (N, K). Seeds are chosen from max(8192, 128 K) rows where there are
            more. A partition becomes a mixture by one M-step; parts of the named ones that are too
            small for a covariance borrow from the average one.
        n_init: number of restarts; a given mixture or given responsibilities are one start.
        max_iter: at most so many steps from each start. Static.
        tol: see `em`.
        reg_covar: see `em`.
        accelerate: see `em`.
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
    if isinstance(init, GaussianMixture) and init.n_components != n_components:
        raise ValueError(f"init has {init.n_components} components, n_components={n_components}")
    if isinstance(init, GaussianMixture):
        structure_named(covariance_type)
        return em(
            init,
            x,
            weights=weights,
            covariance_type=covariance_type,
            max_iter=max_iter,
            tol=tol,
            reg_covar=reg_covar,
            accelerate=accelerate,
            adjoint=adjoint,
            history=history,
        )
    given = None
    if isinstance(init, str):
        check_choice("init", init, STARTS)
    else:
        given = as_responsibilities(init, x, n_components)
        x, weights, given = in_common_dtype(x, weights, given)
        init, n_init = "given", 1
    numbers = (check_tol(tol, x), check_reg_covar(reg_covar, x))
    settings = check_settings(covariance_type, max_iter, accelerate, adjoint, history)
    active = np.ones(n_components, bool)
    x, weights = with_padding(x, weights, (key, given, tol, reg_covar))
    given = None if given is None else with_rows(given, x.shape[0])
    return fit_active(key, x, weights, given, active, *numbers, init, n_init, settings)


@partial(jax.jit, static_argnames=("init", "n_init", "settings"))
def fit_active(
    key: Array,
    x: Array,
    weights: Array,
    given: Array | None,
    active: ArrayLike,
    tol: ArrayLike,
    reg_covar: ArrayLike,
    init: str,
    n_init: int,
    settings: Settings,
) -> FitResult:
    """`fit` for arguments known to be good, of the active components among K.

    The others have no weight from the start, and so never have any: fits with different numbers of
    components can be one program.

    Args:
        active: (K,) bool.
    """
    active = jnp.asarray(active)
    problem = problem_of(x, weights, reg_covar, active.size, settings.covariance_type)

    def climb_from(restart: Array) -> FitResult:
        if given is None:
            key_of_restart = jax.random.fold_in(key, restart)
            responsibilities = STARTS[init](key_of_restart, problem.rows, active)
        else:
            responsibilities = as_given(given)
        start = start_from(
            responsibilities,
            problem.rows,
            active,
            settings.covariance_type,
            problem.regularization,
            lend=given is None,
        )
        return climb(problem, start, active, jnp.asarray(tol, x.dtype), settings)

    if n_init == 1:
        return climb_from(jnp.asarray(0))
    return best_of(jax.lax.map(climb_from, jnp.arange(n_init)))


def best_of(results: FitResult) -> FitResult:
    """The healthiest and then the highest of a batch of results."""
    objective = jnp.where(jnp.isnan(results.objective), -jnp.inf, results.objective)
    healthy = (results.status == Status.CONVERGED) | (results.status == Status.MAX_ITER)
    among = jnp.where(jnp.any(healthy), healthy, True)
    best = jnp.argmax(jnp.where(among, objective, -jnp.inf))
    return jax.tree.map(lambda leaf: leaf[best], results)
