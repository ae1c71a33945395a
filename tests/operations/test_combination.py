"""Products, reductions and matching of mixtures, against formulas with dense matrices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, EPS, array, assert_close, by_dtype, double
from known_mixtures import mixture_of, shifted

import jaxgmm as jg

POINTS = np.random.default_rng(3).normal(size=(20, 4))


@pytest.mark.parametrize("other", ["full", "diag", "tied_spherical"])
def test_product_is_proportional_to_both_densities(covariance_type, other):
    p, q = mixture_of(covariance_type), shifted(other)
    both = jg.product(p, q)
    assert both.n_components == p.n_components * q.n_components
    points = array(POINTS)
    ratio = double(both.log_prob(points) - p.log_prob(points) - q.log_prob(points))
    assert_close(ratio, np.full(len(ratio), ratio[0]), atol=by_dtype(1e-3, 1e-11))
    assert both.means.dtype == DTYPE


def test_product_of_the_same_types_keeps_the_type(covariance_type):
    both = jg.product(mixture_of(covariance_type), shifted(covariance_type))
    assert both.covariance_type == covariance_type


def test_product_of_mixtures_far_apart_is_finite():
    near = jg.GaussianMixture.create(
        [0.5, 0.5], array([[0.0], [1.0]]), array([1.0, 1.0]), "spherical"
    )
    far = jg.GaussianMixture.create([1.0], array([[1e15]]), array([1.0]), "spherical")
    both = jg.product(near, far)
    assert np.isfinite(double(both.weights)).all() and np.isfinite(double(both.means)).all()
    assert_close(both.means[:, 0] / 5e14, [1.0, 1.0])


def test_product_with_something_vague_changes_nothing(covariance_type):
    p = mixture_of(covariance_type)
    vague = jg.GaussianMixture.create([1.0], array(np.zeros((1, 4))), array(1e12), "tied_spherical")
    assert_close(
        jg.product(p, vague).log_prob(array(POINTS)),
        p.log_prob(array(POINTS)),
        rtol=by_dtype(1e-4, 1e-9),
    )


@pytest.mark.parametrize("n_components", [1, 2, 3])
def test_reduction_keeps_mean_and_covariance(storage_type, n_components):
    mixture = mixture_of(storage_type)
    fewer = jg.reduce(mixture, n_components)
    assert fewer.n_components == n_components
    assert_close(jnp.sum(fewer.weights), 1)
    assert_close(fewer.mean(), mixture.mean())
    assert_close(fewer.covariance_matrix(), mixture.covariance_matrix())


def merged(weights, means, covariances, i, j):
    """Two components in one, as in a textbook."""
    total = weights[i] + weights[j]
    mean = (weights[i] * means[i] + weights[j] * means[j]) / total
    parts = [
        weights[k] / total * (covariances[k] + np.outer(means[k] - mean, means[k] - mean))
        for k in (i, j)
    ]
    return total, mean, sum(parts)


def reduced_by_hand(mixture, n_components):
    """Runnalls' algorithm, pair by pair."""
    parts = [list(double(a)) for a in (mixture.weights, mixture.means, mixture.covariances)]
    while len(parts[0]) > n_components:

        def cost(pair, parts=parts):
            total, _, covariance = merged(*parts, *pair)
            log_dets = [np.linalg.slogdet(parts[2][k])[1] for k in pair]
            shares = [parts[0][k] for k in pair]
            return total * np.linalg.slogdet(covariance)[1] - np.dot(shares, log_dets)

        i, j = min(itertools.combinations(range(len(parts[0])), 2), key=cost)
        for values, value in zip(parts, merged(*parts, i, j), strict=True):
            values[i] = value
            del values[j]
    return [np.array(part) for part in parts]


@pytest.mark.parametrize("seed", range(3))
def test_reduction_merges_what_costs_least(seed):
    random = np.random.default_rng(seed)
    roots = random.normal(size=(7, 2, 2)) + 2 * np.eye(2)
    weights = random.dirichlet(np.ones(7))
    covariances = roots @ np.swapaxes(roots, 1, 2)
    mixture = jg.GaussianMixture.create(
        array(weights), array(6 * random.normal(size=(7, 2))), array(covariances)
    )
    fewer = jg.reduce(mixture, 3)
    weights, means, covariances = reduced_by_hand(mixture, 3)
    assert_close(fewer.weights, weights)
    assert_close(fewer.means, means)
    assert_close(fewer.covariances, covariances)


def test_components_without_weight_go_first():
    mixture = jg.GaussianMixture(
        jnp.log(array([0.5, 0.0, 0.5])), array([[0.0], [3.0], [9.0]]), jg.Diagonal(array([[1.0]]))
    )
    fewer = jg.reduce(mixture, 2)
    assert_close(fewer.means, [[0.0], [9.0]])
    slope = jax.grad(lambda m: jnp.sum(jg.reduce(m, 1).covariances))(mixture)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_gradient_of_a_reduction_is_that_of_the_moments():
    mixture = mixture_of("full")

    def number(mixture, how):
        one = how(mixture)
        return jnp.sum(jnp.sin(one.mean())) + jnp.sum(jnp.cos(one.covariance_matrix()))

    actual = jax.grad(number)(mixture, lambda mixture: jg.reduce(mixture, 1))
    expected = jax.grad(number)(mixture, lambda mixture: mixture)
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        lower = np.tril(np.ones(one.shape[-2:])) if one.ndim == 3 else 1
        assert_close(double(one) * lower, double(other) * lower, atol=by_dtype(1e-3, 1e-11))


