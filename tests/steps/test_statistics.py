"""Sufficient statistics are small, and they add."""

import operator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import DTYPE, D, K, N, array, assert_close, blobs, double, start_from_labels

import jaxgmm as jg

pytestmark = pytest.mark.quick

FIELDS = ("log_likelihood", "count", "first", "second", "origin")


def assert_same_statistics(actual, expected, **tolerances):
    for field in FIELDS:
        assert_close(getattr(actual, field), getattr(expected, field), **tolerances)


def diagonal_if(second, like):
    return np.einsum("kii->ki", second) if like.ndim == 2 else second


@pytest.fixture
def statistics(covariance_type):
    x = blobs()
    return jg.e_step(start_from_labels(x, covariance_type), array(x))


def test_statistics_of_parts_add_to_those_of_the_whole(covariance_type, statistics):
    x = blobs()
    mixture = start_from_labels(x, covariance_type)
    first, second = x.copy(), x.copy()
    in_first = np.arange(N) < 33
    parts = [
        jg.e_step(mixture, array(part), array(weights.astype(float)))
        for part, weights in ((first, in_first), (second, ~in_first))
    ]
    assert_same_statistics(parts[0] + parts[1], statistics)


def test_addition_is_the_sum_over_a_list(statistics):
    assert_same_statistics(
        statistics + statistics + statistics,
        jg.SufficientStatistics(
            log_likelihood=3 * statistics.log_likelihood,
            count=3 * statistics.count,
            first=3 * statistics.first,
            second=3 * statistics.second,
            origin=statistics.origin,
        ),
    )


def test_statistics_about_different_origins_do_not_add(statistics):
    with pytest.raises(ValueError, match="origin"):
        statistics + statistics.about(statistics.origin + 1)


def test_sums_and_multiples_are_those_of_repeated_rows(statistics):
    x, weights = blobs(), np.full(N, 3.0)
    mixture = start_from_labels(x, "full")
    single = jg.e_step(mixture, array(x))
    thrice = jg.e_step(mixture, array(x), array(weights))
    assert_same_statistics(sum([single, single, single]), thrice)
    assert_same_statistics(3 * single, thrice)
    assert_same_statistics(single * np.float64(3), thrice)
    assert_same_statistics(jax.jit(operator.mul)(single, 3.0), thrice)
    assert (0.5 * statistics).count.dtype == DTYPE
    with pytest.raises(ValueError, match="scalar"):
        np.ones(2) * single
    with pytest.raises(TypeError):
        single + 1


def test_leaf_by_leaf_operations_leave_the_origin_alone(statistics):
    """Whatever is linear in the leaves is linear in the rows: means are never moved by it."""

    def averaged(kept, new):
        return jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, kept, new)

    def accumulated(kept, _):
        return jax.tree.map(jnp.add, kept, statistics), None

    nothing = jax.tree.map(jnp.zeros_like, statistics)
    psum = jax.vmap(lambda own: jax.lax.psum(own, "i"), axis_name="i", out_axes=None)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[statistics] * 3)
    for rate, found in (
        (2, jax.tree.map(jnp.add, statistics, statistics)),
        (0.3, jax.tree.map(lambda leaf: 0.3 * leaf, statistics)),
        (1, averaged(statistics, statistics)),
        (3, jax.lax.scan(accumulated, nothing, None, length=3)[0]),
        (3, psum(stacked)),
        (3, jax.tree.map(lambda leaf: leaf.sum(axis=0), stacked)),
    ):
        assert_same_statistics(found, rate * statistics)


def test_values_that_are_traced_add_about_any_origins(statistics):
    moved = statistics.about(statistics.origin + 1)
    assert_same_statistics(jax.jit(operator.add)(statistics, moved), 2 * statistics)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), statistics, moved)
    total = jax.vmap(lambda own: own.psum("i"), axis_name="i", out_axes=None)(stacked)
    assert_same_statistics(total, (2 * statistics).about(statistics.origin + 0.5))
    same = jax.vmap(lambda own: own.psum("i"), axis_name="i", in_axes=None, axis_size=4)(statistics)
    assert_same_statistics(jax.tree.map(lambda leaf: leaf[0], same), 4 * statistics)


def test_a_difference_without_an_origin_is_no_mixture(statistics):
    difference = jax.tree.map(jnp.subtract, 2 * statistics, statistics)
    assert np.isnan(difference.origin).all()


def test_statistics_are_built_and_changed_field_by_field(statistics):
    fields = [getattr(statistics, name) for name in FIELDS]
    assert_same_statistics(jg.SufficientStatistics(*fields), statistics)
    changed = replace(2 * statistics, count=statistics.count)
    assert np.array_equal(changed.count, statistics.count)
    assert np.array_equal(changed.origin, statistics.origin)
    shapes = jax.eval_shape(lambda: statistics)
    assert shapes.first.shape == statistics.first.shape and "shape" in repr(shapes)
    names = [path[0].name for path, _ in jax.tree_util.tree_flatten_with_path(statistics)[0]]
    assert names[:4] == list(FIELDS[:4])


