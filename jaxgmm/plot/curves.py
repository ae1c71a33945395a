"""Curves: the criterion of a sweep."""

import numpy as np
from matplotlib.axes import Axes

from jaxgmm.plot.drawing import axes_or_current
from jaxgmm.selection import Selection, is_healthy


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
    (winner, *_) = table[
        (table["n_components"] == best.mixture.n_components)
        & (table["log_likelihood"] == float(best.log_likelihood))
    ]
    ax.plot(winner["n_components"], winner[name], "o", markersize=11, fillstyle="none", color="0.2")
    ax.set(xlabel="components", ylabel=name.upper())
    ax.set_xticks(np.unique(table["n_components"]))
    ax.legend()
    return ax
