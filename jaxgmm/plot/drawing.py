"""Elements that all pictures share: axes, rows of the data, colors and extent."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse

from jaxgmm.arrays.validation import check_known, check_mixture
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.plot.components import Components, components_of

CONTOUR_MASSES = (0.25, 0.5, 0.75, 0.95)
MAX_POINTS = 10_000
GRID_POINTS = 200
MARGIN = 0.08
# In place of -inf, so that differences of log densities are numbers.
LOWEST_LOG_DENSITY = -1e300

POINTS: dict[str, Any] = {"s": 11, "alpha": 0.6, "linewidths": 0, "rasterized": True, "zorder": 2}


def axes_or_current(ax: Axes | None) -> Axes:
    """The axes given, or else pyplot's current ones."""
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.gca()
    return ax


def components_of_plane(mixture: GaussianMixture, picture: str) -> Components:
    """The components of a mixture of two features; ValueError if there are more or fewer."""
    check_mixture(mixture)
    check_known(picture, mixture)
    if mixture.n_features != 2:
        raise ValueError(
            f"{picture} draws 2 features, the mixture has {mixture.n_features}; choose two with "
            "jaxgmm.marginal, or see pairs"
        )
    return components_of(mixture, [0, 1])


def label(
    ax: Axes,
    mixture: GaussianMixture,
    names: Sequence[str] | None,
    features: Sequence[int] = (0, 1),
) -> None:
    """Writes two features' names at the axes; without names, what is there stays."""
    if names is not None:
        names = as_names(mixture, names)
        ax.set(xlabel=names[features[0]], ylabel=names[features[1]])


def show_rows(ax: Axes, rows: np.ndarray | None, gray: str = "0.35") -> None:
    """The data (N, 2), if there are any, as points that leave color to the mixture."""
    if rows is not None:
        ax.scatter(rows[:, 0], rows[:, 1], color=gray, **POINTS)


def check_mass(name: str, mass: float) -> float:
    """ValueError for what is no probability between 0 and 1."""
    if not 0 < mass < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {mass!r}")
    return mass


def radius_of(mass: float) -> float:
    """The radius, in standard deviations, that encloses `mass` of two Gaussian features.

    The squared Mahalanobis distance is exponential with mean 2, so that its quantile is
    -2 log(1 - mass).
    """
    return float(np.sqrt(-2 * np.log1p(-mass)))


def outlines(components: Components, mass: float) -> list[Ellipse]:
    """The ellipse of each component that encloses `mass` of it, for d = 2."""
    radius = radius_of(mass)
    return [
        Ellipse(
            tuple(mean),
            width=2 * radius * scales[1],
            height=2 * radius * scales[0],
            angle=np.degrees(np.arctan2(axes[1, 1], axes[0, 1])),
            fill=False,
            edgecolor=color(k),
            linewidth=1.6,
            zorder=3,
        )
        for k, (mean, scales, axes) in enumerate(zip(*components[1:], strict=True))
    ]


def limits(components: Components, x: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a box around the data, or around the components where there are none: (d,)."""
    return box_around(extent(components, 3) if x is None else x)


def extent(components: Components, n_deviations: float) -> np.ndarray:
    """Corners of the box around each component that has weight: (2 K, d)."""
    means, axes, scales = (
        part[components.weights > 0]
        for part in (components.means, components.axes, components.scales)
    )
    deviations = np.sqrt(((axes * scales[:, None]) ** 2).sum(axis=-1))
    return np.concatenate([means - n_deviations * deviations, means + n_deviations * deviations])


def box_around(*points: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corner, (d,) each, of a box with a margin around points (M, d)."""
    every = np.concatenate([some for some in points if some is not None])
    low, high = every.min(axis=0), every.max(axis=0)
    span = np.where(high > low, high - low, np.maximum(np.abs(low), 1))
    return low - MARGIN * span, high + MARGIN * span


class Plane(NamedTuple):
    """A mixture of two features on a grid of M x M points.

    Attributes:
        first: (M,) values of the first feature.
        second: (M,) of the second.
        log_density: (M, M), a row for each value of the second feature, as matplotlib has it.
    """

    first: np.ndarray
    second: np.ndarray
    log_density: np.ndarray


def plane_of(components: Components, low: np.ndarray, high: np.ndarray) -> Plane:
    """The density between two corners (2,)."""
    first, second = (np.linspace(low[i], high[i], GRID_POINTS) for i in (0, 1))
    points = np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2)
    log_density = np.logaddexp.reduce(components.log_density(points), axis=0)
    log_density = np.maximum(log_density, LOWEST_LOG_DENSITY)
    return Plane(first, second, log_density.reshape(GRID_POINTS, GRID_POINTS))


def color(k: int) -> str:
    """The color of component k, from matplotlib's cycle."""
    cycle = rcParams["axes.prop_cycle"].by_key().get("color", ["C0"])
    return cycle[k % len(cycle)]


def as_rows(mixture: GaussianMixture, x: ArrayLike | None) -> np.ndarray | None:
    """The rows to show, (N, D): finite ones, of many a random selection; None if there are none."""
    if x is None:
        return None
    rows = np.asarray(x, np.float64)
    if rows.ndim != 2 or rows.shape[1] != mixture.n_features:
        raise ValueError(f"x must be (N, {mixture.n_features}), got shape {rows.shape}")
    rows = rows[np.isfinite(rows).all(axis=1)]
    if len(rows) > MAX_POINTS:
        rows = np.random.default_rng(0).choice(rows, MAX_POINTS, replace=False)
    return rows if len(rows) else None


def as_names(mixture: GaussianMixture, names: Sequence[str] | None) -> Sequence[str]:
    """D labels as matplotlib reads them."""
    if names is None:
        return [f"feature {i}" for i in range(mixture.n_features)]
    if len(names) != mixture.n_features:
        raise ValueError(f"names must be {mixture.n_features} labels, got {len(names)}")
    # Between two dollar signs matplotlib would read a formula.
    return [name.replace("$", r"\$") for name in names]
