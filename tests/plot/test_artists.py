"""Pictures of one thing: that its artists are what the mixture or the fit says."""

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.collections import PathCollection
from matplotlib.colors import to_rgb
from plotted import (
    COVARIANCES,
    MEANS,
    WEIGHTS,
    assert_fully_drawn,
    batch_of,
    drawn,
    mixture_of,
    new_axes,
    rows_of,
)

import jaxgmm as jg
from jaxgmm import plot
from jaxgmm.plot.drawing import MAX_POINTS

matplotlib.use("Agg")


def result_of(history=(-3.0, -2.0, -1.5, -1.5, -1.5), n_iter=3):
    return jg.FitResult(
        mixture=mixture_of(2),
        log_likelihood=jnp.float32(-1.4),
        objective=jnp.float32(-1.5),
        n_iter=jnp.asarray(n_iter, jnp.int32),
        status=jnp.asarray(jg.Status.CONVERGED, jnp.int32),
        degenerate=jnp.zeros(2, bool),
        remaining_gain=jnp.float32(0),
        history=None if history is None else jnp.asarray(history, jnp.float32),
    )


# What draws over two features, and the artists that it returns.
OF_A_PLANE = {
    "contours": plot.contours,
    "ellipses": plot.ellipses,
    "responsibilities": plot.responsibilities,
    "heat_map": plot.heat_map,
    "regression": lambda mixture, x=None, ax=None, **options: plot.regression(
        mixture, 0, 1, x, ax, **options
    ),
}
of_a_plane = pytest.mark.parametrize("draw", OF_A_PLANE.values(), ids=OF_A_PLANE.keys())


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    pyplot.close("all")


@pytest.mark.parametrize("masses", [(0.25, 0.5, 0.75, 0.95), [0.5], [0.9, 0.1], 0.75])
def test_contours_enclose_their_masses(masses):
    mixture = mixture_of(2)
    levels = plot.contours(mixture, ax=new_axes(), masses=masses).levels
    corners = np.linspace(-10, 12, 400)
    grid = np.stack(np.meshgrid(corners, corners), -1).reshape(-1, 2).astype(np.float32)
    log_density = np.asarray(mixture.log_prob(grid), np.float64)
    cell = (corners[1] - corners[0]) ** 2
    held = [np.exp(log_density[log_density >= level]).sum() * cell for level in levels]
    np.testing.assert_allclose(held, np.sort(np.atleast_1d(masses))[::-1], atol=5e-3)


def test_contours_lie_where_the_density_is_their_level():
    mixture = mixture_of(2)
    lines = plot.contours(mixture, ax=new_axes())
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        assert len(path.vertices) > 20
        on_line = mixture.log_prob(path.vertices.astype(np.float32))
        np.testing.assert_allclose(on_line, level, atol=0.02)


def test_levels_of_contours_do_not_depend_on_the_data():
    far = np.array([[1e6, 1e6]])
    without, beside = (plot.contours(mixture_of(2), x, new_axes()).levels for x in (None, far))
    np.testing.assert_array_equal(without, beside)


@pytest.mark.parametrize("mass", [0.5, 0.9])
def test_ellipses_follow_the_eigenvectors(mass):
    shapes = plot.ellipses(mixture_of(2), ax=new_axes(), mass=mass)
    for ellipse, mean, covariance in zip(shapes, MEANS, COVARIANCES, strict=True):
        values, vectors = np.linalg.eigh(covariance[:2, :2])
        radius = np.sqrt(-2 * np.log(1 - mass))
        np.testing.assert_allclose(ellipse.center, mean[:2], rtol=1e-5)
        np.testing.assert_allclose(
            [ellipse.height, ellipse.width], 2 * radius * np.sqrt(values), rtol=1e-5
        )
        angle = np.radians(ellipse.angle)
        along = abs(vectors[:, 1] @ [np.cos(angle), np.sin(angle)])
        np.testing.assert_allclose(along, 1, rtol=1e-5)


@pytest.mark.parametrize("mass", [0.5, 0.9])
def test_ellipse_encloses_its_mass(mass):
    rng = np.random.default_rng(0)
    x = rng.multivariate_normal(MEANS[1, :2], COVARIANCES[1, :2, :2], 20_000)
    ellipse = plot.ellipses(mixture_of(2), ax=new_axes(), mass=mass)[1]
    inside = ellipse.get_patch_transform().inverted().transform(x)
    assert abs(((inside**2).sum(axis=1) < 1).mean() - mass) < 0.015


