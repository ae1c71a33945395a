"""What all pictures share: where to draw, what is shown of the data, colors and extent."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse

from jaxgmm.mixture import GaussianMixture
from jaxgmm.plot.components import Components

CONTOUR_MASSES = (0.25, 0.5, 0.75, 0.95)
MAX_POINTS = 10_000
GRID_POINTS = 200
MARGIN = 0.08

POINTS: dict[str, Any] = {"s": 11, "alpha": 0.6, "linewidths": 0, "rasterized": True, "zorder": 2}


def axes_or_current(ax: Axes | None) -> Axes:
    """The axes given, or else pyplot's current ones."""
    if ax is None:
        from matplotlib import pyplot

        ax = pyplot.gca()
    return ax


def ellipses(components: Components, mass: float) -> list[Ellipse]:
    """The ellipse of each component that encloses `mass` of it, for d = 2.

    The squared Mahalanobis distance of two Gaussian features is exponential with mean 2, so that
    its quantile is -2 log(1 - mass).
    """
    radius = np.sqrt(-2 * np.log1p(-mass))
    return [
        Ellipse(
            tuple(mean),
            width=2 * radius * scales[1],
            height=2 * radius * scales[0],
            angle=np.degrees(np.arctan2(axes[1, 1], axes[0, 1])),
            fill=False,
        )
        for mean, scales, axes in zip(*components[1:], strict=True)
    ]


def limits(components: Components, x: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Corners of a box around the data, or around the components where there are none: (d,)."""
    if x is None:
        deviations = np.sqrt(((components.axes * components.scales[:, None]) ** 2).sum(axis=-1))
        x = np.concatenate([components.means - 3 * deviations, components.means + 3 * deviations])
    low, high = x.min(axis=0), x.max(axis=0)
    span = np.where(high > low, high - low, np.maximum(np.abs(low), 1))
    return low - MARGIN * span, high + MARGIN * span


def color(k: int) -> str:
    """Of component k, from matplotlib's cycle."""
    cycle = rcParams["axes.prop_cycle"].by_key().get("color", ["C0"])
    return cycle[k % len(cycle)]


def as_rows(mixture: GaussianMixture, x: ArrayLike | None) -> np.ndarray | None:
    """The rows to show, (N, D) of which a random selection if they are many."""
    if x is None:
        return None
    rows = np.asarray(x, np.float64)
    if rows.ndim != 2 or rows.shape[1] != mixture.n_features or len(rows) == 0:
        raise ValueError(f"x must be (N, {mixture.n_features}), got shape {rows.shape}")
    if len(rows) > MAX_POINTS:
        rows = np.random.default_rng(0).choice(rows, MAX_POINTS, replace=False)
    return rows


def as_names(mixture: GaussianMixture, names: Sequence[str] | None) -> Sequence[str]:
    """D labels as matplotlib reads them."""
    if names is None:
        return [f"feature {i}" for i in range(mixture.n_features)]
    if len(names) != mixture.n_features:
        raise ValueError(f"names must be {mixture.n_features} labels, got {len(names)}")
    # Between two dollar signs matplotlib would read a formula.
    return [name.replace("$", r"\$") for name in names]
