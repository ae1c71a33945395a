"""Pictures of a mixture of two features, one thing at a time."""

import warnings
from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import PowerNorm, to_rgb, to_rgba
from matplotlib.contour import QuadContourSet
from matplotlib.patches import Ellipse

from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.plot.components import density_levels
from jaxgmm.plot.drawing import (
    CONTOUR_MASSES,
    LOWEST_LOG_DENSITY,
    POINTS,
    as_rows,
    axes_or_current,
    box_around,
    check_mass,
    color,
    components_of_plane,
    extent,
    label,
    outlines,
    plane_of,
    radius_of,
    show_rows,
)

# Of the component with the largest weight.
OPACITY = 0.45
# Nats below the highest density: where lines are, and where the colors end.
DEPTHS = 2.0 ** np.arange(-1, 10)
DEEPEST = 1000.0


def contours(
    mixture: GaussianMixture,
    x: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    masses: float | Sequence[float] = CONTOUR_MASSES,
    names: Sequence[str] | None = None,
) -> QuadContourSet:
    """Draws lines of equal density, each around the smallest region that holds a given mass.

    Masses are counted on a grid of 200 x 200 points around the components.

    Args:
        mixture: K components, D = 2.
        x: (N, 2) data to show with it; of more than 10 000 rows a random selection.
        ax: where to draw; by default the current axes.
        masses: one or more parts of the mixture, each between 0 and 1.
        names: 2 labels.

    Returns:
        The lines. Their `levels` are log densities, in ascending order: of the largest mass first.

    Raises:
        ValueError: D is not 2, shapes don't agree, or masses are no probabilities.
    """
    components = components_of_plane(mixture, "contours")
    masses = [check_mass("masses", float(mass)) for mass in np.atleast_1d(masses)]
    if not masses:
        raise ValueError("masses must be at least one number between 0 and 1, got none")
    rows = as_rows(mixture, x)
    ax = axes_or_current(ax)
    label(ax, mixture, names)
    show_rows(ax, rows)
    plane = plane_of(components, *box_around(extent(components, radius_of(max(masses)) + 1)))
    levels = density_levels(plane.log_density, masses)
    # Lines are placed by linear interpolation, and values far below would pull them inward.
    log_density = np.maximum(plane.log_density, levels[0] - 10)
    with warnings.catch_warnings():
        # All of a mixture that is narrower than the grid: there is no line, and nothing wrong.
        warnings.filterwarnings("ignore", "No contour levels were found")
        return ax.contour(plane.first, plane.second, log_density, levels, linewidths=1.4, zorder=3)


def ellipses(
    mixture: GaussianMixture,
    x: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    mass: float = 0.9,
    names: Sequence[str] | None = None,
) -> list[Ellipse]:
    """Draws an ellipse for each component, filled the more the larger its weight is.

    Args:
        mixture: K components, D = 2.
        x: (N, 2) data to show with it; of more than 10 000 rows a random selection.
        ax: where to draw; by default the current axes.
        mass: how much of its component each ellipse encloses, between 0 and 1.
        names: 2 labels.

    Returns:
        K patches; the opacity of their faces is proportional to the weights.

    Raises:
        ValueError: D is not 2, shapes don't agree, or mass is no probability.
    """
    components = components_of_plane(mixture, "ellipses")
    patches = outlines(components, check_mass("mass", mass))
    rows = as_rows(mixture, x)
    ax = axes_or_current(ax)
    label(ax, mixture, names)
    show_rows(ax, rows)
    opacities = OPACITY * components.weights / components.weights.max()
    for patch, opacity in zip(patches, opacities, strict=True):
        face = to_rgba(patch.get_edgecolor(), opacity)
        ax.add_patch(patch).set(fill=True, facecolor=face, zorder=1)
    ax.autoscale_view()
    return patches


def responsibilities(
    mixture: GaussianMixture,
    x: ArrayLike,
    ax: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
) -> PathCollection:
    """Draws rows as points, in the components' colors mixed by the row's responsibilities.

    Args:
        mixture: K components, D = 2.
        x: (N, 2); of more than 10 000 rows a random selection.
        ax: where to draw; by default the current axes.
        names: 2 labels.

    Returns:
        The points.

    Raises:
        ValueError: D is not 2, or shapes don't agree.
    """
    components = components_of_plane(mixture, "responsibilities")
    rows = as_rows(mixture, x)
    rows = np.empty((0, 2)) if rows is None else rows
    ax = axes_or_current(ax)
    label(ax, mixture, names)
    log_shares = np.maximum(components.log_density(rows), LOWEST_LOG_DENSITY)
    shares = np.exp(log_shares - np.logaddexp.reduce(log_shares, axis=0))
    palette = np.array([to_rgb(color(k)) for k in range(mixture.n_components)])
    mixed = np.clip(shares.T @ palette, 0, 1)
    return ax.scatter(rows[:, 0], rows[:, 1], c=mixed, **POINTS | {"alpha": 0.9, "s": 14})


def heat_map(
    mixture: GaussianMixture,
    x: ArrayLike | None = None,
    ax: Axes | None = None,
    *,
    names: Sequence[str] | None = None,
) -> QuadMesh:
    """Draws the negative log density as colors, with lines that are ever further apart.

    Colors go with the root of the distance from the lowest value, which for a single Gaussian is
    proportional to the distance from its mean. Lines are 1/2, 1, 2, 4, ... nats above the lowest
    value. For a scale use `figure.colorbar`.

    Args:
        mixture: K components, D = 2.
        x: (N, 2) data to show with it; of more than 10 000 rows a random selection.
        ax: where to draw; by default the current axes.
        names: 2 labels.

    Returns:
        The colors; their array is the negative log density, at most 1000 nats above its lowest
        value.

    Raises:
        ValueError: D is not 2, or shapes don't agree.
    """
    components = components_of_plane(mixture, "heat_map")
    rows = as_rows(mixture, x)
    ax = axes_or_current(ax)
    label(ax, mixture, names)
    plane = plane_of(components, *box_around(extent(components, 3), rows))
    lowest = -plane.log_density.max()
    values = np.minimum(-plane.log_density, lowest + DEEPEST)
    mesh = ax.pcolormesh(
        plane.first,
        plane.second,
        values,
        norm=PowerNorm(0.5, lowest, values.max()),
        rasterized=True,
        zorder=0,
    )
    levels = np.unique(lowest + DEPTHS)
    levels = levels[(levels > lowest) & (levels < values.max())]
    if levels.size:
        ax.contour(plane.first, plane.second, values, levels, colors="1", linewidths=0.6, zorder=1)
    show_rows(ax, rows, gray="1")
    return mesh
