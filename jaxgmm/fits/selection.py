"""Model selection: a sweep over numbers of components and covariance types."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.numerics import in_own_unit
from jaxgmm.arrays.padding import with_padding
from jaxgmm.arrays.placement import is_split
from jaxgmm.arrays.validation import (
    check_choice,
    check_count,
    check_data,
    check_flag,
    check_key,
    check_known,
    check_n_components,
)
from jaxgmm.covariances.structures import SWEPT, structure_named
from jaxgmm.execution.tasks import at
from jaxgmm.fits.batching import check_batch
from jaxgmm.fits.initialization import STARTS
from jaxgmm.fits.ranking import (
    CRITERIA,
    ROW,
    ROW_WITH_FOLDS,
    Selection,
    at_edge,
    table_row,
    winning_row,
)
from jaxgmm.fits.redundancy import warn_of_redundancy
from jaxgmm.fits.sweeps import Candidate, Fits, fit_group, groups_of, kept_in_folds
from jaxgmm.solvers.results import FitResult, in_unit_of_weights
from jaxgmm.solvers.settings import Limits, check_limits, check_reg_covar
from jaxgmm.steps.maximization import stored_as


def select(
    key: Array,
    x: ArrayLike,
    n_components: int | Iterable[int],
    covariance_type: str | Iterable[str] = SWEPT,
    *,
    criterion: str = "bic",
    n_folds: int = 5,
    one_standard_error: bool = False,
    weights: ArrayLike | None = None,
    init: str = "k-means++",
    n_init: int = 10,
    max_iter: int = 1000,
    tol: ArrayLike = 1e-7,
    reg_covar: ArrayLike | None = None,
    callback: Callable[[np.ndarray], None] | None = None,
) -> Selection:
    """Fits for each number of components and covariance type, and the best of them.

    The fits, with their restarts and folds, are few programs: small data, where compiling would
    take longer than fitting, are fitted with all numbers of components, and tiny ones with all
    covariance types, by one.

    Args:
        key: a JAX PRNG key; each number of components has its own, which all types share.
        x: (N, D), whose rows may be spread over devices, see `em`.
        n_components: numbers of components to try, for example `range(1, 10)`.
        covariance_type: names to try, see `fit`; the first six by default.
        criterion: "bic", "aic" or "icl", of which lower is better; or "cv": log-likelihood per
            unit of weight of rows that were held out of the fit, averaged over folds, of which
            higher is better.
        n_folds: of "cv", drawn at random, at least 2.
        one_standard_error: whether the winner by "cv" is the fit with fewest parameters whose
            value is within one standard error of the highest.
        weights: (N,) sample weights.
        init: see `fit`.
        n_init: restarts for each fit.
        max_iter: see `fit`.
        tol: see `fit`.
        reg_covar: see `fit`.
        callback: called with each row of the table as soon as it is known.

    Returns:
        A `Selection`.

    Raises:
        TypeError, ValueError: as for `fit`, before anything is compiled; inside of a
            transformation, as a sweep looks at the results of its fits.

    Warns:
        UserWarning: all fits of a covariance type are degenerate because of features that are
            constant, or follow from others; not of rows that are spread over devices.

    Example:
        >>> import jax, jaxgmm as jg
        >>> key = jax.random.key(0)
        >>> centers = jax.numpy.tile(jax.numpy.array([[0.0, 0.0], [9.0, 9.0]]), (100, 1))
        >>> x = centers + jax.random.normal(key, (200, 2))
        >>> jg.select(key, x, [1, 2, 3], ["spherical"], n_init=2).best.mixture.n_components
        2
    """
    check_known("select", (key, x, weights, tol, reg_covar, _anything()), "; fit can be traced")
    key = check_key(key)
    x, weights = check_data(x, weights)
    candidates = _checked_sweep(n_components, covariance_type, x.shape[0])
    of_rows = np.ones(x.shape[0]) if weights is None else np.asarray(weights)
    n_folds = _checked_folds(criterion, n_folds, one_standard_error, of_rows)
    choices = _checked_choices(x, tol, reg_covar, init, n_init, max_iter)
    kept = kept_in_folds(key, of_rows, n_folds)
    unpadded = x
    x, weights, _ = with_padding(x, weights, key)
    weights, unit = in_own_unit(weights)
    kept = np.pad(kept, [(0, 0), (0, x.shape[0] - kept.shape[1])])
    n_fits, total = len(kept), float(np.sum(np.asarray(weights), dtype=float))

    fits: dict[int, Fits] = {}
    table = np.zeros(len(candidates), ROW_WITH_FOLDS if n_folds else ROW)
    for group in groups_of(candidates, x.shape):
        models = [candidates[number] for number in group.numbers for _ in range(n_fits)]
        counts = np.array([model.n_components for model in models])
        keys = jax.vmap(partial(jax.random.fold_in, key))(counts)
        seen = np.tile(kept, (len(group.numbers), 1)) if n_folds else None
        found = fit_group(keys, x, weights, seen, models, group, *choices)
        for place, number in enumerate(group.numbers):
            own = slice(place * n_fits, (place + 1) * n_fits)
            fits[number] = jax.tree.map(lambda leaf, own=own: leaf[own], found)
            table[number] = table_row(fits[number], candidates[number], total, float(unit))
            if callback is not None:
                callback(table[number])
    if not is_split(unpadded, 0):
        warn_of_redundancy(table, unpadded, of_rows)
    return selection_of(table, fits, candidates, criterion, one_standard_error, unit)


def select_batch(
    key: Array,
    x: ArrayLike,
    n_components: int | Iterable[int],
    covariance_type: str | Iterable[str] = SWEPT,
    *,
    criterion: str = "bic",
    n_folds: int = 5,
    one_standard_error: bool = False,
    weights: ArrayLike | None = None,
    init: str = "k-means++",
    n_init: int = 10,
    max_iter: int = 1000,
    tol: ArrayLike = 1e-7,
    reg_covar: ArrayLike | None = None,
) -> list[Selection]:
    """`select` for each of many data sets, of which each row of the sweep is one batch of fits.

    Args:
        key: a JAX PRNG key; data set b uses `jax.random.fold_in(key, b)`.
        x: (B, N, D), which may be spread over devices, see `fit_batch`. NaN and infinity lead to
            `Status.NON_FINITE`.
        n_components: see `select`.
        covariance_type: likewise.
        criterion: likewise.
        n_folds: likewise; the folds of each data set are drawn for it.
        one_standard_error: see `select`.
        weights: (B, N) sample weights, or (N,) for all; 0 removes a row, which may then hold
            anything.
        init: see `fit`.
        n_init: restarts for each fit.
        max_iter: see `fit`.
        tol: see `fit`.
        reg_covar: see `fit`.

    Returns:
        B selections.

    Raises:
        TypeError, ValueError: as for `fit_batch`, before anything is compiled; inside of a
            transformation, see `select`.
    """
    traced = (key, x, weights, tol, reg_covar, _anything())
    check_known("select_batch", traced, "; fit_batch can be traced")
    key = check_key(key)
    x, weights = check_batch(x, weights)
    if x.ndim != 3:
        raise ValueError(f"x must be (B, N, D), got shape {x.shape}")
    n_models, n_rows, _ = x.shape
    candidates = _checked_sweep(n_components, covariance_type, n_rows)
    weights, unit = in_own_unit(weights)
    of_models = np.broadcast_to(np.asarray(weights), (n_models, n_rows))
    units = np.broadcast_to(np.asarray(unit), n_models)
    n_folds = _checked_folds(criterion, n_folds, one_standard_error, of_models)
    choices = _checked_choices(x, tol, reg_covar, init, n_init, max_iter)
    keys = jax.vmap(partial(jax.random.fold_in, key))(np.arange(n_models))
    kept = _kept_of_each(keys, of_models, n_folds)
    totals = np.sum(of_models, axis=1, dtype=float)

    fits: dict[int, Fits] = {}
    for group in groups_of(candidates, x.shape):
        for number in group.numbers:
            models = [candidates[number]] * n_models
            counts = np.full(n_models, candidates[number].n_components)
            own_keys = jax.vmap(jax.random.fold_in)(keys, counts)
            parts = [
                fit_group(own_keys, x, weights, seen, models, group, *choices) for seen in kept
            ]
            fits[number] = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *parts)

    def selection(model: int) -> Selection:
        own = {number: jax.tree.map(lambda leaf: leaf[model], fit) for number, fit in fits.items()}
        numbers = (totals[model], float(units[model]))
        rows = [table_row(own[i], candidate, *numbers) for i, candidate in enumerate(candidates)]
        table = np.array(rows, rows[0].dtype)
        return selection_of(table, own, candidates, criterion, one_standard_error, units[model])

    return [selection(model) for model in range(n_models)]


def _anything() -> Array:
    """A number that is traced where everything is, that of known values included."""
    return jnp.zeros(()) + 0


def _kept_of_each(keys: Array, weights: np.ndarray, n_folds: int) -> list[np.ndarray | None]:
    """For each fit to a data set, which rows of each (B, N) it sees: None for all."""
    if not n_folds:
        return [None]
    folds = [kept_in_folds(*own, n_folds) for own in zip(keys, weights, strict=True)]
    return [*np.stack(folds, axis=1)]


def selection_of(
    table: np.ndarray,
    fits: dict[int, Fits],
    candidates: list[Candidate],
    criterion: str,
    one_standard_error: bool,
    unit: Any,
) -> Selection:
    """The outcome of a sweep of which all rows are known; `unit` is that of the fits' weights."""
    winner = winning_row(table, criterion, one_standard_error)
    best = in_unit_of_weights(result_of(fits[winner], candidates[winner]), unit)
    return Selection(best, table, criterion, at_edge(table, winner))


