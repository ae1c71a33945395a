"""Fitting from data alone: start, restart, climb, and keep the best."""

from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.conversion import in_common_dtype
from jaxgmm.arrays.padding import with_padding
from jaxgmm.arrays.validation import (
    as_log_prior,
    as_responsibilities,
    check_choice,
    check_count,
    check_data,
    check_fit_arguments,
    check_key,
    check_n_components,
)
from jaxgmm.covariances.structures import structure_named
from jaxgmm.fits.entry import fit_models
from jaxgmm.fits.initialization import STARTS
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.solvers.results import FitResult, with_places
from jaxgmm.solvers.settings import check_limits, check_reg_covar, check_settings


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
    given = responsibilities = None
    if isinstance(init, GaussianMixture):
        if init.n_components != n_components:
            raise ValueError(f"init has {init.n_components} components, not {n_components}")
        given, x, weights = check_fit_arguments(init, x, weights)
        init, n_init = "given", 1
    elif isinstance(init, str):
        check_choice("init", init, STARTS)
    else:
        responsibilities = as_responsibilities(init, x, n_components, weights=weights)
        x, weights, responsibilities = in_common_dtype(x, weights, responsibilities)
        init, n_init = "given", 1
    log_prior = as_log_prior(log_prior, x, n_components, weights)
    numbers = (check_limits(tol, max_iter, x), check_reg_covar(reg_covar, x))
    structure = structure_named(covariance_type)
    settings = check_settings(max_iter, accelerate, adjoint, history, polish)
    of_rows, others = (log_prior, responsibilities), (key, given, tol, reg_covar)
    x, weights, (log_prior, responsibilities) = with_padding(x, weights, others, of_rows)
    given = responsibilities if given is None else given
    data = (key, None, x, weights, log_prior, given, *numbers, structure, None)
    static = {"n_components": n_components, "init": init, "n_init": n_init, "settings": settings}
    result = fit_models(*data, **static)
    return with_places(result, max_iter)
