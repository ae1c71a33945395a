"""The table of a sweep, and its winner."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgmm.arrays.printing import html_table, text_table
from jaxgmm.execution.tasks import at
from jaxgmm.fits.criteria import criteria_of, free_parameters
from jaxgmm.fits.sweeps import Candidate, Fits
from jaxgmm.solvers.results import FitResult, Status

# The criteria; the winner has the lowest value, times this sign.
CRITERIA = {"bic": 1, "aic": 1, "icl": 1, "cv": -1}

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
ROW_WITH_FOLDS = np.dtype([*ROW.descr, ("cv", np.float64), ("cv_standard_error", np.float64)])


# Rows of a table that are printed, at most.
MOST_ROWS = 60


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """The outcome of a sweep.

    Attributes:
        best: the winner by the criterion among the fits without degenerate components and with
            finite numbers, or among all where there is none.
        table: structured array, a row for each fit in the order of the sweep, with n_components,
            covariance_type, log_likelihood, n_parameters, aic, bic, icl, n_iter and status; and
            with cv and cv_standard_error, where that is the criterion.
        criterion: by which the winner was chosen.
        at_edge: whether the winner has the smallest or largest number of components of a sweep
            over several, other than 1, so that better ones may lie outside.
    """

    best: FitResult
    table: np.ndarray
    criterion: str
    at_edge: bool

    def __repr__(self) -> str:
        """The winner, and the table with a mark on it; of a long one the best rows alone."""
        cells, winner = self._cells()
        marks = ["", *("*" if number == winner else "" for number in range(len(cells) - 1))]
        lines = text_table([[*row, mark] for row, mark in zip(cells, marks, strict=True)])
        return "\n".join([self._in_words(), *lines])

    def _repr_html_(self) -> str:
        """`repr` for notebooks."""
        cells, winner = self._cells()
        return html_table(self._in_words(), cells, winner)

    def ranked(self) -> np.ndarray:
        """The table with the best row first; unhealthy fits stand behind healthy ones."""
        return self.table[ranking(self.table, self.criterion)]

    def to_pandas(self) -> Any:
        """The table as a `pandas.DataFrame`, in the order of the sweep, with statuses by name.

        Raises:
            ImportError: pandas isn't there.
        """
        import pandas

        frame = pandas.DataFrame.from_records(self.table)
        return frame.assign(status=[str(Status(value)) for value in self.table["status"]])

    def _in_words(self) -> str:
        best = self.table[self._winner()]
        components = "component" if best["n_components"] == 1 else "components"
        what = f"{best['n_components']} {best['covariance_type']} {components}"
        edge = ", at the edge of the sweep" if self.at_edge else ""
        name = self.criterion
        return f"Selection(best of {len(self.table)} by {name}: {what}, {best[name]:.7g}{edge})"

    def _winner(self) -> int:
        """The number of the winner's row: of all with as many components the one that is meant."""
        apart = np.abs(self.table["log_likelihood"] - float(self.best.log_likelihood))
        own_size = self.table["n_components"] == self.best.mixture.n_components
        return int(np.argmin(np.where(own_size & ~np.isnan(apart), apart, np.inf)))

    def _cells(self) -> tuple[list[list[str]], int]:
        """A header and rows, and the winner's number among them."""
        numbers = np.arange(len(self.table))
        if len(numbers) > MOST_ROWS:
            numbers = ranking(self.table, self.criterion)[:MOST_ROWS]
        names = ["n_components", "covariance_type", "log_likelihood", "n_parameters"]
        names += [self.criterion, *(["cv_standard_error"] * (self.criterion == "cv"))]
        names += ["n_iter", "status"]

        def cell(row: np.void, name: str) -> str:
            if name == "status":
                return str(Status(row[name]))
            return f"{row[name]:.7g}" if self.table.dtype[name].kind == "f" else str(row[name])

        rows = [[cell(self.table[number], name) for name in names] for number in numbers]
        found = np.flatnonzero(numbers == self._winner())
        return [names, *rows], int(found[0]) if found.size else -1


def ranking(table: np.ndarray, criterion: str) -> np.ndarray:
    """Row numbers, best first: healthy fits before unhealthy ones, then by the criterion."""
    values = CRITERIA[criterion] * table[criterion]
    values = np.where(np.isnan(values), np.inf, values)
    return np.lexsort((values, ~is_healthy(table)))


def is_healthy(table: np.ndarray) -> np.ndarray:
    """Mask of the rows whose fits are finite and without degenerate components."""
    return ~np.isin(table["status"], (Status.NON_FINITE, Status.DEGENERATE))


def winning_row(table: np.ndarray, criterion: str, one_standard_error: bool) -> int:
    """The number of the best row, or of the simplest that is within its standard error."""
    best = ranking(table, criterion)[0]
    if not one_standard_error:
        return int(best)
    near = table["cv"] >= table["cv"][best] - table["cv_standard_error"][best]
    near &= is_healthy(table) == is_healthy(table)[best]
    near[best] = True
    return int(np.argmin(np.where(near, table["n_parameters"], np.inf)))


def at_edge(table: np.ndarray, winner: int) -> bool:
    """Whether a row is at the end of a sweep over several numbers of components, other than 1."""
    counts = table["n_components"]
    edges = {int(counts.min()), int(counts.max())} - {1}
    return bool(counts.min() < counts.max()) and int(counts[winner]) in edges


def table_row(fits: Fits, candidate: Candidate, n_rows: float, unit: float) -> np.ndarray:
    """One row of the table; `n_rows` is the sum of the fits' weights, which are in a unit."""
    result: FitResult = at(fits.results, 0)
    n_features = result.mixture.means.shape[1]
    parameters = free_parameters(candidate.n_components, n_features, candidate.covariance_type)
    log_likelihood = unit * float(result.log_likelihood)
    certainty = unit * float(fits.log_map_responsibility[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_n_rows = float(np.log(n_rows) + np.log(unit))
    values = criteria_of(log_likelihood, certainty, parameters, log_n_rows)
    held_out = fits.held_out[1:].astype(float)
    row = (
        candidate.n_components,
        candidate.covariance_type,
        log_likelihood,
        parameters,
        values["aic"],
        values["bic"],
        values["icl"],
        int(result.n_iter),
        int(result.status),
    )
    if not held_out.size:
        return np.array(row, ROW)
    error = held_out.std(ddof=1) / np.sqrt(held_out.size)
    return np.array((*row, held_out.mean(), error), ROW_WITH_FOLDS)
