"""Mixtures as unconstrained numbers, and back."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, EPS, K, array, assert_close, blobs, double, start_from_labels
from jax.flatten_util import ravel_pytree

import jaxgmm as jg
from jaxgmm.covariances.structures import structure_named
from jaxgmm.solvers.tangent import retraction, zero_tangent


def test_there_and_back_is_the_same_mixture(covariance_type):
    mixture = start_from_labels(blobs(), covariance_type)
    back = jg.constrain(jg.unconstrain(mixture))
    assert jax.tree.structure(back) == jax.tree.structure(mixture)
    for ours, theirs in zip(jax.tree.leaves(back), jax.tree.leaves(mixture), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=8 * EPS)


def test_there_are_as_many_coordinates_as_free_parameters(covariance_type):
    mixture = start_from_labels(blobs(), covariance_type)
    vector, _ = ravel_pytree(jg.unconstrain(mixture))
    assert vector.size == jg.n_parameters(mixture)


def test_any_numbers_are_a_mixture(covariance_type, key):
    vector, unravel = ravel_pytree(jg.unconstrain(start_from_labels(blobs(), covariance_type)))
    mixture = jg.constrain(unravel(3 * jax.random.normal(key, vector.shape, DTYPE)))
    np.testing.assert_allclose(jnp.sum(mixture.weights), 1, rtol=10 * EPS)
    assert (np.linalg.eigvalsh(double(mixture.covariances)) > 0).all()


def test_coordinates_of_a_batch_go_through_vmap():
    mixtures = [start_from_labels(blobs(seed=seed), "full") for seed in range(2)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixtures)
    back = jax.vmap(jg.constrain)(jax.vmap(jg.unconstrain)(batch))
    assert_close(back[1].means, mixtures[1].means)
    with pytest.raises(ValueError, match="vmap"):
        jg.unconstrain(batch)
    with pytest.raises(ValueError, match="vmap"):
        jg.constrain(jax.vmap(jg.unconstrain)(batch))


def test_only_coordinates_are_constrained():
    with pytest.raises(TypeError, match="coordinates"):
        jg.constrain(start_from_labels(blobs(), "full"))


def chart_of(mixture):
    return structure_named(mixture.covariance_type).chart


def test_no_step_around_a_mixture_is_that_mixture(covariance_type):
    mixture = start_from_labels(blobs(), covariance_type)
    same = retraction(mixture, zero_tangent(mixture, chart_of(mixture)))
    for ours, theirs in zip(jax.tree.leaves(same), jax.tree.leaves(mixture), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=4 * EPS, atol=4 * EPS)


def test_completed_data_have_unit_information_around_a_mixture(covariance_type):
    """The Fisher information of rows with their component: draws aren't needed, formulas are."""
    mixture = start_from_labels(blobs(), covariance_type)
    origin, unravel = ravel_pytree(zero_tangent(mixture, chart_of(mixture)))

    def divergence(step):
        moved = retraction(mixture, unravel(step))
        shift = moved.means - mixture.means
        total = jnp.sum(mixture.weights * (mixture.log_weights - moved.log_weights))
        for k in range(K):
            precision = jnp.linalg.inv(moved.covariances[k])
            trace = jnp.trace(precision @ mixture.covariances[k])
            log_det = jnp.linalg.slogdet(moved.covariances[k])[1]
            own = jnp.linalg.slogdet(mixture.covariances[k])[1]
            square = shift[k] @ precision @ shift[k]
            total += mixture.weights[k] * (trace + square - 2 + log_det - own) / 2
        return total

    information = jax.jit(jax.hessian(divergence))(origin)
    np.testing.assert_allclose(information, np.eye(origin.size), atol=1e4 * EPS)


def test_a_component_without_weight_stays_where_it_is():
    mixture = start_from_labels(blobs(), "diag")
    dead = replace(mixture, log_weights=array([-np.inf, np.log(0.4), np.log(0.6)]))
    step = jax.tree.map(jnp.ones_like, zero_tangent(dead, chart_of(dead)))
    moved = retraction(dead, step)
    assert moved.weights[0] == 0
    np.testing.assert_array_equal(moved.means[0], dead.means[0])
    assert np.isfinite(double(moved.means)).all()
