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


def doubled(x, times):
    return 2 * x * times


def size(x, *_, **__):
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

    for hurried in (True, False):
        known_options("cpu", hurried)
    monkeypatch.setattr(jax, "jit", recorded)
    return seen


def test_a_cpu_has_options():
    assert known_options("cpu") == programs.OPTIONS


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="with a GPU there would be options")
def test_what_is_not_here_has_none():
    assert known_options("gpu") == known_options("tpu") == known_options(None) == {}


def test_loops_on_a_cuda_device_are_in_a_graph(monkeypatch):
    asked = []

    def cpu_instead(backend):
        asked.append(backend)
        return jax.devices("cpu")

    monkeypatch.setattr(jax, "local_devices", cpu_instead)
    assert known_options("gpu") == programs.IN_GRAPHS
    assert "WHILE" in programs.IN_GRAPHS["xla_gpu_enable_command_buffer"]
    assert asked == ["cuda"]


def test_a_hurry_has_others_where_there_are_any(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    newest = not jax.__version__.startswith("0.10.")
    expected = programs.OPTIONS if newest else programs.HURRIED
    assert known_options("cpu", hurried=True) == expected


def test_unknown_options_are_none(monkeypatch):
    monkeypatch.setattr(programs, "OPTIONS", {"xla_cpu_that_nobody_knows": "1"})
    assert known_options("cpu") == {}


def test_the_users_choice_stands(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256")
    assert known_options("cpu") == {}


@pytest.fixture
def unhurried(monkeypatch):
    set_budget(monkeypatch, hurried_pass=0)


def test_a_program_of_its_own_has_options(options, unhurried):
    program = Program(doubled, static_argnames="times", pass_size=size)
    assert program.__name__ == "doubled"
    assert float(program(jnp.asarray(2.0), times=3)) == 12
    assert options == [programs.OPTIONS if jax.default_backend() == "cpu" else None]


def test_what_is_compiled_ahead_has_options(options, unhurried):
    program = Program(doubled, static_argnames="times", pass_size=size)
    compiled = program.compiled(jnp.asarray(2.0), n_calls=1, times=4)
    assert float(compiled(jnp.asarray(1.0))) == 8
    assert options == [programs.OPTIONS if jax.default_backend() == "cpu" else None]


def test_compiling_is_hurried_where_all_passes_are_short(options, monkeypatch):
    set_budget(monkeypatch, hurried_pass=8)
    known = {True: {"xla_cpu_prefer_vector_width": "256"}, False: {}}
    monkeypatch.setattr(programs, "known_options", lambda platform, hurried: known[hurried])
    program = Program(doubled, static_argnames="times", pass_size=size)
    for length in (8, 9, 7):
        program(jnp.ones(length), times=2)
    assert options == [known[True], None]
    for n_calls in (2, 3):
        program.compiled(jnp.ones(4), n_calls=n_calls, times=2)
    assert options == [known[True], None]
    program = Program(doubled, static_argnames="times", pass_size=size)
    program.compiled(jnp.ones(4), n_calls=3, times=2)
    assert options[2:] == [None]


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
    program = Program(lambda x: 2 * x, static_argnames=(), pass_size=size)
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
    key = jax.random.key(0)
    jg.fit(key, x, K, init=start, covariance_type="diag", **options)
    with jax.transfer_guard("disallow"):
        result = jg.em(start, x, **options)
        again = jg.fit(key, x, K, init=start, covariance_type="diag", **options)
    assert_same_mixture(result.mixture, before.mixture)
    assert_same_mixture(again.mixture, before.mixture)
