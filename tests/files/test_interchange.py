"""Mixtures that come from other libraries, and go to them, have the same density."""

import jax
import numpy as np
import pytest
from helpers import DTYPE, array, assert_close, blobs, by_dtype, double
from known_mixtures import mixture_of
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

import jaxgmm as jg

POINTS = np.random.default_rng(0).normal(size=(50, 4)) * 2


def in_running_dtype(estimator):
    for name in ("weights_", "means_", "covariances_"):
        setattr(estimator, name, getattr(estimator, name).astype(DTYPE))


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_mixture_of_an_estimator_has_its_density(covariance_type):
    x = blobs().astype(DTYPE)
    estimator = GaussianMixture(3, covariance_type=covariance_type, random_state=0).fit(x)
    in_running_dtype(estimator)
    mixture = jg.from_sklearn(estimator)
    assert mixture.covariance_type == covariance_type
    expected = estimator.score_samples(x)
    assert_close(mixture.log_prob(array(x)), expected, atol=by_dtype(1e-3, 1e-9))


def test_mixture_of_a_bayesian_estimator_has_its_parameters():
    estimator = BayesianGaussianMixture(n_components=3, random_state=0).fit(blobs().astype(DTYPE))
    in_running_dtype(estimator)
    mixture = jg.from_sklearn(estimator)
    assert_close(mixture.weights, estimator.weights_)
    assert_close(mixture.means, estimator.means_)
    assert_close(mixture.covariances, estimator.covariances_)


def test_estimator_of_a_mixture_has_its_density(covariance_type):
    mixture = mixture_of(covariance_type)
    estimator = jg.to_sklearn(mixture)
    points = double(array(POINTS))
    assert_close(estimator.score_samples(points), mixture.log_prob(array(POINTS)))
    assert_close(estimator.predict_proba(points), mixture.responsibilities(array(POINTS)))
    draws, _ = estimator.sample(10)
    assert draws.shape == (10, 4)


def test_there_and_back_is_the_same_mixture(covariance_type):
    mixture = mixture_of(covariance_type)
    estimator = jg.to_sklearn(mixture)
    in_running_dtype(estimator)
    back = jg.from_sklearn(estimator)
    assert_close(back.covariances, mixture.covariances)
    assert_close(back.means, mixture.means)
    assert_close(back.weights, mixture.weights)


def test_distribution_of_numpyro_has_the_same_density(covariance_type, key):
    pytest.importorskip("numpyro")
    mixture = mixture_of(covariance_type)
    points = array(POINTS)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        distribution = jg.to_numpyro(mixture)
        found = distribution.log_prob(points)
        draws = distribution.sample(key, (7,))
        slope = jax.grad(lambda m: jg.to_numpyro(m).log_prob(points).sum())(mixture)
    assert_close(found, mixture.log_prob(points))
    assert draws.shape == (7, 4)
    expected = jax.grad(lambda m: m.log_prob(points).sum())(mixture)
    assert_close(slope.means, expected.means, rtol=by_dtype(1e-3, 1e-9))


def test_errors_say_what_is_expected():
    with pytest.raises(TypeError, match="of scikit-learn, got list"):
        jg.from_sklearn([])
    with pytest.raises(ValueError, match="fit it first"):
        jg.from_sklearn(GaussianMixture(2))
    batch = jax.tree.map(lambda leaf: leaf[None], mixture_of("full"))
    with pytest.raises(ValueError, match=r"use jax\.vmap"):
        jg.to_sklearn(batch)
    with pytest.raises(ValueError, match=r"use jax\.vmap"):
        jg.to_numpyro(batch)
