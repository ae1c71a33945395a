"""Cholesky factors of sums of squares, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, EPS, array, assert_close, by_dtype, double

from jaxgmm.arrays.reflections import PANEL, factor_of_root

SHAPES = [(1, 1), (2, 4), (7, 9), (PANEL, PANEL), (PANEL + 1, 40), (2 * PANEL + 5, 3 * PANEL)]


def factor_by_hand(root):
    """By NumPy's QR in float64."""
    upper = np.linalg.qr(np.swapaxes(double(root), -1, -2), mode="r")
    sign = np.sign(np.einsum("...ii->...i", upper))
    return np.swapaxes(sign[..., None] * upper, -1, -2)


@pytest.mark.parametrize("shape", SHAPES)
def test_factor_of_a_root_is_that_of_its_square(shape):
    """However different the rows' units are, and with a batch of several axes."""
    random = np.random.default_rng(0)
    units = 10.0 ** random.integers(-15, 15, size=shape[0])
    root = array(random.normal(size=(2, 3, *shape)) * units[:, None])
    found = double(jax.jit(factor_of_root)(root))
    assert found.shape == (2, 3, shape[0], shape[0])
    error = (found - factor_by_hand(root)) / units[:, None]
    assert np.abs(error).max() < 300 * EPS
    assert (np.einsum("...ii->...i", found) > 0).all() and not np.triu(found, 1).any()


def test_squares_that_can_not_be_represented_are_never_formed():
    unit = by_dtype(1e-30, 1e-250)
    root = np.array([[3.0, 4.0, 0.0], [1.0, 0.0, 2.0]])
    for scale in (unit, 1 / unit):
        found = double(factor_of_root(array(root * scale))) / scale
        assert_close(found, factor_by_hand(array(root)))


@pytest.mark.parametrize("shape", [(3, 5), (PANEL + 3, PANEL + 3)])
def test_derivative_of_a_factor_is_that_of_the_cholesky_factor(shape):
    random = np.random.default_rng(1)
    root = array(random.normal(size=shape) + 3 * np.eye(*shape))
    moved = array(random.normal(size=shape))

    def by_square(root):
        return jnp.linalg.cholesky(jnp.matmul(root, root.T, precision="highest"))

    factor, slope = jax.jvp(factor_of_root, (root,), (moved,))
    expected = jax.jvp(by_square, (root,), (moved,))
    tolerance = by_dtype(2e-4, 1e-11)
    assert_close(factor, expected[0], rtol=0, atol=tolerance)
    assert_close(slope, expected[1], rtol=0, atol=tolerance)
    backward = jax.grad(lambda root: jnp.sum(factor_of_root(root) * expected[1]))(root)
    assert_close(jnp.sum(backward * moved), jnp.sum(expected[1] ** 2), rtol=by_dtype(1e-3, 1e-10))
    assert backward.dtype == DTYPE


def test_a_row_of_zeros_is_a_row_of_zeros():
    root = array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [0.0, 3.0, 4.0]])
    found = double(factor_of_root(root))
    assert_close(found @ found.T, double(root) @ double(root).T)
    assert not found[1].any()
