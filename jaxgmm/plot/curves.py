"""Curves: the criterion of a sweep, the way of a fit, and regression."""

from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from jaxgmm.arrays.validation import check_count, check_known, check_mixture, check_number
from jaxgmm.fits.ranking import Selection, is_healthy
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.operations.algebra import marginal, regress
from jaxgmm.plot.components import components_of
from jaxgmm.plot.drawing import (
    GRID_POINTS,
    as_rows,
    axes_or_current,
    box_around,
    color,
    extent,
    label,
    show_rows,
)
from jaxgmm.solvers.results import FitResult


def criterion(selection: Selection, ax: Axes | None = None) -> Axes:
    """The criterion of a sweep by number of components, a line for each covariance type.

    Unhealthy fits are left out, the winner has a ring, and held-out log-likelihoods have bars of
    one standard error.

    Args:
        selection: of `select`.
        ax: where to draw; by default the current axes.

    Returns:
        The axes.
    """
    ax = axes_or_current(ax)
    table, name = selection.table, selection.criterion
    for covariance_type in dict.fromkeys(table["covariance_type"].tolist()):
        rows = table[(table["covariance_type"] == covariance_type) & is_healthy(table)]
        rows = np.sort(rows, order="n_components")
        bars = rows["cv_standard_error"] if name == "cv" else None
        ax.errorbar(
            rows["n_components"], rows[name], bars, marker="o", markersize=4, label=covariance_type
        )
    best = selection.best
    log_likelihood = float(best.log_likelihood)
    winner = next(
        row
        for row in selection.ranked()
        if row["n_components"] == best.mixture.n_components
        and (row["log_likelihood"] == log_likelihood or np.isnan(log_likelihood))
    )
    ax.plot(winner["n_components"], winner[name], "o", markersize=11, fillstyle="none", color="0.2")
    ax.set(xlabel="components", ylabel=name.upper())
    ax.set_xticks(np.unique(table["n_components"]))
    ax.legend()
    return ax


def history(result: FitResult, ax: Axes | None = None) -> Line2D:
    """Draws the objective of a fit by iteration, from the first to the last one done.

    Args:
        result: of one fit that recorded its history.
        ax: where to draw; by default the current axes.

    Returns:
        The line.

    Raises:
        ValueError: nothing was recorded, or a batch.
    """
    check_known("history", result)
    if np.ndim(result.n_iter) != 0:
        raise ValueError(
            f"result must be of one fit, got a batch of shape {np.shape(result.n_iter)}; pick one "
            "with result[b]"
        )
    if result.history is None:
        raise ValueError("result has no history; fit with history=True")
    objectives = np.asarray(result.history, np.float64)[: int(result.n_iter)]
    ax = axes_or_current(ax)
    (line,) = ax.plot(np.arange(1, len(objectives) + 1), objectives, marker=".", markersize=4)
    ax.set(xlabel="iteration", ylabel="objective, nats")
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
    return line


def regression(
    mixture: GaussianMixture,
    index_given: int,
    index_predicted: int,
    x: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    n_deviations: float = 2.0,
    names: Sequence[str] | None = None,
) -> tuple[Line2D, PolyCollection]:
    """Draws the mean of one feature given another, and a band of some standard deviations.

    Args:
        mixture: K components, D ≥ 2.
        index_given: the feature along the horizontal axis; a negative one counts from the end.
        index_predicted: the one along the vertical axis. Further ones may be anything.
        x: (N, D) data to show with it; of more than 10 000 rows a random selection.
        ax: where to draw; by default the current axes.
        n_deviations: how far the band goes to either side of the mean.
        names: D labels.

    Returns:
        The line of the mean, and the band. See `jaxgmm.regress`.

    Raises:
        ValueError: a feature that there isn't, one feature twice, shapes don't agree, a negative
            n_deviations, or a batch.
    """
    check_mixture(mixture)
    check_known("regression", mixture)
    check_number("n_deviations", n_deviations)
    features = [
        _feature("index_given", index_given, mixture.n_features),
        _feature("index_predicted", index_predicted, mixture.n_features),
    ]
    if features[0] == features[1]:
        raise ValueError(f"index_given and index_predicted must differ, both are {features[0]}")
    rows = as_rows(mixture, x)
    rows = None if rows is None else rows[:, features]
    ax = axes_or_current(ax)
    label(ax, mixture, names, features)
    show_rows(ax, rows)
    pair = marginal(mixture, features)
    given = _along_first(pair, rows)
    mean, deviation = _predicted(pair, given)
    (line,) = ax.plot(given, mean, color=color(0), linewidth=1.8, zorder=3)
    low, high = mean - n_deviations * deviation, mean + n_deviations * deviation
    band = ax.fill_between(given, low, high, color=color(0), alpha=0.2, linewidth=0, zorder=1)
    return line, band


def _feature(name: str, index: int, n_features: int) -> int:
    """The index of a feature, from 0 to D - 1."""
    index = check_count(name, index, -n_features)
    if index >= n_features:
        raise ValueError(f"{name} must be less than {n_features} features, got {index}")
    return index % n_features


def _along_first(pair: GaussianMixture, rows: np.ndarray | None) -> np.ndarray:
    """Values of the first of two features, as far as there are components or data."""
    shown = None if rows is None else rows[:, :1]
    low, high = box_around(extent(components_of(pair, [0]), 3), shown)
    return np.linspace(low[0], high[0], 4 * GRID_POINTS)


def _predicted(pair: GaussianMixture, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the second of two features, (M,) each."""
    mean, covariance = regress(pair, 0, given[:, None].astype(pair.means.dtype))
    variance = np.asarray(covariance, np.float64)[:, 0, 0]
    return np.asarray(mean, np.float64)[:, 0], np.sqrt(np.maximum(variance, 0))
