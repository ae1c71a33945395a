"""What programs of their own are compiled with, and that they are it only where they can be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, D, K, array, assert_same_mixture, blobs, set_budget, start_from_labels

import jaxgmm as jg
from jaxgmm.execution import programs
from jaxgmm.execution.programs import Program, known_options
from jaxgmm.fits import entry, sweeps
from jaxgmm.solvers import loop

pytestmark = pytest.mark.once


def doubled(x, times):
    return 2 * x * times


def numbers(x, *_):
    return x.size


@pytest.fixture(autouse=True)
def _asked_anew():
    """Whatever options another test has made known, and this one will."""
    known_options.cache_clear()
    yield
    known_options.cache_clear()


@pytest.fixture
def options(monkeypatch):
    """Lists the options that functions are jitted with."""
    seen = []
    jit = jax.jit

    def recorded(function, **settings):
        seen.append(settings.get("compiler_options"))
        return jit(function, **settings)

    known_options("cpu", True)
    monkeypatch.setattr(jax, "jit", recorded)
    return seen


def test_a_cpu_has_options():
    assert known_options("cpu") == programs.OPTIONS
    assert known_options("gpu") == {}


def test_a_hurry_has_others(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    newest = not jax.__version__.startswith("0.10.")
    assert known_options("cpu", hurried=True) == ({} if newest else programs.HURRIED)


def test_unknown_options_are_none(monkeypatch):
    monkeypatch.setattr(programs, "OPTIONS", {"xla_cpu_that_nobody_knows": "1"})
    assert known_options("cpu") == {}


def test_the_users_choice_stands(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256")
    assert known_options("cpu") == {}


def test_a_program_of_its_own_has_options(options):
    program = Program(doubled, static_argnames="times", numbers=numbers)
    assert program.__name__ == "doubled"
    assert float(program(jnp.asarray(2.0), times=3)) == 12
    assert options == [known_options(jax.default_backend(), True) or None]


def test_what_is_compiled_ahead_has_options(options):
    program = Program(doubled, static_argnames="times", numbers=numbers)
    assert float(program.compiled(jnp.asarray(2.0), times=4)(jnp.asarray(1.0))) == 8
    assert options == [known_options(jax.default_backend(), True) or None]


def test_compiling_is_hurried_where_a_pass_is_short(monkeypatch):
    set_budget(monkeypatch, hurried_pass=8)
    asked = []
    monkeypatch.setattr(programs, "known_options", lambda *of: (asked.append(of), {})[1])
    program = Program(doubled, static_argnames="times", numbers=numbers)
    for size in (8, 9, 7):
        program(jnp.ones(size), times=2)
    here = jax.default_backend()
    assert asked == [(here, True), (here, False)]


@pytest.mark.parametrize(
    "function",
    [loop._em, entry.fit_models, sweeps._fit_each],
    ids=lambda function: function.__name__,
)
def test_all_fits_are_programs(function):
    assert isinstance(function, Program)


TRANSFORMED = {
    "jit": lambda f, x: jax.jit(f)(x),
    "jit of a constant": lambda f, x: jax.jit(lambda y: f(x) + 0 * y)(x),
    "vmap": lambda f, x: jax.vmap(f)(x[None])[0],
    "vmap of a constant": lambda f, x: jax.vmap(lambda y: f(x) + 0 * y)(x)[0],
    "grad": lambda f, x: x * jax.grad(lambda y: f(y).sum())(x),
    "grad of a constant": lambda f, x: jax.grad(lambda y: (f(x) * y).sum())(x),
    "map": lambda f, x: jax.lax.map(lambda _: f(x), x[:1])[0],
    "cond": lambda f, x: jax.lax.cond(True, lambda: f(x), lambda: x),
}


@pytest.mark.parametrize("way", TRANSFORMED)
def test_a_part_of_another_program_has_none(way):
    """JAX would refuse to compile them."""
    x = jnp.arange(1.0, 4.0)
    program = Program(lambda x: 2 * x, static_argnames=(), numbers=numbers)
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


def test_nothing_is_moved_to_a_device():
    """Where all arguments are there."""
    x = array(blobs())
    start = start_from_labels(x, "diag")
    numbers = {"tol": jnp.asarray(1e-3, DTYPE), "reg_covar": jnp.asarray(np.asarray(1e-6, DTYPE))}
    options = {"weights": jnp.ones(len(x), DTYPE), "max_iter": 3, "history": False, **numbers}
    before = jg.em(start, x, **options)
    with jax.transfer_guard("disallow"):
        result = jg.em(start, x, **options)
    assert_same_mixture(result.mixture, before.mixture)
