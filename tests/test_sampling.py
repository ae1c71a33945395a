"""Draws move with the parameters as their distribution does."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, assert_close, blobs, by_dtype, double, start_from_labels
from jax.flatten_util import ravel_pytree

import jaxgmm as jg
from jaxgmm.coordinates import Coordinates

N_DRAWS = 20_000


def second_moment(mixture):
    """E x₁ x₂ and E x₁, exactly."""
    dense = mixture.covariance_matrix()
    mean = mixture.mean()
    return dense[0, 1] + mean[0] * mean[1] + mean[0]


def test_derivatives_of_averages_are_those_of_expectations(covariance_type, key):
    """With respect to all parameters, weights included, within five standard errors."""
    coordinates = jg.unconstrain(start_from_labels(blobs(), covariance_type))

    def number_of(row):
        return row[0] * row[1] + row[0]

    def each(coordinates: Coordinates):
        draws = jg.constrain(coordinates).sample(key, N_DRAWS, differentiable_weights=True)
        return jax.vmap(number_of)(draws)

    for seed in range(3):
        vector, unravel = ravel_pytree(coordinates)
        direction = unravel(array(np.random.default_rng(seed).normal(size=vector.shape)))
        slopes = jax.jit(lambda c, d: jax.jvp(each, (c,), (d,))[1])(coordinates, direction)
        exact = jax.jvp(lambda c: second_moment(jg.constrain(c)), (coordinates,), (direction,))[1]
        error = double(slopes).std() / N_DRAWS**0.5
        assert abs(double(slopes).mean() - float(exact)) < 5 * error


def test_weights_alone_move_draws_only_where_asked(key):
    mixture = start_from_labels(blobs(), "full")

    def average(log_weights, **options):
        moved = replace(mixture, log_weights=jax.nn.log_softmax(log_weights))
        return jnp.mean(moved.sample(key, 500, **options))

    slope = jax.grad(average)
    assert not double(slope(mixture.log_weights)).any()
    assert double(slope(mixture.log_weights, differentiable_weights=True)).all()


def test_draws_are_the_same_either_way(key):
    mixture = start_from_labels(blobs(), "diag")
    plain, labels = mixture.sample(key, 50, return_labels=True)
    moving, same = mixture.sample(key, 50, return_labels=True, differentiable_weights=True)
    np.testing.assert_array_equal(plain, moving)
    np.testing.assert_array_equal(labels, same)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_a_single_component_moves_as_its_parameters_do(covariance_type, key):
    """There both ways agree, draw by draw."""
    x = blobs()
    mixture = jg.fit(key, array(x), 1, covariance_type=covariance_type).mixture
    coordinates = jg.unconstrain(mixture)

    def draws(coordinates, way):
        return jg.constrain(coordinates).sample(key, 30, differentiable_weights=way)

    direction = jax.tree.map(jnp.ones_like, coordinates)
    ours, theirs = (
        jax.jvp(lambda c, way=way: draws(c, way), (coordinates,), (direction,))[1]
        for way in (True, False)
    )
    assert_close(ours, theirs, 0, by_dtype(1e-3, 1e-9))


def test_components_without_weight_leave_derivatives_finite(key):
    mixture = start_from_labels(blobs(), "diag")
    dead = replace(mixture, log_weights=array([-np.inf, np.log(0.4), np.log(0.6)]))
    slope = jax.grad(lambda m: jnp.sum(m.sample(key, 40, differentiable_weights=True)))(dead)
    assert all(np.isfinite(double(leaf)).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("log_weights", [[0.0, np.nan], [-np.inf, -np.inf]])
def test_weights_that_are_no_distribution_make_no_rows(key, log_weights):
    whole = jg.GaussianMixture.create([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0], "spherical")
    broken = replace(whole, log_weights=array(log_weights))
    assert np.isnan(broken.sample(key, 5)).all()
