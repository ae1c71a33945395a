"""Entropies, divergences and distances, against quadrature and closed forms."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, EPS, array, assert_close, by_dtype, double
from known_mixtures import mixture_of, shifted

import jaxgmm as jg

GRID = np.linspace(-30, 30, 20_001)
STEP = GRID[1] - GRID[0]


def on_a_line(weights, means, deviations):
    return jg.GaussianMixture.create(
        array(weights), array(means)[:, None], array(deviations) ** 2, "spherical"
    )


def pair_on_a_line(apart=2.0):
    p = on_a_line([0.3, 0.7], [-1.0, 1.5], [0.5, 1.0])
    q = on_a_line([0.6, 0.1, 0.3], [-1.0, apart, 4.0], [0.8, 1.0, 2.0])
    return p, q


def density(mixture, points=GRID):
    """By hand, in float64: (M, D) or (M,) -> (M,)."""
    points = points.reshape(len(points), -1)
    total = np.zeros(len(points))
    for w, m, c in zip(
        double(mixture.weights), double(mixture.means), double(mixture.covariances), strict=True
    ):
        apart = points - m
        square = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(c), apart)
        total += w * np.exp(-square / 2) / np.sqrt(np.linalg.det(2 * np.pi * c))
    return total


def integral(values):
    return STEP * np.sum(values)


def hershey_and_olsen(p, q):
    """Their variational approximation, for mixtures on a line."""

    def between(first, second):
        means = [double(m.means)[:, 0] for m in (first, second)]
        variances = [double(m.covariances)[:, 0, 0] for m in (first, second)]
        ratio = variances[0][:, None] / variances[1][None]
        squares = (means[0][:, None] - means[1][None]) ** 2 / variances[1][None]
        terms = np.exp(-(ratio + squares - 1 - np.log(ratio)) / 2)
        return np.log(terms @ double(second.weights))

    return double(p.weights) @ (between(p, p) - between(p, q))


@pytest.mark.parametrize("apart", [0.0, 2.0, 8.0])
def test_divergence_lies_between_its_bounds(key, apart):
    for p, q in (pair_on_a_line(apart), pair_on_a_line(apart)[::-1]):
        f, g = density(p), density(q)
        inside = f > 1e-290
        exact = integral(f[inside] * np.log(f[inside] / g[inside]))
        found = jg.kl_divergence(p, q, key=key)
        assert abs(float(found.value) - exact) < 5 * float(found.standard_error)
        assert 0 < float(found.standard_error) < 0.1
        assert 0 <= float(found.lower) <= exact <= float(found.upper)
        rough = jg.kl_divergence(p, q)
        approximation = hershey_and_olsen(p, q)
        clipped = np.clip(approximation, float(rough.lower), float(rough.upper))
        assert_close(rough.value, clipped, rtol=by_dtype(1e-4, 1e-9))
        assert_close(rough.upper, found.upper)
        assert np.isinf(rough.standard_error)


@pytest.mark.parametrize("apart", [0.0, 1.0, 3.0, 30.0])
def test_entropy_lies_between_its_bounds(key, apart):
    mixture = on_a_line([0.25, 0.75], [-apart / 2, apart / 2], [0.7, 1.0])
    f = density(mixture)
    inside = f > 0
    exact = -integral(f[inside] * np.log(f[inside]))
    found = jg.entropy(mixture, key=key)
    assert abs(float(found.value) - exact) < 5 * float(found.standard_error)
    rounding = by_dtype(1e-5, 1e-11)
    assert float(found.lower) - rounding <= exact <= float(found.upper) + rounding
    if apart == 30:
        assert_close(found.lower, found.upper)
    assert float(jg.entropy(mixture).value) == pytest.approx(exact, abs=0.2)


def test_a_single_gaussian_is_exact():
    normal = on_a_line([1.0], [3.0], [2.0])
    entropy = 0.5 * np.log(2 * np.pi * np.e * 4)
    of_normal = jg.entropy(normal)
    for number in (of_normal.value, of_normal.lower, of_normal.upper):
        assert_close(number, entropy)
    other = on_a_line([1.0], [1.0], [1.0])
    divergence = jg.kl_divergence(normal, other)
    for number in (divergence.value, divergence.lower, divergence.upper):
        assert_close(number, np.log(1 / 2) + (4 + 4) / 2 - 0.5)
    assert float(divergence.standard_error) == 0


def test_nothing_diverges_from_itself(covariance_type, key):
    p = mixture_of(covariance_type)
    found = jg.kl_divergence(p, p)
    assert abs(float(found.value)) <= by_dtype(1e-6, 1e-12)
    assert abs(float(found.upper)) <= by_dtype(1e-6, 1e-12)
    assert float(jg.kl_divergence(p, p, key=key).value) == 0
    assert float(jg.cauchy_schwarz_divergence(p, p)) <= by_dtype(1e-6, 1e-12)
    assert float(jg.l2_distance(p, p)) <= by_dtype(1e-4, 1e-8)
    assert float(jg.wasserstein_distance(p, p)) <= 1000 * EPS


def log_ratio(p, q, key):
    """The average of log p - log q, or of log p, over draws from p that are others."""
    draws = p.sample(jax.random.fold_in(key, 1), 10_000)
    return float(jnp.mean(p.log_prob(draws) - (0 if q is None else q.log_prob(draws))))


@pytest.mark.parametrize("other", ["full", "diag", "tied_spherical"])
def test_bounds_hold_for_every_type(storage_type, other, key):
    p, q = mixture_of(storage_type), shifted(other)
    for found, average in [
        (jg.kl_divergence(p, q, key=key), log_ratio(p, q, key)),
        (jg.entropy(p, key=key), -log_ratio(p, None, key)),
    ]:
        slack = 5 * float(found.standard_error)
        assert float(found.lower) - slack <= average <= float(found.upper) + slack
        assert abs(float(found.value) - average) < 7 * float(found.standard_error)


def test_components_diverge_as_gaussians_do(covariance_type):
    from jaxgmm.operations.pairs import kl_divergences

    p, q = mixture_of(covariance_type), shifted("full")
    found = double(kl_divergences(p, q))
    for a, b in np.ndindex(3, 3):
        first, second = double(p.covariances)[a], double(q.covariances)[b]
        apart = double(p.means)[a] - double(q.means)[b]
        inverse = np.linalg.inv(second)
        log_dets = np.linalg.slogdet(second)[1] - np.linalg.slogdet(first)[1]
        expected = (np.trace(inverse @ first) - 4 + apart @ inverse @ apart + log_dets) / 2
        assert_close(found[a, b], expected)


def test_closed_forms_agree_with_quadrature_on_a_line():
    p, q = pair_on_a_line()
    f, g = density(p), density(q)
    assert_close(jg.l2_distance(p, q), np.sqrt(integral((f - g) ** 2)))
    expected = -np.log(integral(f * g) / np.sqrt(integral(f**2) * integral(g**2)))
    assert_close(jg.cauchy_schwarz_divergence(p, q), expected)
    first, second = (density(on_a_line([1.0], [m], [s])) for m, s in ((-1, 0.5), (1.5, 1)))
    assert_close(jg.overlap(p)[0, 1], integral(np.sqrt(first * second)))
    assert_close(jnp.diagonal(jg.overlap(p)), [1, 1])


def test_closed_forms_agree_with_quadrature_in_the_plane(covariance_type):
    p, q = (jg.marginal(m, [0, 2]) for m in (mixture_of(covariance_type), shifted("full")))
    axis = np.linspace(-14, 14, 401)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    cell = (axis[1] - axis[0]) ** 2
    f, g = density(p, points), density(q, points)
    assert_close(jg.l2_distance(p, q), np.sqrt(cell * np.sum((f - g) ** 2)), rtol=1e-4)
    expected = -np.log(np.sum(f * g) / np.sqrt(np.sum(f**2) * np.sum(g**2)))
    assert_close(jg.cauchy_schwarz_divergence(p, q), expected, rtol=1e-4)


def test_wasserstein_distance_agrees_with_a_peer(covariance_type):
    ot = pytest.importorskip("ot")
    p, q = mixture_of(covariance_type), shifted("full")
    weights, means, covariances = (
        [double(getattr(mixture, name)) for mixture in (p, q)]
        for name in ("weights", "means", "covariances")
    )
    weights = [w / w.sum() for w in weights]
    peer = ot.gmm.gmm_ot_loss(*means, *covariances, *weights)
    assert_close(jg.wasserstein_distance(p, q) ** 2, peer, rtol=by_dtype(1e-4, 1e-9))


def test_wasserstein_distance_of_moved_gaussians_is_how_far_they_moved():
    p = mixture_of("full")
    step = np.array([3.0, 0.0, -4.0, 0.0])
    moved = jg.GaussianMixture(p.log_weights, p.means + array(step)[None], p.covariance)
    one = jax.tree.map(lambda leaf: leaf[:1], (p, moved))
    one = [jg.GaussianMixture(array([0.0]), m.means, m.covariance) for m in one]
    assert_close(jg.wasserstein_distance(*one), 5)
    assert float(jg.wasserstein_distance(p, moved)) <= 5 * (1 + 10 * EPS)


def numbers(p, q, key):
    """Everything about two mixtures that has a derivative."""
    return jnp.stack(
        [
            jg.kl_divergence(p, q).value,
            jg.kl_divergence(p, q, key=key, n_samples=100).value,
            jg.entropy(p, key=key, n_samples=100).value,
            jg.kl_divergence(p, q).upper,
            jg.kl_divergence(p, q).lower,
            jg.entropy(p).value,
            jg.l2_distance(p, q),
            jg.cauchy_schwarz_divergence(p, q),
            jg.wasserstein_distance(p, q),
        ]
    )


def test_derivatives_are_those_of_differences(key):
    """Averages aside: there draws move otherwise than those of another mixture."""
    p, q = pair_on_a_line(1.0)
    size = by_dtype(1e-2, 1e-5)

    def at(t):
        weights = jnp.log(array([0.3, 0.7]) + t * array([0.5, -0.5]))
        means = p.means + t * array([[1.0], [-2.0]])
        scale = p.covariance.scale * jnp.exp(t * array([0.3, -0.4]))
        found = numbers(jg.GaussianMixture(weights, means, jg.Spherical(scale)), q, key)
        return jnp.delete(found, np.array([1, 2]))

    slopes = jax.jit(jax.jacfwd(at))(array(0.0))
    differences = (at(array(size)) - at(array(-size))) / (2 * size)
    assert_close(slopes, differences, rtol=by_dtype(0.02, 1e-6), atol=by_dtype(2e-3, 1e-7))
    assert_close(jax.jit(jax.jacrev(at))(array(0.0)), slopes, atol=by_dtype(1e-4, 1e-9))


def test_averages_move_as_what_they_estimate(key):
    p, q = pair_on_a_line(1.0)

    def at(t, key=None):
        weights = jnp.log(array([0.3, 0.7]) + t * array([0.5, -0.5]))
        mixture = jg.GaussianMixture(weights, p.means + t, p.covariance)
        return jg.kl_divergence(mixture, q, key=key, n_samples=100_000).value

    def exact(t):
        weights = np.array([0.3, 0.7]) + t * np.array([0.5, -0.5])
        f = density(on_a_line(weights, np.array([-1.0, 1.5]) + t, [0.5, 1.0]))
        g = density(q)
        inside = f > 1e-290
        return integral(f[inside] * np.log(f[inside] / g[inside]))

    slope = float(jax.grad(at)(array(0.0), key))
    assert slope == pytest.approx((exact(0.05) - exact(-0.05)) / 0.1, abs=0.03)


def test_derivatives_are_finite_where_components_coincide_or_have_no_weight(key):
    p = jg.GaussianMixture(
        jnp.log(array([0.5, 0.5, 0.0])), array([[0.0], [0.0], [2.0]]), jg.Diagonal(array([[1.0]]))
    )
    slopes = jax.jit(jax.jacrev(lambda p: numbers(p, p, key)))(p)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    found = jg.kl_divergence(p, p, key=key)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_divergences_from_a_component_without_weight_have_finite_derivatives(key):
    p = on_a_line([0.5, 0.5], [0.0, 4.0], [1.0, 1.0])
    q = on_a_line([1.0, 0.0], [0.0, 4.0], [1.0, 1.0])
    for first, second in ((p, q), (q, p)):
        of_both = jax.jit(jax.jacrev(lambda p, q: numbers(p, q, key), argnums=(0, 1)))
        slopes = of_both(first, second)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("ratio", [1e-8, 1e-5, 1e-2, 0.9999, 1.0001, 1e2, 1e5])
def test_divergence_between_narrow_and_wide_is_exact(ratio):
    narrow, wide = on_a_line([1.0], [0.0], [ratio]), on_a_line([1.0], [0.0], [1.0])
    exact = (np.expm1(2 * np.log(ratio)) - 2 * np.log(ratio)) / 2
    if abs(ratio - 1) < 0.1:
        exact = (ratio - 1) ** 2 - (ratio - 1) ** 3 / 3
    found = jg.kl_divergence(narrow, wide)
    assert_close(found.value, exact, rtol=by_dtype(1e-3 if 0.1 < ratio < 10 else 1e-5, 1e-4))


def test_a_small_divergence_in_many_features_is_not_lost():
    p, q = (
        jg.GaussianMixture.create([1.0], array(np.full((1, 64), m)), array(1.0), "tied_spherical")
        for m in (0.0, 0.00025)
    )
    assert_close(jg.kl_divergence(p, q).value, 64 * 0.00025**2 / 2, rtol=1e-4)


def test_a_short_way_is_not_lost_in_the_size_of_the_components():
    p = mixture_of("full")
    step = by_dtype(1e-4, 1e-8)
    moved = jg.GaussianMixture(p.log_weights, p.means + step, p.covariance)
    assert_close(jg.wasserstein_distance(p, moved), 2 * step, rtol=0.02)
    slope = jax.grad(lambda q: jg.wasserstein_distance(p, q))(moved)
    expected = np.broadcast_to(double(p.weights)[:, None] / 2, (3, 4))
    assert_close(slope.means, expected, rtol=0.05)


def test_averages_over_draws_that_can_not_be_compared_are_no_numbers(key):
    p = on_a_line([0.5, 0.5], [0.0, by_dtype(1e20, 1e160)], [1.0, 1.0])
    found = jg.kl_divergence(p, on_a_line([1.0], [0.0], [1.0]), key=key)
    assert not np.isnan(found.value) and np.isinf(found.standard_error)


def test_a_divergence_from_what_excludes_a_component_is_still_finite():
    p = on_a_line([0.5, 0.5], [0.0, 40.0], [1.0, 1.0])
    q = on_a_line([1.0, 0.0], [0.0, 40.0], [1.0, 1.0])
    found = jg.kl_divergence(p, q)
    assert 0 < float(found.lower) <= float(found.value) <= float(found.upper) < 1000


def test_everything_works_in_batches(key):
    p, q = mixture_of("diag"), shifted("diag")
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), q)
    found = jax.vmap(lambda q: numbers(p, q, key))(batch)
    one_by_one = jnp.stack([numbers(p, batch[b], key) for b in range(2)])
    assert_close(found, one_by_one, rtol=by_dtype(1e-4, 1e-10))
    assert found.dtype == DTYPE


def test_errors_say_what_does_not_fit():
    p = mixture_of("full")
    with pytest.raises(ValueError, match="same features, got 4 and 1"):
        jg.kl_divergence(p, jg.marginal(p, 0))
    with pytest.raises(TypeError, match="key"):
        jg.entropy(p, key=3)
    with pytest.raises(ValueError, match="n_samples must be an integer of at least 2"):
        jg.entropy(p, key=jax.random.key(0), n_samples=1)


@pytest.mark.parametrize(
    "number",
    [
        lambda p, q, key: jg.entropy(p).value,
        lambda p, q, key: jg.entropy(p, key=key, n_samples=10).value,
        lambda p, q, key: jg.kl_divergence(p, q).value,
        lambda p, q, key: jg.kl_divergence(q, p, key=key, n_samples=10).value,
        lambda p, q, key: jg.l2_distance(p, q),
        lambda p, q, key: jg.cauchy_schwarz_divergence(p, q),
        lambda p, q, key: jg.wasserstein_distance(p, q),
        lambda p, q, key: jg.cdf(p, 0.5),
        lambda p, q, key: jg.quantile(p, 0.5),
        lambda p, q, key: jg.mahalanobis(p, [0.5])[0],
        lambda p, q, key: jg.highest_density_level(key, p, 0.5, n_samples=10),
        lambda p, q, key: jg.outlier_score(key, p, [0.5], n_samples=10),
    ],
)
@pytest.mark.parametrize("part", ["means", "scale"])
def test_numbers_about_a_mixture_that_is_no_number_are_none(key, number, part):
    good, q = pair_on_a_line()
    broken = replace(good, means=good.means.at[0].set(jnp.nan))
    if part == "scale":
        scale = good.covariance.scale.at[0].set(jnp.nan)
        broken = replace(good, covariance=jg.Spherical(scale))
    assert np.isnan(number(broken, q, key))
