"""The E-step in one launch gives what two matrix products give, interpreted step by step."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgmm as jg
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.kernels.em_pass import plan_of
from jaxgmm.kernels.launching import INTERPRETED
from jaxgmm.steps import products
from jaxgmm.steps.features import PRODUCTS, features_for
from jaxgmm.steps.forms import extent_of
from jaxgmm.steps.products import kernel_plan, statistics_by_products
from jaxgmm.steps.rows import Rows, standardization_of

pytestmark = pytest.mark.once

NAMES = ("log_likelihood", "count", "first", "second")


def float32(values):
    return jnp.asarray(values, jnp.float32)


def mixture_with(n_features, n_components, covariance_type, seed=0):
    """Wide components about the origin, of the storage of a type."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40 * n_components, n_features))
    shares = rng.dirichlet(np.full(n_components, 0.3), size=len(x))
    statistics = jg.accumulate(float32(x), float32(shares), covariance_type=covariance_type)
    return jg.m_step(statistics, covariance_type)


def rows_with(n_rows, n_features, seed=0):
    """Far from zero, in units of their own; every seventh is nothing."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 2, size=n_rows)
    weights[3::7] = 0
    x = 1e3 + 30 * rng.normal(size=(n_rows, n_features))
    x[3::7] = np.nan
    x, weights = float32(x), float32(weights)
    return Rows(standardization_of(x, weights, isotropic=False), x, weights)


def assert_same_statistics(actual, expected):
    """But for the rounding of sums over rows whose coordinates are about 1."""
    tolerance = 3e-6 * np.sum(np.abs(expected.count))
    for name in NAMES:
        ours, theirs = (np.asarray(getattr(of, name), np.float64) for of in (actual, expected))
        size = max(1, np.max(np.abs(theirs)) / np.sum(np.abs(expected.count)))
        assert np.max(np.abs(ours - theirs)) <= tolerance * size, name


SHAPES = {
    "one of each": (90, 1, 1),
    "fewer rows than a tile": (10, 3, 2),
    "a block of coordinates": (400, 8, 5),
    "some blocks": (300, 19, 3),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_statistics_are_those_of_products(kernels, covariance_type, shape):
    n_rows, n_features, n_components = SHAPES[shape]
    rows = rows_with(n_rows, n_features)
    mixture = mixture_with(n_features, n_components, covariance_type)
    structure = STRUCTURES[covariance_type]
    kernels(None)
    extent = extent_of(rows, n_components, structure)
    origin = None if structure.stores_one else float32(np.full(n_features, 0.1))
    statistics = partial(
        statistics_by_products,
        rows,
        mixture,
        structure.full_second_moment,
        extent.second_moment,
        origin=origin,
    )
    expected = statistics()
    kernels(INTERPRETED)
    assert kernel_plan(rows, n_components, features_for(mixture, structure.full_second_moment))
    assert_same_statistics(statistics(), expected)


def test_several_programs_share_the_features(kernels):
    """Where all sums are more than the registers of one hold."""
    assert plan_of(32, 64, 2).n_groups == 3
    rows, mixture = rows_with(150, 32), mixture_with(32, 64, "full")
    kernels(None)
    expected = statistics_by_products(rows, mixture, True, None)
    kernels(INTERPRETED)
    assert_same_statistics(statistics_by_products(rows, mixture, True, None), expected)


def test_more_rows_than_a_launch_takes(kernels, monkeypatch):
    rows, mixture = rows_with(450, 4), mixture_with(4, 3, "full")
    kernels(None)
    expected = statistics_by_products(rows, mixture, True, None)
    kernels(INTERPRETED)
    monkeypatch.setattr(products, "LONGEST_LAUNCH", 100)
    assert_same_statistics(statistics_by_products(rows, mixture, True, None), expected)


def test_dead_components_have_no_rows(kernels):
    kernels(INTERPRETED)
    rows, mixture = rows_with(100, 3), mixture_with(3, 4, "full")
    with_dead = jg.GaussianMixture(
        mixture.log_weights.at[1].set(-jnp.inf), mixture.means, mixture.covariance
    )
    found = statistics_by_products(rows, with_dead, True, None)
    assert found.count[1] == 0 and np.isfinite(found.log_likelihood)
    assert not np.any(found.first[1]) and not np.any(found.second[1])


def test_tangents_are_those_of_products(kernels):
    rows, mixture = rows_with(100, 3), mixture_with(3, 2, "full")
    moved = jax.tree.map(jnp.ones_like, mixture)

    def statistics(mixture):
        return statistics_by_products(rows, mixture, True, None)

    kernels(None)
    _, expected = jax.jvp(statistics, (mixture,), (moved,))
    kernels(INTERPRETED)
    _, actual = jax.jvp(statistics, (mixture,), (moved,))
    assert_same_statistics(actual, expected)


def test_what_is_made_otherwise(kernels):
    """Too many features for the components, priors, and float64."""
    assert plan_of(64, 64, 2) is None and plan_of(8, 4096, 2) is None
    rows = rows_with(20, 2)
    kernels(INTERPRETED)
    assert kernel_plan(rows, 2, PRODUCTS) is not None
    assert kernel_plan(rows._replace(log_prior=jnp.zeros((20, 2))), 2, PRODUCTS) is None
    if jax.config.jax_enable_x64:
        assert kernel_plan(rows._replace(x=rows.x.astype(float)), 2, PRODUCTS) is None
    kernels(None)
    assert kernel_plan(rows, 2, PRODUCTS) is None


def fits():
    """Functions of x (N, D) and a start."""
    yield "em", lambda x, start: jg.em(start, x)
    yield "grad", jax.grad(lambda x, start: jg.em(start, x).log_likelihood)
    yield "polish", lambda x, start: jg.em(start, x, polish=True)
    yield "e_step", lambda x, start: jg.e_step(start, x)
    yield "batch", lambda x, start: jax.vmap(lambda x: jg.em(start, x))(jnp.stack([x, 2 * x]))

    def in_shard_map(x, start):
        mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec("i")
        own = partial(jg.em, axis_name="i")
        spread = jax.shard_map(
            lambda x: own(start, x),
            mesh=mesh,
            in_specs=spec,
            out_specs=jax.sharding.PartitionSpec(),
        )
        return spread(x)

    yield "shard_map", in_shard_map


@pytest.mark.parametrize("name", dict(fits()))
def test_fits_are_as_without_kernels(kernels, name):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    x = float32(rng.normal(size=(300, 2)) + 4 * np.eye(3)[labels][:, :2])
    start = mixture_with(2, 3, "full")
    function = dict(fits())[name]
    kernels(None)
    expected = function(x, start)
    kernels(INTERPRETED)
    actual = function(x, start)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        size = max(1e-3, np.max(np.abs(theirs[np.isfinite(theirs)]), initial=0))
        assert np.allclose(ours, theirs, rtol=0, atol=3e-3 * size, equal_nan=True)
