"""The prior of a Gaussian that a mixture implies, and what comes of it."""

import jax
import numpy as np
import pytest
from helpers import array, assert_close, blobs, by_dtype, double, start_from_labels

import jaxgmm as jg

X = blobs()
POINTS = X[:7]


def test_prior_is_that_of_its_definition(covariance_type):
    """Plain NumPy, row by row and component by component."""
    mixture = start_from_labels(X, covariance_type)
    prior = jg.niw_prior(mixture, array(POINTS), strength=5.0)
    weights, means = double(mixture.weights), double(mixture.means)
    covariances = double(mixture.covariances)
    shares = np.zeros(3)
    for row in double(POINTS):
        densities = np.zeros(3)
        for k in range(3):
            apart = row - means[k]
            square = apart @ np.linalg.inv(covariances[k]) @ apart
            densities[k] = weights[k] * np.exp(-square / 2)
            densities[k] /= np.sqrt(np.linalg.det(2 * np.pi * covariances[k]))
        shares += densities / densities.sum() / len(POINTS)
    mean = sum(shares[k] * means[k] for k in range(3))
    scatter = np.zeros((2, 2))
    for k in range(3):
        apart = means[k] - mean
        scatter += shares[k] * (covariances[k] + np.outer(apart, apart))
    assert_close(prior.mean, mean)
    assert_close(prior.scale, 5 * scatter)
    assert prior.mean_precision == 5 and prior.dof == 5 + 2 + 1
    assert_close(prior.expected_covariance(), scatter)


def test_posterior_is_that_of_its_definition():
    prior = jg.niw_prior(start_from_labels(X, "full"), array(POINTS), strength=2.0)
    rows = double(X[20:26])
    posterior = prior.posterior(array(rows))
    apart = rows.mean(axis=0) - double(prior.mean)
    centered = rows - rows.mean(axis=0)
    scale = double(prior.scale) + centered.T @ centered + 2 * 6 / (2 + 6) * np.outer(apart, apart)
    mean = (2 * double(prior.mean) + rows.sum(axis=0)) / (2 + 6)
    assert_close(posterior.scale, scale)
    assert_close(posterior.mean, mean)
    assert posterior.mean_precision == 8 and posterior.dof == 5 + 6


def test_rows_one_by_one_are_rows_together():
    prior = jg.niw_prior(start_from_labels(X, "full"), array(POINTS))
    together = prior.posterior(array(X[:10]))
    one_by_one = prior
    for row in X[:10]:
        one_by_one = one_by_one.posterior(array(row[None]))
    assert_close(one_by_one.scale, together.scale, by_dtype(1e-4, 1e-12))
    counted = prior.posterior(array(X[:2]), array([3.0, 0.0]))
    repeated = prior.posterior(array(X[[0, 0, 0]]))
    assert_close(counted.scale, repeated.scale)


def test_many_rows_overrule_the_prior():
    prior = jg.niw_prior(start_from_labels(X, "full"), array(POINTS), strength=0.1)
    gaussian = prior.posterior(array(np.tile(X, (50, 1)))).gaussian()
    assert_close(gaussian.mean(), double(X).mean(axis=0), 1e-2)
    assert_close(gaussian.covariance_matrix(), np.cov(double(X).T, bias=True), 1e-2)


def test_dynamics_are_the_regression_of_a_gaussian():
    random = np.random.default_rng(0)
    inputs = random.normal(size=(400, 3))
    matrix = np.array([[1.0, 0.5, -1.0], [0.0, 2.0, 0.3]])
    outputs = inputs @ matrix.T + [4.0, -2.0] + 0.1 * random.normal(size=(400, 2))
    x = array(np.concatenate([inputs, outputs], axis=1))
    mixture = jg.fit(jax.random.key(0), x, 2).mixture
    gaussian = jg.niw_prior(mixture, x, strength=1.0).posterior(x).gaussian()
    found, offset, noise = jg.linear_dynamics(gaussian, [0, 1, 2])
    assert_close(found, matrix, 0, 0.05)
    assert_close(offset, [4.0, -2.0], 0, 0.05)
    assert_close(noise, 0.01 * np.eye(2), 0, 0.005)
    mean, covariance = jg.regress(gaussian, [0, 1, 2], x[0, :3])
    assert_close(mean, double(found) @ double(x[0, :3]) + double(offset), 0, by_dtype(1e-4, 1e-10))
    assert_close(covariance, noise, 0, by_dtype(1e-4, 1e-10))


def test_priors_are_differentiable_and_batch():
    mixture = start_from_labels(X, "full")
    batch = array(np.stack([POINTS, POINTS + 1]))
    priors = jax.vmap(lambda x: jg.niw_prior(mixture, x))(batch)
    assert_close(priors.mean[1], jg.niw_prior(mixture, batch[1]).mean)
    slope = jax.grad(
        lambda strength: jg.niw_prior(mixture, batch[0], strength=strength).scale.sum()
    )
    expected = jg.niw_prior(mixture, batch[0]).scale.sum()
    assert_close(slope(array(2.0)), expected)


def test_what_makes_no_sense_is_refused():
    mixture = start_from_labels(X, "full")
    for strength in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            jg.niw_prior(mixture, array(POINTS), strength=strength)
    with pytest.raises(ValueError, match="must be"):
        jg.niw_prior(mixture, array(np.zeros((3, 5))))
    with pytest.raises(ValueError, match="one Gaussian"):
        jg.linear_dynamics(mixture, [0])
