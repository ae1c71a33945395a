"""What is compiled, how often, and what is in it."""

import subprocess
import sys

import jax
import numpy as np
from helpers import DTYPE, D, K, array, blobs, start_from_labels

import jaxgmm as jg
import jaxgmm.fitting
from jaxgmm import quadratic


def is_program(value):
    """Whether a parameter of an equation is a program of its own."""
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def equations(jaxpr, in_loop=False):
    """All equations of a program with those inside, and whether they are inside a loop."""
    for equation in jaxpr.eqns:
        yield equation, in_loop
        inside = in_loop or equation.primitive.name in ("while", "scan")
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner, inside)


def programs(start, covariance_type):
    """Of everything that multiplies matrices: functions of x."""
    key = jax.random.key(0)
    yield lambda x: jg.em(start, x)
    yield lambda x: jg.fit(key, x, K, covariance_type=covariance_type, init="kmeans")
    yield jax.grad(lambda x: jg.em(start, x).log_likelihood)
    yield lambda x: (start.responsibilities(x), start.log_prob(x), start.component_log_prob(x))
    yield lambda x: (start.precisions, start.covariances, start.mean(), start.covariance_matrix())
    yield lambda x: start.sample(key, 3)
    yield lambda x: jg.e_step(start, x).about(start.means + 1)
    yield lambda x: jg.bic(start, x)


def test_every_product_states_its_precision(covariance_type, monkeypatch):
    """Also in the pass by products, for which x has a shape that no other test has traced."""
    monkeypatch.setattr(quadratic, "SMALLEST_PASS", 0)
    start = start_from_labels(blobs(), covariance_type)
    x = array(blobs()[:-1])
    for number, program in enumerate(programs(start, covariance_type)):
        for equation, _ in equations(jax.make_jaxpr(program)(x).jaxpr):
            if equation.primitive.name == "dot_general":
                stated = equation.params["precision"]
                assert stated == (jax.lax.Precision.HIGHEST,) * 2, (number, str(equation)[:150])


def test_no_eigenvalues_inside_the_loop():
    start = start_from_labels(blobs(), "full")
    program = jax.make_jaxpr(lambda x: jg.em(start, x))(array(blobs())).jaxpr
    found = [inside for equation, inside in equations(program) if equation.primitive.name == "eigh"]
    assert found and not any(found)


def test_memory_beyond_the_data_is_bounded():
    """No array of N numbers is made, let alone of N times something."""
    start = start_from_labels(blobs(), "full")
    n_rows = 2_000_000
    em = jax.jit(lambda x: jg.em(start, x, history=False))
    program = em.lower(jax.ShapeDtypeStruct((n_rows, D), DTYPE)).compile()
    # The sample weights, which default to ones, are the one exception.
    assert program.memory_analysis().temp_size_in_bytes < 1.9 * n_rows * DTYPE.itemsize


def test_a_second_fit_compiles_nothing(monkeypatch, key):
    traced = []
    climb = jaxgmm.fitting.climb
    monkeypatch.setattr(jaxgmm.fitting, "climb", lambda *a: (traced.append(1), climb(*a))[1])
    x = np.concatenate([blobs(), blobs(seed=1)])[:92]
    options = {"covariance_type": "tied_spherical", "max_iter": 17}
    jg.fit(key, array(x), K, **options)
    assert traced
    before = len(traced)
    jg.fit(jax.random.key(1), array(2 * x), K, tol=1e-3, reg_covar=1e-3, **options)
    assert len(traced) == before


def test_a_sweep_over_components_is_one_program_for_each_type(monkeypatch, key):
    traced = []
    climb = jaxgmm.fitting.climb
    monkeypatch.setattr(jaxgmm.fitting, "climb", lambda *a: (traced.append(1), climb(*a))[1])
    x = array(blobs()[:83])
    jg.select(key, x, [1, 2, 3], ["spherical"], n_init=1, max_iter=5)
    assert len(traced) == 1


def test_importing_and_fitting_leave_the_configuration_alone():
    code = (
        "import jax; before = dict(jax.config.values)\n"
        "import jaxgmm as jg\n"
        "x = [[0.0], [1.0], [5.0]]\n"
        "jg.fit(jax.random.key(0), x, 1, covariance_type='spherical', max_iter=2)\n"
        "assert dict(jax.config.values) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