def test_ellipses_are_filled_by_weight_and_in_sight():
    ax = new_axes()
    shapes = plot.ellipses(mixture_of(2), ax=ax)
    assert [shape.axes for shape in shapes] == [ax, ax]
    few, many = (shape.get_facecolor()[3] for shape in shapes)
    np.testing.assert_allclose(few / many, WEIGHTS[0] / WEIGHTS[1], rtol=1e-6)
    for shape in shapes:
        ends = shape.get_patch_transform().transform([[1, 0], [-1, 0], [0, 1], [0, -1]])
        low, high = np.transpose([ax.get_xlim(), ax.get_ylim()])
        assert (ends > low).all() and (ends < high).all()


def test_colors_of_points_mix_those_of_components_by_responsibility():
    mixture, x = mixture_of(2), rows_of(2)
    points = plot.responsibilities(mixture, x, new_axes())
    palette = np.array([to_rgb(shape.get_edgecolor()) for shape in plot.ellipses(mixture)])
    expected = np.asarray(mixture.responsibilities(x), np.float64) @ palette
    np.testing.assert_allclose(points.get_facecolors()[:, :3], expected, atol=1e-5)
    np.testing.assert_allclose(points.get_offsets(), x)


def test_heat_map_shows_the_negative_log_density():
    mixture, ax = mixture_of(2), new_axes()
    mesh = plot.heat_map(mixture, ax=ax)
    corners = mesh.get_coordinates()
    centers = np.asarray(corners[1:, 1:] + corners[:-1, :-1]) / 2
    values = np.asarray(mesh.get_array(), np.float64)
    expected = -mixture.log_prob(centers.astype(np.float32))
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)
    assert mesh.norm.vmin == values.min() and mesh.norm.vmax == values.max()
    (lines,) = [kind for kind in ax.collections if hasattr(kind, "levels")]
    np.testing.assert_allclose(lines.levels[:4] - values.min(), [0.5, 1, 2, 4])
    assert lines.levels[-1] < values.max()


def test_heat_map_reaches_the_data_and_no_deeper_than_colors_do():
    far = np.array([[60.0, -50.0]])
    mesh = plot.heat_map(mixture_of(2), far, new_axes())
    low, high = mesh.get_coordinates().min(axis=(0, 1)), mesh.get_coordinates().max(axis=(0, 1))
    assert (low < far[0]).all() and (high > far[0]).all()
    assert np.ptp(mesh.get_array()) == 1000


def test_history_ends_with_the_objective_at_the_last_iteration():
    result, ax = result_of(), new_axes()
    line = plot.history(result, ax)
    assert line.get_xydata().tolist() == [[1, -3], [2, -2], [3, -1.5]]
    assert line.get_ydata()[-1] == float(result.objective)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("iteration", "objective, nats")
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


@pytest.mark.parametrize("method", [None, "anderson"])
def test_history_of_a_fit_ends_where_the_fit_did(method):
    x = rows_of(2).astype(jnp.result_type(float))
    result = jg.em(mixture_of(2), x, max_iter=40, accelerate=method)
    line = plot.history(result, new_axes())
    assert line.get_xdata()[-1] == int(result.n_iter)
    assert line.get_ydata()[-1] == float(result.objective)


def test_history_without_iterations_is_an_empty_line():
    assert len(plot.history(result_of(n_iter=0), new_axes()).get_xdata()) == 0


@pytest.mark.parametrize("n_deviations", [1, 2.5])
@pytest.mark.parametrize(("given", "predicted"), [(0, 1), (1, 0), (2, 0), (-1, -2)])
def test_band_is_mean_and_deviations_of_regress(given, predicted, n_deviations):
    mixture = mixture_of(3)
    line, band = plot.regression(
        mixture, given, predicted, ax=new_axes(), n_deviations=n_deviations
    )
    along, shown = line.get_data()
    pair = jg.marginal(mixture, [given, predicted])
    mean, covariance = jg.regress(pair, 0, along[:, None].astype(np.float32))
    np.testing.assert_allclose(shown, mean[:, 0], rtol=1e-4, atol=1e-4)
    reach = n_deviations * np.sqrt(np.asarray(covariance)[:, 0, 0])
    # A polygon: along the lower edge, and back along the upper one.
    corners = band.get_paths()[0].vertices
    for edge in (shown - reach, shown + reach):
        expected = np.stack([along, edge], axis=1)
        nearest = np.abs(expected[:, None] - corners[None]).max(axis=2).min(axis=1)
        assert nearest.max() < 1e-3


