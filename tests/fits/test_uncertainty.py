"""Information and standard errors."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, assert_close, blobs, by_dtype, double, start_from_labels
from jax.flatten_util import ravel_pytree

import jaxgmm as jg
from jaxgmm.files.tables import old_faithful

X = blobs(width=1.5)


def fitted(covariance_type):
    """The maximum, nothing less."""
    start = start_from_labels(X, covariance_type)
    return jg.em(start, array(X), polish=True, history=False).mixture


def test_a_single_gaussian_has_the_errors_of_the_textbook():
    x = array(X)
    mixture = jg.fit(jax.random.key(0), x, 1, covariance_type="diag").mixture
    errors = jg.standard_errors(mixture, x, kind="information")
    deviation = double(X).std(axis=0)
    assert_close(errors.weights, [0.0], 0, 1e-6)
    np.testing.assert_allclose(errors.means[0], deviation / len(X) ** 0.5, rtol=1e-4)
    of_variance = deviation**2 * (2 / len(X)) ** 0.5
    np.testing.assert_allclose(errors.covariances[0], of_variance, rtol=1e-4)
    sandwich = jg.standard_errors(mixture, x)
    fourth = ((double(X) - double(X).mean(axis=0)) ** 4).mean(axis=0)
    expected = np.sqrt((fourth - deviation**4) / len(X))
    np.testing.assert_allclose(sandwich.covariances[0], expected, rtol=1e-3)


def test_information_is_the_negative_hessian(storage_type):
    mixture = fitted(storage_type)
    vector, unravel = ravel_pytree(jg.unconstrain(mixture))

    def log_likelihood(vector):
        return jnp.sum(jg.constrain(unravel(vector)).log_prob(array(X)))

    expected = -jax.jit(jax.hessian(log_likelihood))(vector)
    information = jg.observed_information(mixture, array(X))
    scale = float(jnp.max(jnp.abs(expected)))
    assert_close(information, expected, 0, by_dtype(1e-3, 1e-9) * scale)
    np.testing.assert_array_equal(information, information.T)


def test_errors_have_the_shapes_of_what_people_write_down(covariance_type):
    mixture = fitted(covariance_type)
    errors = jg.standard_errors(mixture, array(X))
    assert errors.weights.shape == (3,) and errors.means.shape == (3, 2)
    shapes = {
        "full": (3, 2, 2),
        "tied": (2, 2),
        "diag": (3, 2),
        "spherical": (3,),
        "tied_diag": (2,),
        "tied_spherical": (),
    }
    assert errors.covariances.shape == shapes[covariance_type]
    assert all((double(leaf) > 0).all() for leaf in jax.tree.leaves(errors))


def test_errors_scale_with_the_data_and_with_repetition():
    mixture = fitted("full")
    errors = jg.standard_errors(mixture, array(X))
    matrix = np.diag([1e3, 1e-2])
    scaled = jg.GaussianMixture.create(
        mixture.weights,
        array(double(mixture.means) @ matrix + 7),
        array(matrix @ double(mixture.covariances) @ matrix),
    )
    of_scaled = jg.standard_errors(scaled, array(double(X) @ matrix + 7))
    np.testing.assert_allclose(of_scaled.means, errors.means @ matrix, rtol=by_dtype(2e-2, 1e-6))
    twice = jg.standard_errors(mixture, array(X), array(np.full(len(X), 2.0)))
    repeated = jg.standard_errors(mixture, array(np.repeat(X, 2, axis=0)))
    np.testing.assert_allclose(twice.means, repeated.means, rtol=by_dtype(1e-3, 1e-8))
    np.testing.assert_allclose(twice.means, errors.means / 2**0.5, rtol=by_dtype(1e-3, 1e-8))


def test_one_component_too_many_has_no_errors():
    x = array(np.random.default_rng(1).normal(size=(60, 2)))
    mixture = jg.fit(jax.random.key(3), x, 4).mixture
    with pytest.warns(RuntimeWarning, match="fewer components"):
        errors = jg.standard_errors(mixture, x)
    assert np.isnan(double(errors.means)).all()


def test_under_jit_nothing_is_said():
    x = array(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        errors = jax.jit(jg.standard_errors)(fitted("diag"), x)
    assert_close(errors.means, jg.standard_errors(fitted("diag"), x).means, 1e-3)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="sandwich"):
        jg.standard_errors(start_from_labels(X, "diag"), array(X), kind="bootstrap")


def test_errors_on_old_faithful_are_those_of_the_bootstrap():
    x = array(old_faithful()[1])
    mixture = jg.fit(jax.random.key(0), x, 2, n_init=5).mixture
    errors = jg.standard_errors(mixture, x)
    shares = np.ones(len(x)) / len(x)
    counts = np.random.default_rng(0).multinomial(len(x), shares, size=500)
    starts = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (500, *leaf.shape)), mixture)
    replicates = jg.fit_batch(jax.random.key(1), x, 2, weights=array(counts), init=starts).mixture

    def spread(values):
        center = np.median(double(values), axis=0)
        return 1.4826 * np.median(np.abs(double(values) - center), axis=0)

    np.testing.assert_allclose(errors.weights, spread(jnp.exp(replicates.log_weights)), rtol=0.15)
    np.testing.assert_allclose(errors.means, spread(replicates.means), rtol=0.15)
    covariances = jax.vmap(lambda mixture: mixture.covariances)(replicates)
    np.testing.assert_allclose(errors.covariances, spread(covariances), rtol=0.15)
