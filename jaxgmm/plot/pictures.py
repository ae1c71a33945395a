"""Whole pictures of a mixture: its density, and its marginals pair by pair."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxgmm.arrays.validation import check_count, check_known, check_mixture
from jaxgmm.files.storage import written_atomically
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.plot.components import Components, components_of, density_levels
from jaxgmm.plot.drawing import (
    CONTOUR_MASSES,
    GRID_POINTS,
    POINTS,
    as_names,
    as_rows,
    axes_or_current,
    check_mass,
    color,
    limits,
    outlines,
    plane_of,
)

FORMATS = ("png", "pdf", "svg", "jpg")

HISTOGRAM: dict[str, Any] = {"color": "0.88", "edgecolor": "white", "linewidth": 0.5, "zorder": 1}


def density(
    mixture: GaussianMixture,
    x: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
    mass: float = 0.9,
) -> Axes:
    """Draws a mixture of one or two features, and the data.

    One feature: the density, its components, and a histogram of the data. Two features: lines
    of equal density that enclose 25, 50, 75 and 95 % of the mixture, an ellipse for each
    component, and the data as points.

    Args:
        mixture: K components, D = 1 or 2.
        x: (N, D) data to show with it; of more than 10 000 rows a random selection.
        ax: where to draw; by default the current axes.
        names: D labels.
        mass: how much of its component each ellipse encloses, between 0 and 1.

    Returns:
        The axes.

    Raises:
        ValueError: D is neither 1 nor 2, shapes don't agree, mass is no probability, or a batch.
    """
    check_mixture(mixture)
    check_known("density", mixture)
    if mixture.n_features not in (1, 2):
        raise ValueError(f"density draws 1 or 2 features, got {mixture.n_features}; see pairs")
    check_mass("mass", mass)
    x = as_rows(mixture, x)
    names = as_names(mixture, names)
    ax = axes_or_current(ax)
    components = components_of(mixture, range(mixture.n_features))
    _draw(ax, components, x, _colors(mixture, x), mass)
    ax.set(xlabel=names[0], ylabel=["density", *names[1:]][-1])
    return ax


def pairs(
    mixture: GaussianMixture,
    x: ArrayLike | None = None,
    *,
    names: Sequence[str] | None = None,
    max_features: int = 4,
    mass: float = 0.9,
    figure: Figure | None = None,
) -> Figure:
    """Draws the marginal mixture of each feature and of each pair of features.

    Args:
        mixture: K components, D ≥ 2.
        x: (N, D) data to show with it.
        names: D labels.
        max_features: only the first so many features are drawn.
        mass: how much of its component each ellipse encloses, between 0 and 1.
        figure: where to draw; by default a new figure.

    Returns:
        The figure.

    Raises:
        ValueError: shapes don't agree, fewer than two features, mass is no probability, or a
            batch.
    """
    check_mixture(mixture)
    check_known("pairs", mixture)
    n_drawn = min(mixture.n_features, check_count("max_features", max_features, 2))
    if n_drawn < 2:
        raise ValueError(f"pairs draws at least 2 features, got {n_drawn}; see density")
    check_mass("mass", mass)
    x = as_rows(mixture, x)
    names = as_names(mixture, names)
    colors = _colors(mixture, x)
    if figure is None:
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(2.2 * n_drawn, 2.2 * n_drawn), layout="constrained")
    panels: Any = figure.subplots(n_drawn, n_drawn, sharex="col", squeeze=False)
    for row, column in np.ndindex(n_drawn, n_drawn):
        ax = panels[row, column]
        if column > row:
            ax.remove()
            continue
        features = [column] if row == column else [column, row]
        _draw(ax, components_of(mixture, features), _of(x, features), colors, mass)
        _label_outer(ax, names, row, column, n_drawn)
    return figure


def picture(
    path: str | os.PathLike[str],
    mixture: GaussianMixture,
    x: ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Writes the picture that fits the number of features, in the format of the name's ending.

    The file appears whole or not at all, and no window or global state is touched.

    Args:
        path: where to; an existing file is replaced.
        mixture: K components.
        x: (N, D) data to show with it.
        names: D labels.

    Raises:
        ValueError: shapes don't agree, or matplotlib doesn't know the format.
        OSError: the place can't be written.
    """
    path = Path(path)
    kind = picture_format(path)
    if mixture.n_features <= 2:
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        density(mixture, x, figure.subplots(), names=names)
    else:
        side = 2.2 * min(mixture.n_features, 4)
        figure = Figure(figsize=(side, side), layout="constrained")
        pairs(mixture, x, names=names, figure=figure)
    with written_atomically(path) as file:
        figure.savefig(file, format=kind, dpi=150)


def picture_format(path: str | os.PathLike[str]) -> str:
    """The format that a file name's ending says; ValueError lists those there are."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"a picture's name must end in .{', .'.join(FORMATS)}; got {path}")
    return kind


def _of(x: np.ndarray | None, features: list[int]) -> np.ndarray | None:
    return None if x is None else x[:, features]


def _draw(
    ax: Axes, components: Components, x: np.ndarray | None, colors: list[str], mass: float
) -> None:
    """One feature, or two."""
    if components.means.shape[1] == 1:
        _draw_curve(ax, components, x)
    else:
        _draw_plane(ax, components, x, colors, mass)


def _draw_curve(ax: Axes, components: Components, x: np.ndarray | None) -> None:
    low, high = limits(components, x)
    grid = np.linspace(low[0], high[0], 4 * GRID_POINTS)
    each = np.exp(components.log_density(grid[:, None]))
    if x is not None:
        n_bins = min(max(int(np.sqrt(len(x))), 10), 60)
        ax.hist(x[:, 0], bins=n_bins, range=(low[0], high[0]), density=True, **HISTOGRAM)
    for k, curve in enumerate(each):
        ax.plot(grid, curve, color=color(k), linewidth=1.6, zorder=3)
    ax.plot(grid, each.sum(axis=0), color="0.15", linewidth=1.2, linestyle="--", zorder=4)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(bottom=0)


def _draw_plane(
    ax: Axes, components: Components, x: np.ndarray | None, colors: list[str], mass: float
) -> None:
    low, high = limits(components, x)
    first, second, log_values = plane_of(components, low, high)
    levels = density_levels(log_values, CONTOUR_MASSES)
    if np.isfinite(levels).all() and levels[0] < levels[-1]:
        shades = colormaps["Greys"](np.linspace(0.06, 0.32, len(levels)))
        log_values = np.maximum(log_values, levels[0] - 1)
        ax.contourf(first, second, log_values, [*levels, np.inf], colors=shades, zorder=0)
    if x is not None:
        ax.scatter(x[:, 0], x[:, 1], c=colors, **POINTS)
    for k, ellipse in enumerate(outlines(components, mass)):
        ax.add_patch(ellipse)
        ax.plot(*components.means[k], "+", color=color(k), markersize=9, zorder=3)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])


def _colors(mixture: GaussianMixture, x: np.ndarray | None) -> list[str]:
    """Each row's color: that of its most probable component."""
    if x is None:
        return []
    components = components_of(mixture, range(mixture.n_features))
    return [color(k) for k in components.log_density(x).argmax(axis=0)]


def _label_outer(ax: Axes, names: Sequence[str], row: int, column: int, n_drawn: int) -> None:
    if row == n_drawn - 1:
        ax.set_xlabel(names[column])
    else:
        ax.tick_params(labelbottom=False)
    if row == column:
        ax.set_yticks([])
    elif column == 0:
        ax.set_ylabel(names[row])
    else:
        ax.tick_params(labelleft=False)