def test_regression_shows_the_two_features_of_the_data():
    x, ax = rows_of(3), new_axes()
    plot.regression(mixture_of(3), 2, 0, x, ax, names=["one", "two", "three"])
    (points,) = drawn(ax, PathCollection)
    np.testing.assert_allclose(points.get_offsets(), x[:, [2, 0]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("three", "one")


@of_a_plane
def test_data_are_shown_with_names(draw):
    x, ax = rows_of(2), new_axes()
    draw(mixture_of(2), x, ax, names=["one", "price in $"])
    (points,) = drawn(ax, PathCollection)
    np.testing.assert_allclose(points.get_offsets(), x)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("one", r"price in \$")


@of_a_plane
def test_drawing_over_a_picture_keeps_its_names(draw):
    ax = plot.density(mixture_of(2), ax=new_axes(), names=["one", "two"])
    draw(mixture_of(2), rows_of(2), ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("one", "two")


@of_a_plane
def test_current_axes_are_the_default(draw):
    ax = pyplot.figure().subplots()
    draw(mixture_of(2), rows_of(2))
    assert len(drawn(ax, PathCollection)) == 1


@of_a_plane
def test_of_many_rows_a_selection_is_drawn(draw):
    ax = new_axes()
    draw(mixture_of(2), np.random.default_rng(0).normal(size=(MAX_POINTS + 1, 2)), ax)
    assert len(drawn(ax, PathCollection)[0].get_offsets()) == MAX_POINTS


@of_a_plane
@pytest.mark.parametrize(
    "x",
    [
        np.zeros((0, 2)),
        np.array([[1.0, 2.0]]),
        np.array([[1.0, 2.0], [1.0, 3.0], [1.0, 2.5]]),
        np.array([[0.0, 0.0], [1e12, 1e-12]]),
        np.array([[np.nan, 0.0], [1.0, np.inf]]),
    ],
    ids=["no row", "one row", "constant feature", "outlier", "no finite row"],
)
def test_any_data_can_be_drawn(draw, x):
    ax = new_axes()
    draw(mixture_of(2), x, ax)
    assert_fully_drawn(ax)


@of_a_plane
@pytest.mark.parametrize(
    "covariances",
    [
        [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0 - 1e-13], [1.0 - 1e-13, 1.0]]],
        [[[1.0, 0.0], [0.0, 1e-24]], [[1e-24, 0.0], [0.0, 1.0]]],
        [[[1e-24, 0.0], [0.0, 1e-24]], [[1e-24, 0.0], [0.0, 1e-24]]],
        [[[1e-300, 0.0], [0.0, 1e-300]], [[1e-300, 0.0], [0.0, 1e-300]]],
        [[[1e24, 0.0], [0.0, 1e24]], [[1e-24, 0.0], [0.0, 1e-24]]],
    ],
    ids=["nearly flat", "thin", "narrow", "a point", "wide and narrow"],
)
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.0, 1.0]])
@pytest.mark.parametrize("mean", [0.0, 1e6])
def test_any_mixture_can_be_drawn(draw, covariances, weights, mean):
    ax = new_axes()
    with jax.enable_x64(True):
        mixture = jg.GaussianMixture.create(weights, np.full((2, 2), mean), np.array(covariances))
        draw(mixture, np.array([[mean, mean], [mean + 1, mean]]), ax)
    assert_fully_drawn(ax)


@of_a_plane
def test_batch_is_refused(draw):
    with pytest.raises(ValueError, match="one mixture is expected"):
        draw(batch_of(2), rows_of(2))


@pytest.mark.parametrize("name", ["contours", "ellipses", "responsibilities", "heat_map"])
def test_other_numbers_of_features_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} draws 2 features, the mixture has 3; choose"):
        OF_A_PLANE[name](mixture_of(3), rows_of(3))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.contours(mixture_of(2), masses=[0.5, 1]), "masses must lie .*, got 1.0"),
        (lambda: plot.contours(mixture_of(2), masses=[]), "masses must be at least one number"),
        (lambda: plot.ellipses(mixture_of(2), mass=0), "mass must lie between 0 and 1, got 0"),
        (lambda: plot.heat_map(mixture_of(2), rows_of(3)), r"x must be \(N, 2\), got shape"),
        (lambda: plot.contours(mixture_of(2), names=["a"]), "names must be 2 labels, got 1"),
        (lambda: plot.history(result_of(None)), "no history; fit with history=True"),
        (lambda: plot.history(result_of(n_iter=[1, 2])), r"batch of shape \(2,\); pick one"),
        (lambda: plot.regression(mixture_of(2), 1, -1), "must differ, both are 1"),
        (lambda: plot.regression(mixture_of(2), 0, 2), "index_predicted must be less than 2"),
        (lambda: plot.regression(mixture_of(2), -3, 0), "index_given must be an integer of at le"),
        (lambda: plot.regression(mixture_of(2), 0, 1, n_deviations=-1), "n_deviations must be"),
    ],
)
def test_bad_arguments_are_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
