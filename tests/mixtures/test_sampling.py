"""Draws move with the parameters as their distribution does."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DTYPE,
    array,
    assert_close,
    blobs,
    by_dtype,
    double,
    set_budget,
    start_from_labels,
)
from jax.flatten_util import ravel_pytree

import jaxgmm as jg
from jaxgmm.arrays.budgets import CPU
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.mixtures.parameters import Coordinates
from jaxgmm.mixtures.sampling import COMPARED, draw_labels

N_DRAWS = 20_000


def second_moment(mixture):
    """E x₁ x₂ and E x₁, exactly."""
    dense = mixture.covariance_matrix()
    mean = mixture.mean()
    return dense[0, 1] + mean[0] * mean[1] + mean[0]


def test_derivatives_of_averages_are_those_of_expectations(storage_type, key):
    """With respect to all parameters, weights included, within five standard errors."""
    coordinates = jg.unconstrain(start_from_labels(blobs(), storage_type))

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


def line_of(weights):
    """Components a unit apart, of almost no width."""
    weights = np.asarray(weights)
    return jg.GaussianMixture(
        jnp.log(array(weights)),
        array(np.arange(weights.size))[:, None],
        jg.Spherical(array([1e-3])),
    )


@pytest.mark.parametrize("n_components", [5, COMPARED + 1, 3000])
def test_labels_are_drawn_as_often_as_weights_say(n_components, key):
    """By a chi-square of all counts, within five standard deviations; weights may sum to less."""
    weights = np.random.default_rng(0).dirichlet(np.ones(n_components))
    n = 1_000_000
    labels = jax.jit(draw_labels, static_argnums=2)(array(0.7 * weights), key, n)
    expected = n * double(array(weights))
    counts = np.bincount(np.asarray(labels), minlength=n_components)
    assert counts.size == n_components
    often = expected > 5
    groups = [np.append(c[often], c[~often].sum()) for c in (counts, expected)]
    square = np.sum((groups[0] - groups[1]) ** 2 / np.maximum(groups[1], 1))
    degrees = groups[0].size - 1
    assert abs(square - degrees) < 5 * np.sqrt(2 * degrees) + 1


def test_tiny_weights_have_their_part_wherever_they_stand(key):
    """A thousand in the middle, where floats of 32 bits are three times as far apart."""
    n_tiny, n, each = 1000, 4_000_000, 2e-8
    tiny = np.full(n_tiny, each)
    weights = np.concatenate([[0.5 - tiny.sum() / 2], tiny, [0.5 - tiny.sum() / 2]])
    labels = np.asarray(jax.jit(draw_labels, static_argnums=2)(array(weights), key, n))
    of_tiny = labels[(labels > 0) & (labels <= n_tiny)]
    expected = n * tiny.sum()
    assert abs(of_tiny.size - expected) < 5 * np.sqrt(expected)
    # Of those drawn, hardly two are of the same component.
    assert np.unique(of_tiny).size > 0.8 * of_tiny.size


def test_components_without_weight_are_never_drawn(key):
    weights = np.random.default_rng(2).dirichlet(np.ones(200))
    weights[::2] = 0
    mixture = line_of(weights / weights.sum())
    x, labels = mixture.sample(key, 100_000, return_labels=True)
    assert (np.asarray(labels) % 2 == 1).all()
    assert np.abs(double(x)[:, 0] - np.asarray(labels)).max() < 0.1
    single = line_of([0.0, 1.0, 0.0]).sample(key, 1000, return_labels=True)[1]
    assert (np.asarray(single) == 1).all()


def test_labels_of_rows_are_in_no_order(key):
    """As independent draws: neighbours are as often the same as chance has it."""
    labels = np.asarray(draw_labels(array(np.full(4, 0.25)), key, 100_000))
    assert abs(np.mean(labels[1:] == labels[:-1]) - 0.25) < 0.01


def test_batches_are_drawn_as_one_by_one(key):
    keys = jax.random.split(key, 2)
    weights = array(np.random.default_rng(3).dirichlet(np.ones(20), size=2))
    together = jax.vmap(lambda w, key: draw_labels(w, key, 50))(weights, keys)
    each = [draw_labels(weights[b], keys[b], 50) for b in range(2)]
    np.testing.assert_array_equal(together, np.stack(each))


def test_memory_for_draws_is_that_of_the_draws(storage_type, key):
    """Some numbers for each, however many the components; with all derivatives, too."""
    n_components, n_features, n = 2000, 4, 100_000
    shape = STRUCTURES[storage_type].shape(n_components, n_features)
    identity = np.eye(n_features)
    variances = array(np.broadcast_to(identity if shape[-2:] == identity.shape else 1.0, shape))
    weights = np.full(n_components, 1 / n_components)
    means = array(np.zeros((n_components, n_features)))
    mixture = jg.GaussianMixture.create(array(weights), means, variances, storage_type)
    bound = (20 * n * n_features + 4 * n_components * n_features**2) * DTYPE.itemsize

    def total(mixture, way):
        return jnp.sum(mixture.sample(key, n, differentiable_weights=way) ** 2)

    draws = jax.jit(lambda mixture: mixture.sample(key, n, return_labels=True))
    slope = jax.jit(jax.grad(total), static_argnums=1)
    for lowered in (draws.lower(mixture), slope.lower(mixture, False)):
        assert lowered.compile().memory_analysis().temp_size_in_bytes < bound
    found = slope.lower(mixture, True).compile().memory_analysis().temp_size_in_bytes
    assert found < bound + 24 * CPU.block * DTYPE.itemsize


def test_draws_in_blocks_move_as_all_at_once(storage_type, monkeypatch, key):
    mixture = start_from_labels(blobs(), storage_type)

    def total(mixture):
        return jnp.sum(jnp.sin(mixture.sample(key, 50, differentiable_weights=True)))

    whole = jax.jit(jax.grad(total))(mixture)
    set_budget(monkeypatch, block=16 * mixture.means.size * 2)
    blocks = jax.jit(jax.grad(lambda mixture: total(mixture)))(mixture)
    for one, two in zip(*map(jax.tree.leaves, (whole, blocks)), strict=True):
        # Sums of cosines over draws, which cancel in part.
        assert_close(two, one, rtol=by_dtype(1e-4, 1e-11), atol=by_dtype(1e-4, 1e-11))