def test_matching_undoes_any_order(covariance_type):
    mixture = mixture_of(covariance_type)
    for order in itertools.permutations(range(3)):
        index = np.array(order)
        other = jax.tree.map(lambda leaf, i=index: leaf[i] if leaf.shape[0] == 3 else leaf, mixture)
        same = jg.match(mixture, other)
        for one, another in zip(*map(jax.tree.leaves, (same, mixture)), strict=True):
            assert_close(one, another, atol=0)


def test_matching_is_the_best_of_all_orders():
    random = np.random.default_rng(1)
    for _ in range(5):
        means = random.normal(size=(2, 5, 1)) * 3
        p, q = (
            jg.GaussianMixture.create([0.2] * 5, array(m), array([1.0] * 5), "spherical")
            for m in means
        )
        matched = double(jg.match(p, q).means)
        best = min(
            itertools.permutations(range(5)),
            key=lambda order: np.sum((means[0] - means[1][list(order)]) ** 2),
        )
        assert_close(
            np.sum((means[0] - matched) ** 2), np.sum((means[0] - means[1][list(best)]) ** 2)
        )


def test_matching_works_in_batches():
    p, q = mixture_of("diag"), shifted("diag", 0.1)
    swapped = jax.tree.map(lambda leaf: leaf[::-1], q)
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), q, swapped)
    found = jax.vmap(jg.match, in_axes=(None, 0))(p, batch)
    assert_close(found[0].means, found[1].means)
    assert_close(found[0].means, jg.match(p, q).means)


def test_errors_say_what_does_not_fit():
    p = mixture_of("full")
    with pytest.raises(ValueError, match="same features, got 4 and 2"):
        jg.product(p, jg.marginal(p, [0, 1]))
    with pytest.raises(ValueError, match="at most 3"):
        jg.reduce(p, 4)
    with pytest.raises(ValueError, match="n_components must be an integer of at least 1"):
        jg.reduce(p, 0)
    with pytest.raises(ValueError, match="as many components, got 3 and 2; see reduce"):
        jg.match(p, jg.reduce(p, 2))
    batch = jax.tree.map(lambda leaf: leaf[None], p)
    with pytest.raises(ValueError, match=r"use jax\.vmap"):
        jg.match(p, batch)


def product_by_hand(p, q):
    """Log-weights, means and covariances of all pairs, with dense matrices in float64."""
    parts = []
    for (w1, m1, c1), (w2, m2, c2) in itertools.product(
        *(zip(double(m.log_weights), double(m.means), factors_of(m), strict=True) for m in (p, q))
    ):
        c1, c2 = c1 @ c1.T, c2 @ c2.T
        gain = np.linalg.solve(c1 + c2, c1).T
        apart = m2 - m1
        square = apart @ np.linalg.solve(c1 + c2, apart)
        log_det = np.linalg.slogdet(2 * np.pi * (c1 + c2))[1]
        # By precisions, as differences would lose what is narrow beside what is wide.
        covariance = np.linalg.inv(np.linalg.inv(c1) + np.linalg.inv(c2))
        parts.append((w1 + w2 - (square + log_det) / 2, m1 + gain @ apart, covariance))
    log_weights, means, covariances = map(np.array, zip(*parts, strict=True))
    top = log_weights.max()
    log_weights -= top + np.log(np.exp(log_weights - top).sum())
    return log_weights, means, covariances


def factors_of(mixture):
    """Exactly those that the mixture has."""
    return double(mixture.covariance.scale_tril)


@pytest.mark.parametrize("apart", [1.0, 1000.0])
@pytest.mark.parametrize("widths", [(1.0, 1.0), (1e-3, 1.0), (1.0, 1e-3), (1e-6, 1e-6)])
def test_product_is_that_of_dense_matrices(widths, apart):
    """Also of narrow components with wide ones, and where overlaps are far below 1."""
    random = np.random.default_rng(7)
    p, q = (
        jg.GaussianMixture(
            array(np.log(random.dirichlet(np.ones(3)))),
            array(random.normal(size=(3, 4)) + offset),
            jg.Full(array(width * np.linalg.cholesky(roots @ np.swapaxes(roots, 1, 2)))),
        )
        for width, offset, roots in zip(
            widths, (0.0, apart), random.normal(size=(2, 3, 4, 4)) + 2 * np.eye(4), strict=True
        )
    )
    both = jg.product(p, q)
    log_weights, means, covariances = product_by_hand(p, q)
    largest = max(1, np.abs(log_weights).max())
    # In float64 the formulas with matrices are not as exact themselves.
    tolerance = by_dtype(50 * EPS, 1e-12) * largest
    assert_close(both.log_weights, log_weights, rtol=0, atol=tolerance)
    for k, covariance in enumerate(covariances):
        whiten = np.linalg.inv(np.linalg.cholesky(covariance))
        factor = double(both.covariance.scale_tril)[k]
        error = whiten @ factor @ factor.T @ whiten.T - np.eye(4)
        assert np.abs(error).max() < by_dtype(3e-5, 1e-10)
        error = np.abs(double(both.means)[k] - means[k]).max()
        assert error < by_dtype(300 * EPS, 1e-12) * (1 + apart)
