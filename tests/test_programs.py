"""What programs of their own are compiled with, and that they are it only where they can be."""

import jax
import jax.numpy as jnp
import pytest
from helpers import D, K, array, assert_same_mixture, blobs, start_from_labels

import jaxgmm as jg
from jaxgmm import programs
from jaxgmm.programs import Program


def doubled(x, times):
    return 2 * x * times


@pytest.fixture
def with_options(monkeypatch):
    """Lists the options that functions are jitted with."""
    seen = []
    jit = jax.jit

    def recorded(function, **options):
        seen.append(options.get("compiler_options"))
        return jit(function, **options)

    monkeypatch.setattr(jax, "jit", recorded)
    return seen


def test_options_are_those_that_are_known(monkeypatch):
    programs.known_options.cache_clear()
    on_cpu = jax.default_backend() == "cpu"
    assert programs.known_options() == (programs.OPTIONS if on_cpu else None)
    monkeypatch.setattr(programs, "OPTIONS", {"xla_cpu_that_nobody_knows": "1"})
    programs.known_options.cache_clear()
    assert programs.known_options() is None
    programs.known_options.cache_clear()


def test_a_program_of_its_own_has_options(with_options):
    program = Program(doubled, "times")
    assert program.__name__ == "doubled"
    assert float(program(jnp.asarray(2.0), times=3)) == 12
    assert with_options[0] is None
    assert with_options[-1] == programs.known_options()
    assert float(program.compiled(jnp.asarray(2.0), times=4)(jnp.asarray(1.0))) == 8


TRANSFORMED = {
    "jit": lambda f, x: jax.jit(f)(x),
    "jit of a constant": lambda f, x: jax.jit(lambda y: f(x) + 0 * y)(x),
    "vmap": lambda f, x: jax.vmap(f)(x[None])[0],
    "grad": lambda f, x: x + 0 * jax.grad(lambda y: f(y).sum())(x) + (f(x) - x),
    "grad beside": lambda f, x: jax.grad(lambda y: (f(x) * y).sum())(x),
    "map": lambda f, x: jax.lax.map(lambda _: f(x), x[:1])[0],
    "cond": lambda f, x: jax.lax.cond(True, lambda: f(x), lambda: x),
}


@pytest.mark.parametrize("way", TRANSFORMED)
def test_a_part_of_another_program_has_none(way):
    """JAX would refuse to compile them."""
    x = jnp.arange(1.0, 4.0)
    program = Program(lambda x: 2 * x)
    assert TRANSFORMED[way](program, x).tolist() == [2, 4, 6]


def test_fits_to_constants_are_parts_of_other_programs(key):
    x = array(blobs())
    start = start_from_labels(x, "full")
    zero = jnp.zeros((), x.dtype)

    def fits(number):
        one = jg.fit(key, x, K, max_iter=3)
        batch = jg.fit_batch(key, x.reshape(2, -1, D), 2, max_iter=3)
        return one.mixture, batch.mixture[1], jg.em(start, x, max_iter=3).mixture, number

    for inside, alone in zip(jax.jit(fits)(zero)[:3], fits(zero)[:3], strict=True):
        assert_same_mixture(inside, alone)