def test_statistics_of_a_batch_may_share_their_origin(statistics):
    of_each = [jnp.stack([leaf, 2 * leaf]) for leaf in map(statistics.__getattribute__, FIELDS[:4])]
    batch = jg.SufficientStatistics(*of_each, statistics.origin)
    axes = jg.SufficientStatistics(0, 0, 0, 0, None)
    sums = jax.vmap(operator.add, in_axes=(axes, None))(batch, statistics)
    for b in range(2):
        own = jax.tree.map(lambda leaf, b=b: leaf[b], sums)
        assert_same_statistics(own, (b + 2) * statistics)


def test_full_and_diagonal_second_moments_do_not_add():
    x = blobs()
    mixture = start_from_labels(x, "full")
    with pytest.raises(ValueError, match="second moments"):
        jg.e_step(mixture, array(x)) + jg.e_step(mixture, array(x), covariance_type="diag")


def test_moving_the_origin_equals_summing_about_the_new_one(covariance_type):
    x, random = blobs(), np.random.default_rng(0)
    shares = random.dirichlet(np.ones(K), size=N)
    origin, other = random.normal(size=(2, K, D))
    there = jg.accumulate(
        array(x), array(shares), covariance_type=covariance_type, origin=array(other)
    )
    here = jg.accumulate(
        array(x), array(shares), covariance_type=covariance_type, origin=array(origin)
    )
    assert_same_statistics(here.about(array(other)), there)
    assert_same_statistics(here.about(array(other)).about(array(origin)), here)


def test_accumulate_is_the_weighted_sum(covariance_type):
    x, random = blobs(), np.random.default_rng(0)
    shares = random.dirichlet(np.ones(K), size=N)
    weights, origin = random.uniform(size=N), random.normal(size=(K, D))
    actual = jg.accumulate(
        array(x),
        array(shares),
        array(weights),
        covariance_type=covariance_type,
        origin=array(origin),
    )
    expected = oracle.accumulate(x, shares, weights, origin)
    assert_close(actual.count, expected.count)
    assert_close(actual.first, expected.first)
    assert_close(actual.second, diagonal_if(expected.second, actual.second))
    assert actual.log_likelihood == 0
    assert all(leaf.dtype == DTYPE for leaf in jax.tree.leaves(actual))


def test_accumulate_without_an_origin_is_about_the_means(covariance_type):
    x = blobs()
    shares = np.random.default_rng(0).dirichlet(np.ones(K), size=N)
    actual = jg.accumulate(array(x), array(shares), covariance_type=covariance_type)
    means = shares.T @ x / shares.sum(axis=0)[:, None]
    assert_close(actual.origin, means)
    assert_close(
        actual.first, np.zeros((K, D)), rtol=0, atol=1e-3 if np.float32 == DTYPE else 1e-11
    )


def test_accumulated_responsibilities_of_a_mixture_are_its_e_step(covariance_type, statistics):
    x = blobs()
    mixture = start_from_labels(x, covariance_type)
    elsewhere = jg.accumulate(
        array(x),
        mixture.responsibilities(array(x)),
        covariance_type=covariance_type,
        origin=mixture.means,
    )
    for field in FIELDS[1:]:
        assert_close(getattr(elsewhere, field), getattr(statistics, field))


def test_nothing_cancels_far_from_the_origin():
    """Second moments about the means keep their digits where those about zero lose them."""
    offset = 2.0**12
    x = double(array(blobs() + offset))
    shares = np.eye(K)[np.arange(N) % K]
    actual = jg.accumulate(array(x), array(shares), covariance_type="full")
    expected = oracle.accumulate(x, shares, np.ones(N), double(actual.origin))
    assert_close(actual.second, expected.second)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("responsibilities", np.ones((N - 1, K))),
        ("responsibilities", np.ones(N)),
        ("responsibilities", -np.ones((N, K))),
        ("responsibilities", np.full((N, K), np.nan)),
        ("origin", np.ones((K, D + 1))),
        ("weights", np.ones(N + 1)),
        ("covariance_type", "Full"),
    ],
)
def test_accumulate_refuses(argument, value):
    arguments = {"responsibilities": array(np.ones((N, K))), "covariance_type": "full"}
    value = value if isinstance(value, str) else array(value)
    with pytest.raises(ValueError, match=argument):
        jg.accumulate(array(blobs()), **arguments | {argument: value})


def test_statistics_of_nothing_add_nothing(statistics):
    """Zeros are where sums begin, whatever they are about."""
    nothing = jax.tree.map(jnp.zeros_like, statistics)

    def added(total, _):
        return total + statistics, None

    scanned = jax.jit(lambda: jax.lax.scan(added, nothing, None, length=2)[0])()
    for found, times in ((nothing + statistics, 1), (statistics + nothing, 1), (scanned, 2)):
        assert_close(found.count, times * statistics.count)
        means = found.origin + found.first / found.count[:, None]
        expected = statistics.origin + statistics.first / statistics.count[:, None]
        assert_close(means, expected, rtol=1e-4, atol=1e-5)


def test_statistics_are_multiplied_by_numbers_only(statistics):
    with pytest.raises(TypeError, match="unsupported operand"):
        statistics * statistics
