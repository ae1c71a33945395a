"""What tests of pictures share: mixtures, rows, and what was drawn."""

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import jaxgmm as jg

WEIGHTS = np.array([0.25, 0.75], np.float32)
MEANS = np.array([[0.0, 0.0, 1.0], [4.0, 1.0, -2.0]], np.float32)
COVARIANCES = np.array(
    [
        [[2.0, 0.6, 0.1], [0.6, 1.0, 0.0], [0.1, 0.0, 0.5]],
        [[0.5, -0.3, 0.0], [-0.3, 1.5, 0.2], [0.0, 0.2, 1.0]],
    ],
    np.float32,
)


def mixture_of(n_features):
    d = n_features
    return jg.GaussianMixture.create(WEIGHTS, MEANS[:, :d], COVARIANCES[:, :d, :d])


def batch_of(n_features):
    return jax.tree.map(lambda leaf: leaf[None], mixture_of(n_features))


def rows_of(n_features, n=50):
    return np.asarray(mixture_of(n_features).sample(jax.random.key(0), n))


def new_axes():
    return Figure().subplots()


def assert_fully_drawn(ax):
    """What the axes show can be painted, and lies within limits that are numbers in order."""
    FigureCanvasAgg(ax.figure).draw()
    left, right, bottom, top = ax.axis()
    assert np.isfinite([left, right, bottom, top]).all()
    assert left < right
    assert bottom < top


def drawn(ax, kind):
    return [artist for artist in ax.get_children() if isinstance(artist, kind)]
