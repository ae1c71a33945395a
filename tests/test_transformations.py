"""Exports for any number of rows, and JAX's own checks of floating point numbers."""

import jax
import pytest
from helpers import DTYPE, D, K, N, array, assert_close, blobs, by_dtype, start_from_labels
from jax.experimental import checkify

import jaxgmm as jg

KEY = jax.random.key(0)


def of_rows():
    """Functions of x whose programs need not know how many rows there are."""
    start = start_from_labels(blobs(), "full")
    return {
        "densities": lambda x: (start.log_prob(x), start.responsibilities(x), start.predict(x)),
        "statistics": lambda x: (jg.e_step(start, x), jg.em_step(start, x), jg.bic(start, x)),
        "em": lambda x: jg.em(start, x, max_iter=5).mixture,
        "fit": lambda x: jg.fit(KEY, x, K, max_iter=5).mixture,
        "fit from random rows": lambda x: (
            jg.fit(KEY, x, 2, init="random_from_data", max_iter=3, history=False).mixture
        ),
    }


@pytest.mark.parametrize("name", of_rows())
def test_an_export_takes_any_number_of_rows(name):
    function = of_rows()[name]
    any_number = jax.export.symbolic_shape(f"n, {D}")
    program = jax.export.export(jax.jit(function))(jax.ShapeDtypeStruct(any_number, DTYPE))
    for n_rows in (N, N - 20):
        x = array(blobs()[:n_rows])
        found, expected = program.call(x), function(x)
        for actual, wanted in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            assert_close(actual, wanted, by_dtype(1e-3, 1e-8), by_dtype(1e-3, 1e-8))


def healthy():
    """Functions of x that make no NaN on the way, not even one that nobody sees."""
    start = start_from_labels(blobs(), "full")
    return {
        "densities": lambda x: (start.log_prob(x), start.predict(x), jg.icl(start, x)),
        "em": lambda x: jg.em(start, x),
        "em, accelerated": lambda x: jg.em(start, x, accelerate="squarem"),
        "fit": lambda x: jg.fit(KEY, x, K),
        "fit, restarted": lambda x: jg.fit(KEY, x, 2, init="random", n_init=2, max_iter=20),
        "fit_batch": lambda x: jg.fit_batch(KEY, x.reshape(2, -1, D), 2),
    }


@pytest.mark.parametrize("name", healthy())
def test_nothing_is_undefined_on_the_way(name):
    error, _ = checkify.checkify(healthy()[name], errors=checkify.float_checks)(array(blobs()))
    assert error.get() is None
