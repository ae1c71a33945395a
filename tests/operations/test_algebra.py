"""Marginals, conditionals, regression and affine maps, against formulas with dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, EPS, array, assert_close, by_dtype, double
from known_mixtures import D, K, mixture_of

import jaxgmm as jg

RANDOM = np.random.default_rng(5)
POINT = np.array([0.3, -0.8, 1.1, 0.2])


def normal(x, mean, covariance):
    """The density of a Gaussian."""
    apart = x - mean
    square = apart @ np.linalg.solve(covariance, apart)
    return np.exp(-square / 2) / np.sqrt(np.linalg.det(2 * np.pi * covariance))


def by_hand(mixture, given, values):
    """Weights, means and covariances of the conditional, as textbooks write them."""
    rest = [d for d in range(D) if d not in given]
    weights, means, covariances = [], [], []
    for w, m, c in zip(
        double(mixture.weights), double(mixture.means), double(mixture.covariances), strict=True
    ):
        inner = c[np.ix_(given, given)]
        slope = c[np.ix_(rest, given)] @ np.linalg.inv(inner)
        weights.append(w * normal(values, m[given], inner))
        means.append(m[rest] + slope @ (values - m[given]))
        covariances.append(c[np.ix_(rest, rest)] - slope @ c[np.ix_(given, rest)])
    return np.array(weights) / np.sum(weights), np.array(means), np.array(covariances)


@pytest.mark.parametrize("indices", [[2, 0], [3], [1, 2, 3], range(D), [-1, 0]])
def test_marginal_has_the_rows_and_columns_that_are_wanted(covariance_type, indices):
    mixture = mixture_of(covariance_type)
    part = jg.marginal(mixture, indices)
    kept = np.array(indices)
    assert_close(part.means, double(mixture.means)[:, kept])
    assert_close(part.covariances, double(mixture.covariances)[:, kept][:, :, kept])
    assert part.covariance_type == covariance_type
    assert_close(part.weights, mixture.weights)


@pytest.mark.parametrize("given", [[0], [3, 1], [0, 1, 2]])
def test_conditional_is_that_of_the_textbook(covariance_type, given):
    mixture = mixture_of(covariance_type)
    part = jg.condition(mixture, given, array(POINT[given]))
    weights, means, covariances = by_hand(mixture, given, POINT[given])
    assert_close(part.weights, weights)
    assert_close(part.means, means)
    assert_close(part.covariances, covariances)


def test_joint_density_is_marginal_times_conditional(covariance_type):
    mixture = mixture_of(covariance_type)
    given, rest = [1, 3], [0, 2]
    of_given = jg.marginal(mixture, given).log_prob(array(POINT[given]))
    of_rest = jg.condition(mixture, given, array(POINT[given])).log_prob(array(POINT[rest]))
    assert_close(of_given + of_rest, mixture.log_prob(array(POINT)))


def test_regression_has_the_moments_of_the_conditional(covariance_type):
    mixture = mixture_of(covariance_type)
    values = RANDOM.normal(size=(2, 5, 2))
    mean, covariance = jg.regress(mixture, [2, 0], array(values))
    assert mean.shape == (2, 5, 2) and covariance.shape == (2, 5, 2, 2)
    one = jg.condition(mixture, [2, 0], array(values[1, 3]))
    assert_close(mean[1, 3], one.mean())
    assert_close(covariance[1, 3], one.covariance_matrix())


def test_affine_maps_move_means_and_covariances(covariance_type):
    mixture = mixture_of(covariance_type)
    matrix, offset = RANDOM.normal(size=(2, D)), np.array([10.0, -3.0])
    mapped = jg.affine(mixture, array(matrix), array(offset))
    assert_close(mapped.means, double(mixture.means) @ matrix.T + offset)
    expected = matrix @ double(mixture.covariances) @ matrix.T
    assert_close(mapped.covariances, expected)


def test_conditional_of_many_values_is_that_of_each():
    mixture = mixture_of("full")
    values = array(RANDOM.normal(size=(7, 2)))
    together = jax.vmap(lambda values: jg.condition(mixture, [0, 2], values))(values)
    alone = jg.condition(mixture, [0, 2], values[4])
    assert_close(together[4].means, alone.means)
    assert_close(together[4].log_weights, alone.log_weights)
    # The factor is the same for all, and made once.
    text = str(jax.make_jaxpr(jax.vmap(lambda v: jg.condition(mixture, [0, 2], v)))(values))
    assert f"[{len(values)},{K},{D},{D}]" not in text


def test_nearly_singular_blocks_lose_no_more_than_they_must():
    """Two features that are nearly the same: the third, given both, has moments of size 1."""
    tiny = by_dtype(1e-2, 1e-5)
    root = np.array([[1.0, 0.0, 0.0], [1.0, tiny, 0.0], [0.0, 1.0, 0.5]])
    mixture = jg.affine(
        jg.GaussianMixture.create(array([1.0]), array(np.zeros((1, 3))), array([1.0]), "spherical"),
        array(root),
        array(np.zeros(3)),
    )
    part = jg.condition(mixture, [0, 1], array([0.3, 0.3 + tiny]))
    assert_close(part.means, [[1.0]], 0, by_dtype(1e-3, 1e-8))
    assert_close(part.covariances, [[[0.25]]], 0, by_dtype(1e-4, 1e-9))


def test_values_far_away_leave_finite_weights_and_derivatives():
    mixture = mixture_of("full")
    part = jg.condition(mixture, [0], array([1e6]))
    assert np.isfinite(double(part.weights)).all() and np.isclose(float(part.weights.sum()), 1)

    def number(mixture, value):
        mean, covariance = jg.regress(mixture, [0], value[None])
        return jnp.sum(mean) + jnp.sum(covariance)

    for value in (0.5, 1e4):
        slopes = jax.grad(number, argnums=(0, 1))(mixture, array([value]))
        assert all(np.isfinite(double(leaf)).all() for leaf in jax.tree.leaves(slopes))


@pytest.mark.once
def test_derivative_of_a_regression_is_the_limit_of_differences():
    with jax.enable_x64(True):
        given = mixture_of("full")
        mixture = jax.tree.map(lambda leaf: leaf.astype("float64"), given)
        slope = jax.jacfwd(lambda v: jg.regress(mixture, [0], v)[0])(jnp.array([0.4]))
        above, below = (jg.regress(mixture, [0], jnp.array([0.4 + h]))[0] for h in (1e-5, -1e-5))
        np.testing.assert_allclose(slope[:, 0], (above - below) / 2e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("indices", "expected"),
    [(2, [2]), (np.int64(1), [1]), ([True, False, False, True], [0, 3]), ((3, 1), [3, 1])],
)
def test_indices_can_be_written_in_several_ways(indices, expected):
    mixture = mixture_of("diag")
    ours, theirs = jg.marginal(mixture, indices), jg.marginal(mixture, expected)
    np.testing.assert_array_equal(ours.means, theirs.means)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([], ValueError, "at least one"),
        ([0, 0], ValueError, "repeat"),
        ([0, -4], ValueError, "repeat"),
        ([4], ValueError, "out of range"),
        ([0.5], TypeError, "whole numbers"),
        (["a"], TypeError, "whole numbers"),
        ([[0], [1]], ValueError, "list of numbers"),
        ([True, False], ValueError, "mask"),
    ],
)
def test_bad_indices_are_refused(indices, error, message):
    with pytest.raises(error, match=message):
        jg.marginal(mixture_of("diag"), indices)


def test_nothing_and_everything_have_an_answer():
    mixture = mixture_of("full")
    same = jg.condition(mixture, [], array([]))
    np.testing.assert_array_equal(same.means, mixture.means)
    with pytest.raises(ValueError, match="nothing is left"):
        jg.condition(mixture, range(D), array(POINT))
    for indices in ([], range(D)):
        with pytest.raises(ValueError, match="some left"):
            jg.regress(mixture, indices, array(POINT[: len(indices)]))
    alone = jg.condition(mixture, 1, 0.5)
    assert_close(alone.means, jg.condition(mixture, [1], array([0.5])).means)
    assert alone.means.dtype == DTYPE


@pytest.mark.parametrize(
    ("matrix", "offset", "message"),
    [
        (np.ones((2, D)), np.zeros(2), "rank"),
        (np.ones((D + 1, D)), np.zeros(D + 1), "rank"),
        (np.ones((2, 3)), np.zeros(2), "must be"),
        (np.eye(D), np.zeros(3), "must be"),
        (np.ones(D), np.zeros(1), "must be"),
    ],
)
def test_bad_maps_are_refused(matrix, offset, message):
    with pytest.raises(ValueError, match=message):
        jg.affine(mixture_of("full"), array(matrix), array(offset))


def test_values_of_another_shape_are_refused():
    mixture = mixture_of("full")
    with pytest.raises(ValueError, match="vmap"):
        jg.condition(mixture, [0], array(np.zeros((5, 1))))
    with pytest.raises(ValueError, match="values"):
        jg.regress(mixture, [0, 1], array(np.zeros((5, 3))))
    batch = jax.tree.map(lambda leaf: leaf[None], mixture)
    for function in (jg.marginal, lambda m, i: jg.condition(m, i, array([0.0]))):
        with pytest.raises(ValueError, match="vmap"):
            function(batch, [0])


def test_conditionals_integrate_to_one():
    with jax.enable_x64(True):
        mixture = jax.tree.map(lambda leaf: leaf.astype("float64"), mixture_of("full"))
        line = jg.condition(mixture, [0, 1, 3], jnp.asarray(POINT[[0, 1, 3]]))
        grid = jnp.linspace(-40, 40, 20_001)
        total = jnp.trapezoid(jnp.exp(line.log_prob(grid[:, None])), grid)
        np.testing.assert_allclose(total, 1, rtol=1e-6)


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_components_far_away_cost_no_accuracy(weight):
    covariance = [[1.0, 0.9], [0.9, 1.0]]
    mixture = jg.GaussianMixture.create(
        array([1 - weight, weight]), array([[0.0, 0.0], [1e6, 0.0]]), array([covariance] * 2)
    )
    mean, _ = jg.regress(mixture, [0], array([[0.5]]))
    assert_close(mean, [[0.45]])
    assert_close(jg.condition(mixture, [0], array([0.5])).means[0], [0.45])


@pytest.mark.parametrize("indices", [[1], [0, 3], [2, 0, 1]])
def test_marginals_and_conditionals_are_those_of_a_peer(indices):
    gmr = pytest.importorskip("gmr")
    mixture = mixture_of("full")
    parameters = (mixture.weights, mixture.means, mixture.covariances)
    peer = gmr.GMM(K, *map(double, parameters))
    ours = jg.condition(mixture, indices, array(POINT[indices]))
    theirs = peer.condition(np.array(indices), POINT[indices])
    assert_close(ours.weights, theirs.priors)
    assert_close(ours.means, theirs.means)
    assert_close(ours.covariances, theirs.covariances)
    part = jg.marginal(mixture, indices)
    for k in range(K):
        of_component = peer.extract_mvn(k).marginalize(np.array(indices))
        assert_close(part.means[k], of_component.mean)
        assert_close(part.covariances[k], of_component.covariance)
    rows = RANDOM.normal(size=(20, len(indices)))
    mean, _ = jg.regress(mixture, indices, array(rows))
    assert_close(mean, peer.predict(np.array(indices), rows))


def test_features_that_depend_on_others_are_conditioned_on(key):
    """Fourteen features, of rank seven but for the regularization."""
    latent = np.random.default_rng(0).normal(size=(300, 7))
    x = array(
        np.concatenate([latent, latent @ np.random.default_rng(1).normal(size=(7, 7))], axis=1)
    )
    mixture = jg.fit(key, x, 2, reg_covar=by_dtype(1e-5, 1e-12)).mixture
    for given in (range(7), range(7, 14), range(0, 14, 2)):
        part = jg.condition(mixture, list(given), x[0, np.array(given)])
        assert np.isfinite(double(part.means)).all()
        smallest = np.linalg.eigvalsh(double(part.covariances)).min()
        assert smallest >= -EPS * np.abs(double(part.covariances)).max()
