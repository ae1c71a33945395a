"""Pictures: that what is drawn is the mixture."""

import importlib
import os
import sys
from types import SimpleNamespace

import jax
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.collections import PathCollection
from matplotlib.patches import Ellipse
from plotted import MEANS, batch_of, drawn, mixture_of, new_axes, rows_of

import jaxgmm as jg
from jaxgmm import plot
from jaxgmm.fits.ranking import ROW_WITH_FOLDS, Selection
from jaxgmm.plot.components import components_of, density_levels
from jaxgmm.plot.drawing import MAX_POINTS

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close("all")


@pytest.mark.parametrize("features", [[0], [1], [0, 2], [2, 1], [0, 1, 2]])
def test_density_of_a_marginal_is_that_of_the_marginal_mixture(features):
    whole = mixture_of(3)
    part = jg.GaussianMixture.create(
        whole.weights,
        whole.means[:, features],
        np.asarray(whole.covariances)[:, features][:, :, features],
    )
    x = rows_of(3)[:, features]
    each = components_of(whole, features).log_density(x)
    np.testing.assert_allclose(np.logaddexp.reduce(each), part.log_prob(x), rtol=1e-4)


@pytest.mark.parametrize("mass", [0.25, 0.95])
def test_levels_enclose_their_mass(mass):
    grid = np.stack(np.meshgrid(*[np.linspace(-8, 10, 300)] * 2), -1).reshape(-1, 2)
    each = components_of(mixture_of(2), [0, 1]).log_density(grid)
    log_values = np.logaddexp.reduce(each)
    cell = (18 / 299) ** 2
    (level,) = density_levels(log_values, [mass])
    np.testing.assert_allclose(np.exp(log_values).sum() * cell, 1, atol=1e-3)
    np.testing.assert_allclose(
        np.exp(log_values[log_values >= level]).sum() * cell, mass, atol=2e-3
    )


def test_two_features_show_ellipses_points_and_names():
    ax = new_axes()
    assert plot.density(mixture_of(2), rows_of(2), ax, names=["one", "two"]) is ax
    assert len(drawn(ax, Ellipse)) == 2
    (points,) = drawn(ax, PathCollection)
    np.testing.assert_allclose(points.get_offsets(), rows_of(2))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("one", "two")


def test_points_have_the_color_of_their_component():
    ax = plot.density(mixture_of(2), rows_of(2), new_axes())
    (points,) = drawn(ax, PathCollection)
    edges = np.array([ellipse.get_edgecolor()[:3] for ellipse in drawn(ax, Ellipse)])
    labels = np.asarray(mixture_of(2).predict(rows_of(2)))
    np.testing.assert_array_equal(points.get_facecolors()[:, :3], edges[labels])


def test_one_feature_shows_components_below_their_sum():
    ax = plot.density(mixture_of(1), rows_of(1), new_axes(), names=["one"])
    *components, total = [line.get_ydata() for line in ax.get_lines()]
    grid = ax.get_lines()[-1].get_xdata()
    np.testing.assert_allclose(np.sum(components, axis=0), total)
    expected = np.exp(mixture_of(1).log_prob(grid[:, None].astype(np.float32)))
    np.testing.assert_allclose(total, expected, rtol=1e-3)
    bars = [(bar.get_width(), bar.get_height()) for bar in ax.containers[0]]
    np.testing.assert_allclose(sum(width * height for width, height in bars), 1, rtol=1e-6)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("one", "density")


@pytest.mark.parametrize("n_features", [1, 2])
def test_without_data_the_components_are_in_sight(n_features):
    ax = plot.density(mixture_of(n_features), ax=new_axes())
    assert drawn(ax, PathCollection) == []
    assert ax.get_xlim()[0] < MEANS[0, 0] - 3 * np.sqrt(2) < MEANS[1, 0] + 3 * np.sqrt(0.5)
    assert ax.get_xlim()[1] > MEANS[1, 0] + 3 * np.sqrt(0.5)


def test_current_axes_are_the_default():
    ax = pyplot.figure().subplots()
    assert plot.density(mixture_of(2)) is ax


@pytest.mark.parametrize("n_drawn", [2, 3])
def test_pairs_show_every_pair_once(n_drawn):
    names = ["one", "two", "three"]
    figure = plot.pairs(mixture_of(3), rows_of(3), names=names, max_features=n_drawn)
    assert len(figure.axes) == n_drawn * (n_drawn + 1) // 2
    planes = [ax for ax in figure.axes if drawn(ax, Ellipse)]
    assert len(planes) == n_drawn * (n_drawn - 1) // 2
    labels = [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()]
    assert labels == names[:n_drawn]


