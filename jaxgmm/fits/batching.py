"""Many data sets, or many weightings of one, in one call."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.conversion import as_float_array, in_common_dtype
from jaxgmm.arrays.host import (
    chosen_device,
    from_host,
    is_concrete,
    made_on_host,
    on_host,
    unit_weights,
)
from jaxgmm.arrays.padding import padded_rows, with_rows
from jaxgmm.arrays.placement import check_whole_rows
from jaxgmm.arrays.validation import check_choice, check_count, check_key, check_n_components
from jaxgmm.covariances.storage import scale_shape
from jaxgmm.covariances.structures import Structure, structure_named
from jaxgmm.execution.blocks import fit_blocks
from jaxgmm.fits.entry import fit_models
from jaxgmm.fits.initialization import STARTS
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.solvers.results import FitResult, with_places
from jaxgmm.solvers.settings import Settings, check_limits, check_reg_covar, check_settings


def fit_batch(
    key: Array,
    x: ArrayLike | Sequence[ArrayLike],
    n_components: int,
    *,
    covariance_type: str = "full",
    weights: ArrayLike | Sequence[ArrayLike] | None = None,
    log_prior: ArrayLike | Sequence[ArrayLike] | None = None,
    init: str | GaussianMixture | ArrayLike | Sequence[ArrayLike] = "k-means++",
    n_init: int = 1,
    max_iter: int = 1000,
    tol: ArrayLike = 1e-7,
    reg_covar: ArrayLike | None = None,
    accelerate: str | None = None,
    polish: bool = False,
    adjoint: str = "implicit",
    history: bool = False,
) -> FitResult:
    """Many mixtures at once, each as `fit` would find it, none waiting for the slowest.

    Model b is `fit(jax.random.fold_in(key, b), x[b], …)`. A model that fails says so in its status
    and changes nothing for the others. A few models at a time are in work, as many as a cache or a
    device can hold; when some have ended, the next take their places. Besides data and results
    memory holds no more than these few. On a CPU blocks of models are fitted side by side, one on
    each core. Works under `jax.jit` and `jax.grad`, where a CPU fits one block after the other.

    Args:
        key: a JAX PRNG key; model b uses `jax.random.fold_in(key, b)`. Keys whose draws depend on
            `jax.vmap`, as those of "rbg" do, lead to other starts than in single fits.
        x: (B, N, D); or (N, D), the same data for all, with B different weights (bootstrap,
            folds), which are not copied; or a sequence of B arrays (N_b, D), which are packed into
            arrays of a few sizes. NaN and infinity lead to `Status.NON_FINITE`. Models, rows or
            both may be spread over the devices of a mesh: models stay where they are, each device
            fits its own, and results are spread as they are; of rows see `em`.
        n_components: K, at most N.
        covariance_type: see `fit`.
        weights: (B, N) sample weights, or (N,) for all models; for a sequence of arrays a sequence
            of (N_b,). 0 removes a row, which may then hold anything: so data of different lengths
            fit into one array.
        log_prior: (B, N, K), see `fit`, or (N, K) for all models; for a sequence of arrays a
            sequence of (N_b, K). A row that it leaves no component is `Status.NON_FINITE`.
        init: a name, see `fit`; a `GaussianMixture` of which all leaves lead with B; or
            responsibilities (B, N, K), for a sequence of arrays a sequence of (N_b, K).
        n_init: restarts of each model.
        max_iter: see `fit`.
        tol: see `em`.
        reg_covar: see `em`.
        accelerate: see `em`.
        polish: see `em`.
        adjoint: see `em`.
        history: whether to record the objective of each iteration, (B, max_iter). Static.

    Returns:
        A `FitResult` of which all leaves lead with B; `result[b]` is one of them.

    Raises:
        TypeError: no key, or x is not numeric.
        ValueError: shapes, counts or names are wrong; never because of values in x or weights.

    Example:
        >>> import jax, jaxgmm as jg
        >>> key = jax.random.key(0)
        >>> centers = jax.numpy.tile(jax.numpy.array([[0.0, 0.0], [9.0, 9.0]]), (50, 1))
        >>> x = centers[None] + jax.random.normal(key, (3, 100, 2))
        >>> jg.fit_batch(key, x, 2).check().mixture.weights.round(3).tolist()
        [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    key = check_key(key)
    n_components = check_count("n_components", n_components, 1)
    structure = structure_named(covariance_type)
    settings = check_settings(max_iter, accelerate, adjoint, history, polish)
    fit_arrays = partial(
        _fit_arrays,
        key,
        n_components=n_components,
        n_init=check_count("n_init", n_init, 1),
        tol=tol,
        max_iter=max_iter,
        reg_covar=reg_covar,
        structure=structure,
        settings=settings,
    )
    if isinstance(x, (list, tuple)) and all(np.ndim(item) == 2 for item in x):
        return _fit_lists(fit_arrays, x, n_components, weights, log_prior, init)
    x, weights = check_batch(x, weights)
    n_models = len(x) if x.ndim == 3 else len(weights)
    return fit_arrays(np.arange(n_models), x, weights, log_prior, init)


def _fit_arrays(
    key: Array,
    model_ids: np.ndarray,
    x: Array,
    weights: Array,
    log_prior: Any,
    init: Any,
    *,
    n_components: int,
    n_init: int,
    tol: ArrayLike,
    max_iter: int,
    reg_covar: ArrayLike | None,
    structure: Structure,
    settings: Settings,
) -> FitResult:
    """`fit_batch` of arrays; `model_ids` (B,) are the numbers of the models among all."""
    n_models = model_ids.size
    n_components = check_n_components(n_components, x.shape[-2])
    given = None
    if isinstance(init, str):
        check_choice("init", init, STARTS)
    else:
        given, init, n_init = _check_given(init, x, n_models, n_components), "given", 1
        x, weights, given = in_common_dtype(x, weights, given)
    if log_prior is not None:
        log_prior = _check_prior(log_prior, x, n_models, n_components)
    options = (check_limits(tol, max_iter, x), check_reg_covar(reg_covar, x))
    static = {"n_components": n_components, "init": init, "n_init": n_init, "settings": settings}
    arguments = (key, model_ids, x, weights, log_prior, given, *options, structure)
    if is_concrete(*jax.tree.leaves(arguments)):
        own_prior = log_prior is not None and log_prior.ndim == 3
        of_data = (False, True, x.ndim == 3, weights.ndim == 2, own_prior)
        leading = (*of_data, True, False, False, False)
        size = x.size if x.ndim == 3 else weights.size
        result = fit_blocks(fit_models, arguments, leading, n_models, size, **static)
    else:
        result = fit_models(*arguments, None, **static)
    return with_places(result, max_iter)


def check_batch(x: Any, weights: Any) -> tuple[Array, Array]:
    """Data and weights of one dtype: at least one of them for each model.

    Raises:
        TypeError, ValueError: see `fit_batch`.
    """
    check_whole_rows("x", x)
    x = as_float_array("x", x)
    if weights is not None:
        weights = as_float_array("weights", weights)
    shared = x.ndim == 2 and weights is not None and weights.ndim == 2
    if x.ndim != 3 and not shared:
        raise ValueError(
            f"x must be (B, N, D), or (N, D) with weights (B, N), got shape {x.shape}; a single "
            "data set is for fit"
        )
    if 0 in x.shape:
        raise ValueError(f"x must hold at least one model, row and feature, got shape {x.shape}")
    if weights is None:
        return x, unit_weights(x)
    expected = [(len(weights), len(x))] if shared else [x.shape[:2], x.shape[1:2]]
    if weights.shape not in expected or 0 in weights.shape:
        raise ValueError(
            f"weights must be (B, N), one for each row of each model, got shape {weights.shape} "
            f"for x {x.shape}"
        )
    return in_common_dtype(x, weights)


def _check_prior(log_prior: Any, x: Array, n_models: int, n_components: int) -> Array:
    """What is added to the logits of each model, or of all.

    Raises:
        ValueError: of another shape.
    """
    check_whole_rows("log_prior", log_prior)
    array = as_float_array("log_prior", log_prior).astype(x.dtype)
    of_all = (x.shape[-2], n_components)
    if array.shape not in (of_all, (n_models, *of_all)):
        raise ValueError(f"log_prior must be {(n_models, *of_all)}, or {of_all}, got {array.shape}")
    return array


def _check_given(init: Any, x: Array, n_models: int, n_components: int) -> Any:
    """Starts that are given for each model: mixtures, or responsibilities.

    Raises:
        ValueError: of other shapes.
    """
    if isinstance(init, GaussianMixture):
        expected: tuple[int, ...] = (n_models, n_components, x.shape[-1])
        scale = jax.tree.leaves(init.covariance)[0].shape
        own = scale_shape(init.covariance, x.shape[-1])
        good = init.means.shape == expected and init.log_weights.shape == expected[:2]
        if not good or scale not in ((*expected[:2], *own), (n_models, 1, *own)):
            raise ValueError(
                f"init must be a mixture with means {expected}, got {init.means.shape}, and scales "
                f"{(*expected[:2], *own)}, got {scale}; all its leaves lead with B"
            )
        return init
    responsibilities = as_float_array("responsibilities", init)
    expected = (n_models, x.shape[-2], n_components)
    if responsibilities.shape != expected:
        raise ValueError(f"responsibilities must be {expected}, got {responsibilities.shape}")
    return responsibilities


def _fit_lists(
    fit_arrays: Callable[..., FitResult],
    x: Sequence[ArrayLike],
    n_components: int,
    weights: Any,
    log_prior: Any,
    init: Any,
) -> FitResult:
    """`fit_batch` of a list of data sets: those of about the same length are one array."""
    n_models = len(x)
    if n_models == 0:
        raise ValueError("x must hold at least one data set, got an empty list")
    given = prior = None
    with made_on_host():
        data = _arrays_of_each("x", x, n_models)
        if not isinstance(init, (str, GaussianMixture)):
            given = _arrays_of_each("init", init, n_models)
        if log_prior is not None:
            prior = _arrays_of_each("log_prior", log_prior, n_models)
        if weights is None:
            own = [unit_weights(item) for item in data]
        else:
            own = _arrays_of_each("weights", weights, n_models)
    if isinstance(init, GaussianMixture):
        _check_given(init, data[0], n_models, n_components)
    _check_lists(data, own, {"init": given, "log_prior": prior}, n_components)
    sizes = np.array([padded_rows(item.shape[0]) for item in data])
    results, order = [], []
    for size in np.unique(sizes):
        numbers = np.flatnonzero(sizes == size)

        def packed(arrays: Sequence[Any], size: int = size, numbers: np.ndarray = numbers) -> Array:
            filled = [with_rows(arrays[b], size) for b in numbers]
            if not is_concrete(*filled) or not on_host(*filled):
                return jnp.stack(filled)
            return from_host(np.stack(filled), chosen_device(*filled))

        start = init if given is None else packed(given)
        if isinstance(init, GaussianMixture):
            start = jax.tree.map(lambda leaf, numbers=numbers: leaf[numbers], init)
        rows, of_rows = in_common_dtype(packed(data), packed(own))
        own_prior = None if prior is None else packed(prior)
        results.append(fit_arrays(numbers, rows, of_rows, own_prior, start))
        order.append(numbers)
    back = np.argsort(np.concatenate(order))

    def in_order(*leaves: Array) -> Array:
        if not is_concrete(*leaves) or not on_host(*leaves):
            return jnp.concatenate(leaves)[back]
        return from_host(np.concatenate(leaves)[back], chosen_device(*leaves))

    return jax.tree.map(in_order, *results)


def _arrays_of_each(name: str, arrays: Any, n_models: int) -> list[Array]:
    """One array for each data set.

    Raises:
        TypeError: not a sequence of numeric arrays.
        ValueError: more or fewer of them.
    """
    if not hasattr(arrays, "__len__"):
        raise TypeError(f"{name} must hold an array for each of x, got {arrays!r}")
    if len(arrays) != n_models:
        raise ValueError(
            f"{name} must hold {n_models} arrays, one for each of x, got {len(arrays)}"
        )
    return [as_float_array(f"{name}[{b}]", item) for b, item in enumerate(arrays)]


def _check_lists(
    data: list[Array],
    weights: list[Array],
    of_components: dict[str, list[Array] | None],
    n_components: int,
) -> None:
    """ValueError where weights, or what there is of rows and components, don't fit the data."""
    for b, (item, of_rows) in enumerate(zip(data, weights, strict=True)):
        if 0 in item.shape:
            raise ValueError(f"x[{b}] must hold at least one row and feature, got {item.shape}")
        if item.shape[0] < n_components:
            raise ValueError(
                f"n_components={n_components} needs at least as many rows, x[{b}] has "
                f"{item.shape[0]}; use fewer components"
            )
        for name, arrays in of_components.items():
            if arrays is not None and arrays[b].shape != (item.shape[0], n_components):
                raise ValueError(
                    f"{name}[{b}] must be {(item.shape[0], n_components)}, got {arrays[b].shape}"
                )
        if item.shape[1] != data[0].shape[1] or of_rows.shape != item.shape[:1]:
            raise ValueError(
                f"x[{b}] must be (N, {data[0].shape[1]}) with weights (N,), got {item.shape} and "
                f"{of_rows.shape}"
            )
