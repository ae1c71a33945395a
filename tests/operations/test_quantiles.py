"""Distribution functions, quantiles, regions of highest density, and distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, EPS, array, assert_close, by_dtype, double
from known_mixtures import mixture_of
from scipy import stats

import jaxgmm as jg

LINE = ([0.3, 0.7], [-2.0, 3.0], [0.5, 1.5])


def line():
    weights, means, deviations = LINE
    return jg.GaussianMixture.create(
        array(weights), array(means)[:, None], array(deviations) ** 2, "spherical"
    )


def below(x):
    """By SciPy."""
    return sum(w * stats.norm.cdf(x, m, s) for w, m, s in zip(*LINE, strict=True))


def test_distribution_function_is_that_of_the_components():
    points = np.linspace(-6, 10, 33).reshape(3, 11)
    assert_close(jg.cdf(line(), array(points)), below(points))
    assert jg.cdf(line(), 0.0).shape == ()
    assert_close(jg.cdf(line(), [-np.inf, np.inf]), [0, 1])


@pytest.mark.parametrize("probability", [1e-30, 1e-6, 0.2, 0.3, 0.300001, 0.5, 0.9, 1 - 1e-6])
def test_quantile_undoes_the_distribution_function(probability):
    x = jg.quantile(line(), probability)
    target = min(float(array(probability)), 1 - float(array(probability)))
    tail = below(float(x)) if probability < 0.5 else 1 - below(float(x))
    assert_close(tail, target, rtol=by_dtype(2e-4, 1e-9))


def test_quantiles_at_the_ends_are_infinite():
    assert_close(jg.quantile(line(), [0.0, 1.0]), [-np.inf, np.inf])


def test_quantiles_between_components_far_apart_are_exact():
    narrow = jg.GaussianMixture.create(
        array([0.5, 0.5]), array([[0.0], [1.0]]), array([1e-10, 1e-10]), "spherical"
    )
    middle = jg.quantile(narrow, array([0.25, 0.75]))
    assert_close(middle, [0, 1], atol=by_dtype(1e-7, 1e-10))


def test_derivatives_of_quantiles_are_those_of_the_distribution_function():
    size = by_dtype(1e-2, 1e-5)

    def at(t):
        mixture = line()
        weights = jnp.log(array([0.3, 0.7]) + t * array([1.0, -1.0]))
        scale = mixture.covariance.scale * (1 + t)
        moved = jg.GaussianMixture(weights, mixture.means + t, jg.Spherical(scale))
        return jg.quantile(moved, array([0.1, 0.6]) + t)

    slopes = jax.jacfwd(at)(array(0.0))
    assert_close(
        slopes, (at(array(size)) - at(array(-size))) / (2 * size), rtol=by_dtype(0.02, 1e-6)
    )
    assert_close(jax.jacrev(at)(array(0.0)), slopes, rtol=1e-4)


def test_distances_are_in_standard_deviations(covariance_type):
    mixture = mixture_of(covariance_type)
    points = np.random.default_rng(0).normal(size=(2, 3, 4))
    found = double(jg.mahalanobis(mixture, array(points)))
    for k in range(3):
        apart = points - double(mixture.means)[k]
        inverse = np.linalg.inv(double(mixture.covariances)[k])
        expected = np.sqrt(np.einsum("...i,ij,...j->...", apart, inverse, apart))
        assert_close(found[..., k], expected)
    assert_close(jg.mahalanobis(mixture, mixture.means)[0, 0], 0)


def test_distances_are_finite_where_their_squares_are_not():
    mixture = jg.GaussianMixture.create([1.0], array([[0.0, 0.0]]), array(1.0), "tied_spherical")
    far = float(jnp.finfo(DTYPE).max) / 4
    assert_close(jg.mahalanobis(mixture, array([0.6, 0.8]) * far)[0] / far, 1)
    slope = jax.grad(lambda x: jg.mahalanobis(mixture, x)[0])
    assert_close(slope(array([0.6, 0.8]) * far), [0.6, 0.8])
    assert np.isfinite(slope(array([0.0, 0.0]))).all()


@pytest.mark.parametrize("mass", [0.05, 0.5, 0.95])
def test_region_of_highest_density_holds_its_mass(key, mass):
    normal = jg.GaussianMixture.create([1.0], array(np.zeros((1, 3))), array(4.0), "tied_spherical")
    level = float(jg.highest_density_level(key, normal, mass))
    edge = 2 * np.sqrt(stats.chi2.ppf(mass, 3))
    expected = float(normal.log_prob(array([edge, 0.0, 0.0])))
    assert level == pytest.approx(expected, abs=0.05)
    levels = jg.highest_density_level(key, normal, [0.1, 0.9])
    assert float(levels[0]) > float(levels[1])


def test_scores_of_draws_are_uniform(key):
    mixture = mixture_of("full")
    scores = double(jg.outlier_score(key, mixture, mixture.sample(jax.random.key(1), 5_000)))
    assert stats.kstest(scores, "uniform").statistic < 0.03
    far = jg.outlier_score(key, mixture, array([1e6, 0.0, 0.0, 0.0]))
    assert float(far) == 1
    assert float(jg.outlier_score(key, jg.reduce(mixture, 1), mixture.mean())) < 100 * EPS + 1e-3


def test_far_tails_are_relatively_exact():
    points = np.array([-12.0, -8.0])
    assert_close(
        jg.cdf(line(), array(points)), below(double(array(points))), rtol=by_dtype(1e-3, 1e-9)
    )


def test_derivatives_at_the_ends_are_finite():
    slopes = jax.jacrev(lambda m: jg.quantile(m, [0.0, 0.5, 1.0]))(line())
    assert all(np.isfinite(double(leaf)).all() for leaf in jax.tree.leaves(slopes))
    assert double(slopes.means)[1].any()


def test_a_point_that_is_no_number_has_no_score(key):
    assert np.isnan(jg.outlier_score(key, line(), array([np.nan])))


def test_constants_are_checked_while_programs_are_traced(key):
    assert np.isfinite(jax.jit(lambda m: jg.quantile(m, 0.5))(line()))
    assert np.isfinite(jax.jit(lambda m: jg.highest_density_level(key, m, 0.5))(line()))
    with pytest.raises(ValueError, match="probability must lie between 0 and 1"):
        jax.jit(lambda m: jg.quantile(m, 2.0))(line())


def test_errors_say_what_does_not_fit(key):
    mixture = mixture_of("full")
    with pytest.raises(ValueError, match="one feature is needed, the mixture has 4; see marginal"):
        jg.cdf(mixture, 0.0)
    with pytest.raises(ValueError, match=r"probability must lie between 0 and 1, got 1\.5"):
        jg.quantile(line(), 1.5)
    with pytest.raises(ValueError, match="mass must lie between 0 and 1"):
        jg.highest_density_level(key, mixture, -0.1)
    with pytest.raises(ValueError, match=r"x must be \(\.\.\., 4\)"):
        jg.outlier_score(key, mixture, array([1.0]))


def test_infinitely_far_is_no_short_distance():
    mixture = jg.GaussianMixture.create([1.0], [[0.0, 0.0]], [1.0], "spherical")
    assert jg.mahalanobis(mixture, [np.inf, 0.0]).tolist() == [np.inf]
