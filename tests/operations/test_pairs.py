"""What is made of all pairs of components is made in blocks, and is the same."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DTYPE,
    assert_close,
    set_budget,
)
from known_mixtures import mixture_of, shifted

import jaxgmm as jg
from jaxgmm.arrays.budgets import CPU
from jaxgmm.operations import combination, pairs


def numbers(p, q):
    """Everything that is made of pairs, of p's components and of q's."""
    product = combination._product.__wrapped__(p, q)
    return (
        pairs.log_overlaps(p, q),
        pairs.bhattacharyya_distances(p, q),
        pairs.kl_divergences(p, q),
        pairs.squared_wasserstein_distances(p, q),
        (product.log_weights, product.means, product.covariances),
    )


def numbers_and_slopes(p, q):
    def total(p, q):
        leaves = jax.tree.leaves(numbers(p, q))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves)

    return numbers(p, q), jax.grad(total, argnums=(0, 1))(p, q)


@pytest.mark.parametrize(
    "types",
    [
        ("full", "full"),
        ("tied", "tied"),
        ("diag", "full"),
        ("diag", "tied_diag"),
        ("tied_spherical", "spherical"),
    ],
)
def test_blocks_are_as_good_as_the_whole(types, monkeypatch):
    """Of two components, with three in all; of three and two; with derivatives."""
    p, q = mixture_of(types[0]), shifted(types[1])
    q = jax.tree.map(lambda leaf: leaf[:2] if leaf.shape[0] == 3 else leaf, q)
    whole = jax.jit(numbers_and_slopes)(p, q)
    set_budget(monkeypatch, block=2 * pairs.numbers_of_sums(p, q))
    blocks = jax.jit(lambda p, q: numbers_and_slopes(p, q))(p, q)
    for one, two in zip(*map(jax.tree.leaves, (whole, blocks)), strict=True):
        assert one.shape == two.shape and two.dtype == DTYPE
        assert_close(two, one)


def test_blocks_of_a_batch_are_those_of_each(monkeypatch):
    p, q = mixture_of("full"), shifted("diag")
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), p)
    whole = jax.jit(numbers)
    expected = [jax.tree.leaves(whole(batch[b], q)) for b in range(2)]
    set_budget(monkeypatch, block=1)
    found = jax.tree.leaves(jax.jit(jax.vmap(numbers, in_axes=(0, None)))(batch, q))
    for leaf, *each in zip(found, *expected, strict=True):
        assert_close(leaf, jnp.stack(each))


def test_a_block_is_as_large_as_the_budget_allows(monkeypatch):
    """Not larger, and a number of components that no block divides is as good as any."""
    set_budget(monkeypatch, block=7)
    p = replace(mixture_of("diag"), log_weights=jnp.arange(3.0, dtype=DTYPE))
    sizes = []

    def function(some):
        sizes.append(some.n_components)
        return some.log_weights + 1, some.means * 2

    for n_numbers, expected in [(1, 3), (2, 3), (3, 2), (4, 1), (100, 1)]:
        sizes.clear()
        weights, means = pairs.over_blocks(function, p, n_numbers)
        assert set(sizes) == {expected}
        np.testing.assert_array_equal(weights, [1, 2, 3])
        np.testing.assert_array_equal(means, 2 * p.means)


K, D = 1000, 8


def shapes_of(covariance_type):
    """Of a mixture of a thousand components."""
    covariance = {
        "full": jg.Full(jax.ShapeDtypeStruct((K, D, D), DTYPE)),
        "tied": jg.Full(jax.ShapeDtypeStruct((1, D, D), DTYPE)),
        "diag": jg.Diagonal(jax.ShapeDtypeStruct((K, D), DTYPE)),
    }[covariance_type]
    log_weights, means = (jax.ShapeDtypeStruct(shape, DTYPE) for shape in ((K,), (K, D)))
    return jg.GaussianMixture(log_weights, means, covariance)


def in_all(tree):
    return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))


def of_pairs(p, q):
    return in_all((pairs.log_overlaps(p, q), pairs.kl_divergences(p, q)))


# What jg.kl_divergence and others are made of; of derivatives, too.
MADE_OF_PAIRS = {
    "l2_distance": (jg.l2_distance, "full"),
    "overlap": (lambda p, q: jg.overlap(p), "tied"),
    "entropy": (lambda p, q: in_all(jg.entropy(p)), "full"),
    "divergence": (of_pairs, "full"),
    "divergence of independent features": (of_pairs, "diag"),
    "derivative": (jax.grad(of_pairs, argnums=(0, 1)), "full"),
    "wasserstein_distance": (pairs.squared_wasserstein_distances, "full"),
    "reduce": (lambda p, q: jg.reduce(p, 10).means, "full"),
}


@pytest.mark.parametrize("name", MADE_OF_PAIRS)
def test_memory_for_pairs_is_a_few_numbers_for_each(name):
    """And some blocks. All at once they would be 2 D² for each."""
    function, covariance_type = MADE_OF_PAIRS[name]
    shapes = [shapes_of(covariance_type)] * 2
    program = jax.jit(function).lower(*shapes).compile()
    bound = (10 * K**2 + 12 * CPU.block) * DTYPE.itemsize
    assert program.memory_analysis().temp_size_in_bytes < bound