def result_of(fits: Fits, candidate: Candidate) -> FitResult:
    """The fit to all rows: its own components only, stored as its type is."""
    result: FitResult = at(fits.results, 0)
    n_components = candidate.n_components
    padded = result.degenerate.size

    def cut(leaf: Array) -> Array:
        owned = leaf.ndim > 0 and leaf.shape[0] == padded
        return jnp.asarray(leaf[:n_components] if owned else leaf)

    result = jax.tree.map(cut, result)
    return replace(
        result, mixture=stored_as(structure_named(candidate.covariance_type), result.mixture)
    )


def _checked_sweep(
    n_components: int | Iterable[int], covariance_type: str | Iterable[str], n_rows: int
) -> list[Candidate]:
    """All rows of the table, known to be good."""
    given = n_components if isinstance(n_components, Iterable) else [n_components]
    counts = [check_n_components(count, n_rows) for count in given]
    types = [covariance_type] if isinstance(covariance_type, str) else list(covariance_type)
    types = list(dict.fromkeys(structure_named(name).name for name in types))
    if not counts or not types:
        raise ValueError("n_components and covariance_type must not be empty")
    return [Candidate(count, name) for count in counts for name in types]


def _checked_folds(
    criterion: str, n_folds: int, one_standard_error: bool, weights: np.ndarray
) -> int:
    """The number of folds of rows with weights (..., N), 0 where nothing is to be held out."""
    check_flag("one_standard_error", one_standard_error)
    if check_choice("criterion", criterion, CRITERIA) == "cv":
        n_folds = check_count("n_folds", n_folds, 2)
        n_rows = int(np.sum(weights > 0, axis=-1).min())
        if n_folds > n_rows:
            raise ValueError(f"n_folds={n_folds} needs as many rows with weight, x has {n_rows}")
        return n_folds
    if one_standard_error:
        raise ValueError(f"one_standard_error is a rule of criterion='cv', not {criterion!r}")
    return 0


def _checked_choices(
    x: Array, tol: ArrayLike, reg_covar: ArrayLike | None, init: str, n_init: int, max_iter: int
) -> tuple[tuple[Limits, Array], str, int]:
    """The last arguments of `fit_group`, known to be good, which are the same for all rows."""
    return (
        (check_limits(tol, max_iter, x), check_reg_covar(reg_covar, x)),
        check_choice("init", init, STARTS),
        check_count("n_init", n_init, 1),
    )
