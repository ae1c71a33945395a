"""Reports in words and tables for the terminal."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxgmm.arrays.printing import text_table
from jaxgmm.command_line.messages import counted, listed, printable, shown
from jaxgmm.covariances.storage import (
    is_diagonal,
    variances,
)
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.fits.criteria import criteria_of, n_parameters
from jaxgmm.fits.ranking import Selection
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.solvers.results import FitResult, Status

LARGEST_MATRIX = 8
MOST_FEATURES = 50
MEANING = {
    "bic": "lower is better",
    "aic": "lower is better",
    "icl": "lower is better",
    "cv": "log-likelihood of a row that was held out, higher is better",
}
MARKS = {
    Status.CONVERGED: (" ", ""),
    Status.MAX_ITER: ("~", "stopped before it converged"),
    Status.NON_FINITE: ("!", "met NaN or infinity, and ranks behind the healthy ones"),
    Status.DEGENERATE: ("*", "has degenerate components, and ranks behind the healthy ones"),
}


def report(selection: Selection, names: Sequence[str], n_rows: int) -> str:
    """The report of a sweep, in words and tables.

    Args:
        selection: its outcome.
        names: D labels of the columns.
        n_rows: N.
    """
    best, table = selection.ranked()[0], selection.table
    criterion, name = selection.criterion, selection.criterion.upper()
    lines = ["", f"{name}, {MEANING[criterion]}", *_criterion_table(table, criterion)]
    lines += ["", f"Best by {name}"]
    for place, row in enumerate(selection.ranked()[:3], 1):
        lines.append(f"  {place}. {_model_name(row)}: {_value(row, criterion)}")
    largest = int(table["n_components"].max())
    if selection.at_edge and best["n_components"] < n_rows:
        twice = 2 * largest if best["n_components"] == largest else largest
        wider = f"--components 1:{min(twice, n_rows)}"
        lines.append(f"The best is at the edge of the sweep: {wider} may find a better one.")
    lines += ["", _model_name(best)]
    lines += text_table(
        [
            ["  log-likelihood", f"{best['log_likelihood']:.3f}"],
            ["  free parameters", str(best["n_parameters"])],
            *([f"  {name.upper()}", f"{best[name]:.3f}"] for name in ("bic", "aic", "icl")),
        ]
    )
    parameters = _parameters(selection.best.mixture, names, MOST_FEATURES)
    return "\n".join([*lines, f"  {_outcome(selection.best)}", "", *parameters])


def size_report(source: str | Path, n_rows: int, names: Sequence[str]) -> str:
    """A line on the data: where they are from, N, and D names of columns."""
    size = f"{counted(n_rows, 'row')}, {counted(len(names), 'column')}"
    return f"{printable(str(source))}: {size} ({listed(names)})"


def score_report(log_likelihood: float, n_rows: int, n_parameters: int) -> str:
    """The report on how well a mixture describes data.

    Args:
        log_likelihood: total of the rows, in nats.
        n_rows: N.
        n_parameters: free ones of the mixture.
    """
    criteria = criteria_of(log_likelihood, 0.0, float(n_parameters), math.log(n_rows))
    cells = [
        ["  log-likelihood", f"{log_likelihood:.3f}"],
        ["  mean per row", f"{log_likelihood / n_rows:.6f}"],
        ["  free parameters", str(n_parameters)],
        *([f"  {name.upper()}", f"{criteria[name]:.3f}"] for name in ("aic", "bic")),
    ]
    return "\n".join(text_table(cells, even=True))


def model_report(mixture: GaussianMixture, names: Sequence[str]) -> str:
    """The report on a mixture and its parameters.

    Args:
        mixture: K components.
        names: D labels of the features.
    """
    cells = [
        ["covariance type", mixture.covariance_type],
        ["components", str(mixture.n_components)],
        ["features", str(mixture.n_features)],
        ["free parameters", str(n_parameters(mixture))],
        ["dtype", str(mixture.means.dtype)],
    ]
    return "\n".join([*text_table(cells, even=True), "", *_parameters(mixture, names, len(names))])


def _criterion_table(table: np.ndarray, criterion: str) -> list[str]:
    """A line for each number of components, a column for each covariance type, and footnotes."""
    types = list(dict.fromkeys(table["covariance_type"].tolist()))
    cells = [["K", *(f"{name} " for name in types)]]
    marked = {
        (int(row["n_components"]), str(row["covariance_type"])): _value(row, criterion)
        + MARKS[row["status"]][0]
        for row in table
    }
    for count in np.unique(table["n_components"]).tolist():
        cells.append([str(count), *(marked.get((count, name), "- ") for name in types)])
    met = [MARKS[status] for status in Status if status and status in table["status"]]
    return text_table(cells, even=True) + [f"{mark} {meaning}" for mark, meaning in met]


def _parameters(mixture: GaussianMixture, names: Sequence[str], most: int) -> list[str]:
    """Weights, means and covariances, features from top to bottom, components left to right.

    Args:
        mixture: K components.
        names: D labels of the features.
        most: of so many features, the first ones.
    """
    means = np.asarray(mixture.means)
    labels = ["  " + shown(name) for name in names[:most]]
    matrices = not is_diagonal(mixture.covariance) and 1 < len(names) <= LARGEST_MATRIX
    cells = [
        ["", *(f"component {k + 1}" for k in range(mixture.n_components))],
        ["weight", *_figures(np.asarray(mixture.weights))],
        ["mean"],
        *([label, *_figures(means[:, i])] for i, label in enumerate(labels)),
    ]
    if not matrices:
        diagonals = np.asarray(variances(mixture.covariance, mixture.n_features))
        of_each = np.broadcast_to(diagonals, means.shape)
        cells.append(["variance"])
        cells += [[label, *_figures(of_each[:, i])] for i, label in enumerate(labels)]
        if len(names) > most:
            cells += [[], [f"and {len(names) - most} more features, which jaxgmm show prints"]]
        return text_table(cells, even=True)
    covariances = np.asarray(mixture.covariances)
    shared = STRUCTURES[mixture.covariance_type].shared
    for k, matrix in enumerate(covariances[:1] if shared else covariances):
        whose = "every component" if shared else f"component {k + 1}"
        cells += [[], [f"covariance of {whose}"]]
        cells += [[label, *_figures(row)] for label, row in zip(labels, matrix, strict=True)]
    return text_table(cells, even=True)


def _outcome(result: FitResult) -> str:
    """The status of the fit in words, with components counted from 1 as in the report."""
    after = f"after {counted(int(result.n_iter), 'iteration')}"
    gain = f"an estimated {float(result.remaining_gain):.1g} per sample still to gain"
    which = ", ".join(str(k + 1) for k in np.flatnonzero(np.asarray(result.degenerate)))
    return {
        Status.CONVERGED: f"converged {after}, with {gain}",
        Status.MAX_ITER: f"stopped {after}, with {gain}",
        Status.NON_FINITE: f"met NaN or infinity {after}; these are the last finite parameters",
        Status.DEGENERATE: f"degenerate components: {which} (empty, without spread in some "
        "direction, or twins); try fewer components, a simpler covariance type or more restarts",
    }[Status(int(result.status))]


def _value(row: np.void, criterion: str) -> str:
    return f"{row[criterion]:.4f}" if criterion == "cv" else f"{row[criterion]:.2f}"


def _model_name(row: np.void) -> str:
    return f"{row['covariance_type']}, {counted(int(row['n_components']), 'component')}"


def _figures(values: np.ndarray) -> list[str]:
    return [f"{value:.6g}" for value in values.tolist()]