def test_of_many_rows_a_selection_is_drawn():
    x = np.random.default_rng(0).normal(size=(MAX_POINTS + 1, 2))
    (points,) = drawn(plot.density(mixture_of(2), x, new_axes()), PathCollection)
    assert len(points.get_offsets()) == MAX_POINTS


@pytest.mark.parametrize("n_features", [1, 2, 3])
@pytest.mark.parametrize("kind", ["png", "pdf", "svg", "jpg"])
def test_picture_has_the_format_of_its_name(tmp_path, n_features, kind):
    path = tmp_path / f"picture.{kind}"
    names = ["price in $", "$\\ratio$", "c"][:n_features]
    plot.picture(path, mixture_of(n_features), rows_of(n_features), names)
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "jpg": b"\xff\xd8"}
    assert path.read_bytes().startswith(starts[kind])
    assert os.listdir(tmp_path) == [path.name]


def test_picture_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"before")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        plot.picture(path, mixture_of(2), rows_of(2))
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["picture.png"]


@pytest.mark.parametrize(
    ("scale", "x"),
    [
        (1e-12, np.zeros((3, 2))),
        (1e-150, np.array([[0.0, 0.0], [1.0, 1.0]])),
        (1e6, np.array([[0.0, 0.0]])),
        (1.0, np.array([[0.0, 0.0], [1e12, 1e-12]])),
        (1.0, np.zeros((0, 2))),
        (1.0, np.array([[np.nan, 0.0], [np.inf, np.inf]])),
    ],
)
@pytest.mark.parametrize("n_features", [1, 2])
def test_degenerate_mixtures_and_data_are_drawn(tmp_path, n_features, scale, x):
    with jax.enable_x64(True):
        mixture = jg.GaussianMixture.create(
            [0.0, 1.0], np.zeros((2, n_features)), np.full(2, scale**2), "spherical"
        )
        plot.picture(tmp_path / "picture.png", mixture, x[:, :n_features])
    assert (tmp_path / "picture.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.density(mixture_of(3)), "draws 1 or 2 features, got 3; see pairs"),
        (lambda: plot.density(mixture_of(2), mass=1.0), "mass must lie between 0 and 1, got 1.0"),
        (lambda: plot.density(mixture_of(2), rows_of(3)), r"x must be \(N, 2\), got shape"),
        (lambda: plot.density(mixture_of(2), names=["a"]), "names must be 2 labels, got 1"),
        (lambda: plot.density(batch_of(2)), "one mixture is expected"),
        (lambda: plot.pairs(batch_of(3)), "one mixture is expected"),
        (lambda: plot.pairs(mixture_of(3), max_features=1), "max_features must be"),
        (lambda: plot.pairs(mixture_of(1)), "at least 2 features, got 1; see density"),
        (lambda: plot.pairs(mixture_of(2), mass=0.0), "mass must lie between 0 and 1, got 0.0"),
        (lambda: plot.picture("a.docx", mixture_of(2)), "must end in .png, .pdf, .svg, .jpg"),
        (lambda: plot.picture("picture", mixture_of(2)), "must end in .png"),
    ],
)
def test_bad_arguments_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_import_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxgmm.plot")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxgmm\[plot\]'"):
        importlib.import_module("jaxgmm.plot")


@pytest.mark.parametrize("name", ["bic", "cv"])
def test_the_criterion_has_a_line_for_each_type_and_a_ring_for_the_winner(name):
    table = np.zeros(5, ROW_WITH_FOLDS)
    table["n_components"] = [2, 2, 1, 1, 3]
    table["covariance_type"] = ["full", "diag", "full", "diag", "full"]
    table["log_likelihood"] = [-10.0, -11.0, -20.0, -21.0, -9.0]
    table["status"][4] = jg.Status.DEGENERATE
    table[name] = [30.0, 31.0, 40.0, 42.0, 20.0]
    table["cv_standard_error"] = 0.5
    best = SimpleNamespace(mixture=mixture_of(2), log_likelihood=np.float32(-10))
    ax = plot.criterion(Selection(best, table, name, False), new_axes())
    full, diag = (container.lines[0] for container in ax.containers)
    assert full.get_xydata().tolist() == [[1, 40], [2, 30]]
    assert diag.get_xydata().tolist() == [[1, 42], [2, 31]]
    assert all(container.has_yerr == (name == "cv") for container in ax.containers)
    assert ax.get_lines()[-1].get_xydata().tolist() == [[2, 30]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["full", "diag"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("components", name.upper())
