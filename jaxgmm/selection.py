"""How many components, and which covariance type: a sweep of fits and its table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.criteria import criteria_given, free_parameters
from jaxgmm.fitting import fit_active
from jaxgmm.initialization import STARTS
from jaxgmm.loop import check_reg_covar, check_settings, check_tol
from jaxgmm.padding import with_padding
from jaxgmm.results import FitResult, Status
from jaxgmm.structures import STRUCTURES
from jaxgmm.validation import check_choice, check_count, check_data, check_key, check_n_components

CRITERIA = ("aic", "bic", "icl")
PADDING_IS_FREE = 1_000_000

ROW = np.dtype(
    [
        ("n_components", np.int64),
        ("covariance_type", "U16"),
        ("log_likelihood", np.float64),
        ("n_parameters", np.int64),
        ("aic", np.float64),
        ("bic", np.float64),
        ("icl", np.float64),
        ("n_iter", np.int64),
        ("status", np.int64),
    ]
)


@dataclass(frozen=True, eq=False)
class Selection:
    """The outcome of a sweep.

    Attributes:
        best: the winner: lowest criterion among the fits without degenerate components and with
            finite numbers, or among all where there is none.
        table: structured array, a row for each fit in the order of the sweep, with n_components,
            covariance_type, log_likelihood, n_parameters, aic, bic, icl, n_iter and status.
        criterion: by which the winner was chosen.
        at_edge: whether the winner has the smallest or largest number of components of a sweep
            over several, other than 1, so that better ones may lie outside.
    """

    best: FitResult
    table: np.ndarray
    criterion: str
    at_edge: bool

    def ranked(self) -> np.ndarray:
        """The table with the best row first; unhealthy fits stand behind healthy ones."""
        return self.table[ranking(self.table, self.criterion)]


def ranking(table: np.ndarray, criterion: str) -> np.ndarray:
    """Row numbers, best first: healthy fits before unhealthy ones, then by the criterion."""
    unhealthy = np.isin(table["status"], (Status.NON_FINITE, Status.DEGENERATE))
    values = np.where(np.isnan(table[criterion]), np.inf, table[criterion])
    return np.lexsort((values, unhealthy))


def select(
    key: Array,
    x: ArrayLike,
    n_components: Iterable[int],
    covariance_type: str | Iterable[str] = tuple(STRUCTURES),
    *,
    criterion: str = "bic",
    weights: ArrayLike | None = None,
    init: str = "k-means++",
    n_init: int = 10,
    max_iter: int = 1000,
    tol: ArrayLike = 1e-7,
    reg_covar: ArrayLike | None = None,
    callback: Callable[[np.ndarray], None] | None = None,
) -> Selection:
    """Fits for each number of components and covariance type, and the best of them.

    Args:
        key: a JAX PRNG key; each number of components has its own, which all types share.
        x: (N, D).
        n_components: numbers of components to try, for example `range(1, 10)`.
        covariance_type: names to try; all six by default.
        criterion: "bic", "aic" or "icl"; lower is better.
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
        TypeError, ValueError: as for `fit`, before anything is compiled.

    Example:
        >>> import jax, jaxgmm as jg
        >>> key = jax.random.key(0)
        >>> centers = jax.numpy.tile(jax.numpy.array([[0.0, 0.0], [9.0, 9.0]]), (100, 1))
        >>> x = centers + jax.random.normal(key, (200, 2))
        >>> jg.select(key, x, [1, 2, 3], ["spherical"], n_init=2).best.mixture.n_components
        2
    """
    key = check_key(key)
    x, weights = check_data(x, weights)
    counts, types = _checked_sweep(n_components, covariance_type, x.shape[0])
    check_choice("criterion", criterion, CRITERIA)
    check_choice("init", init, STARTS)
    check_count("n_init", n_init, 1)

    x, weights = with_padding(x, weights, key)
    numbers = (check_tol(tol, x), check_reg_covar(reg_covar, x))
    results, rows = [], []
    for count in counts:
        active = np.arange(padded_size(count, max(counts), x)) < count
        for name in types:
            settings = check_settings(name, max_iter, None, "implicit", history=False)
            padded = fit_active(
                jax.random.fold_in(key, count),
                x,
                weights,
                None,
                active,
                *numbers,
                init,
                n_init,
                settings,
            )
            results.append(without_padding(padded, count))
            rows.append(table_row(padded, x, weights, count, name))
            if callback is not None:
                callback(rows[-1])
    table = np.array(rows, ROW)
    best = int(ranking(table, criterion)[0])
    winner = int(table["n_components"][best])
    edges = {min(counts), max(counts)} - {1} if len(set(counts)) > 1 else set()
    return Selection(results[best], table, criterion, winner in edges)


def padded_size(n_components: int, largest: int, x: Array) -> int:
    """The number of components that a fit is compiled for.

    Compiling takes seconds: small data are fitted with the largest number of the sweep, of which
    some have no weight, and large data with the next power of two.
    """
    if x.size * largest <= PADDING_IS_FREE:
        return largest
    return min(largest, 1 << (n_components - 1).bit_length())


def without_padding(result: FitResult, n_components: int) -> FitResult:
    """A result of its active components only."""
    padded = result.degenerate.size

    def cut(leaf: Array) -> Array:
        return jnp.asarray(np.asarray(leaf)[:n_components]) if leaf.shape[0] == padded else leaf

    mixture = jax.tree.map(cut, result.mixture)
    return replace(result, mixture=mixture, degenerate=cut(result.degenerate))


def table_row(
    padded: FitResult, x: Array, weights: Array, n_components: int, covariance_type: str
) -> np.ndarray:
    """One row of the table."""
    parameters = free_parameters(n_components, x.shape[1], covariance_type)
    values = criteria_given(padded.mixture, x, weights, parameters)
    row = (
        n_components,
        covariance_type,
        float(padded.log_likelihood),
        parameters,
        *(float(values[name]) for name in CRITERIA),
        int(padded.n_iter),
        int(padded.status),
    )
    return np.array(row, ROW)


def _checked_sweep(
    n_components: int | Iterable[int], covariance_type: str | Iterable[str], n_rows: int
) -> tuple[list[int], list[str]]:
    """Numbers of components and covariance types, known to be good."""
    given = n_components if isinstance(n_components, Iterable) else [n_components]
    counts = [check_n_components(count, n_rows) for count in given]
    types = [covariance_type] if isinstance(covariance_type, str) else list(covariance_type)
    for name in types:
        check_choice("covariance_type", name, STRUCTURES)
    if not counts or not types:
        raise ValueError("n_components and covariance_type must not be empty")
    return counts, types
