"""What is compiled, how often, and what is in it."""

import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from helpers import (
    DTYPE,
    D,
    K,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    set_budget,
    start_from_labels,
)

import jaxgmm as jg
import jaxgmm.fits.entry
from jaxgmm.arrays.budgets import on_platform
from jaxgmm.arrays.padding import padded_rows


def is_program(value):
    """Whether a parameter of an equation is a program of its own."""
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def equations(jaxpr):
    """All equations of a program with those inside."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


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


def test_every_product_states_its_precision(storage_type, monkeypatch):
    """Also in the pass by products, for which x has a shape that no other test has traced."""
    set_budget(monkeypatch, smallest_pass=0)
    start = start_from_labels(blobs(), storage_type)
    x = array(blobs()[:-1])
    for number, program in enumerate(programs(start, storage_type)):
        for equation in equations(jax.make_jaxpr(program)(x).jaxpr):
            if equation.primitive.name == "dot_general":
                stated = equation.params["precision"]
                assert stated == (jax.lax.Precision.HIGHEST,) * 2, (number, str(equation)[:150])


def test_a_fit_calls_no_lapack():
    """Of which each matrix of a batch would be a call of its own, and threads would go on."""
    start = start_from_labels(blobs(), "full")
    program = jax.make_jaxpr(lambda x: jg.em(start, x))(array(blobs())).jaxpr
    names = {equation.primitive.name for equation in equations(program)}
    assert "dot_general" in names
    assert not names & {"cholesky", "eigh", "lu", "lu_pivots_to_permutation", "triangular_solve"}


def test_memory_beyond_the_data_is_bounded():
    """No array of N numbers is made, let alone of N times something."""
    start = start_from_labels(blobs(), "full")
    n_rows = 2_000_000
    em = jax.jit(lambda x: jg.em(start, x, history=False))
    program = em.lower(jax.ShapeDtypeStruct((n_rows, D), DTYPE)).compile()
    # The sample weights, which default to ones, are the one exception.
    assert program.memory_analysis().temp_size_in_bytes < 1.9 * n_rows * DTYPE.itemsize


@pytest.mark.parametrize("covariance_type", ["full", "tied"])
def test_data_with_weights_are_never_copied(key, covariance_type):
    """Weights that aren't known to be ones cost some numbers for each row, for a sample of them."""
    n_rows, n_features = 1_000_000, 8

    def fit(x, weights):
        return jg.fit(key, x, K, covariance_type=covariance_type, weights=weights, history=False)

    shapes = [jax.ShapeDtypeStruct(shape, DTYPE) for shape in ((n_rows, n_features), (n_rows,))]
    program = jax.jit(fit).lower(*shapes).compile()
    bound = n_rows * n_features // 2 * DTYPE.itemsize
    assert program.memory_analysis().temp_size_in_bytes < bound


@pytest.mark.parametrize("several", ["restarts", "models", "vmap"])
def test_long_passes_of_several_fits_are_made_one_after_the_other(several):
    """Restarts, models with data of their own, and starts in a batch of the user's."""
    n_rows, n_features = 9_000, 12
    n_products = (n_features + 1) * (n_features + 2) // 2
    key = jax.random.key(0)
    means = np.stack([np.zeros(n_features), np.ones(n_features)]).astype(DTYPE)
    start = jg.GaussianMixture.create(
        [0.5, 0.5], means, np.broadcast_to(np.eye(12, dtype=DTYPE), (2, 12, 12))
    )
    program = {
        "restarts": partial(jg.fit, key, n_components=2, n_init=3),
        "models": partial(jg.fit_batch, key, n_components=2),
        "vmap": jax.vmap(partial(jg.em, start)),
    }[several]
    models = () if several == "restarts" else (3,)
    with on_platform("cpu"):
        made = jax.make_jaxpr(program)(jax.ShapeDtypeStruct((*models, n_rows, n_features), DTYPE))
    features = {
        outcome.aval.shape
        for equation in equations(made.jaxpr)
        for outcome in equation.outvars
        if n_products in getattr(outcome.aval, "shape", ()) and outcome.aval.size > 20 * n_products
    }
    assert features and all(len(shape) == 2 for shape in features)


def test_a_second_fit_compiles_nothing(monkeypatch, key):
    """Whatever numbers have changed, that of the iterations included."""
    traced = []
    run_all = jaxgmm.fits.entry.run_all
    monkeypatch.setattr(jaxgmm.fits.entry, "run_all", lambda *a: (traced.append(1), run_all(*a))[1])
    jax.clear_caches()
    x = np.concatenate([blobs(), blobs(seed=1)])[:92]
    options = {"covariance_type": "tied_spherical"}
    few = jg.fit(key, array(x), K, max_iter=17, **options)
    assert few.history.shape == (17,)
    assert traced
    before = len(traced)
    other = jg.fit(
        jax.random.key(1), array(2 * x), K, tol=1e-3, reg_covar=1e-3, max_iter=80, **options
    )
    assert other.history.shape == (80,)
    assert len(traced) == before
    jg.fit(key, array(x), K, max_iter=5, history=False, **options)
    jg.fit(key, array(x), K, max_iter=2**40, history=False, **options)
    assert len(traced) == before + 1


def test_a_sweep_over_components_is_one_program_for_each_type(monkeypatch, key):
    traced = []
    run_all = jaxgmm.fits.entry.run_all
    monkeypatch.setattr(jaxgmm.fits.entry, "run_all", lambda *a: (traced.append(1), run_all(*a))[1])
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


COMPILED = []


def count_programs(event, _, **__):
    if event.endswith("backend_compile_duration"):
        COMPILED.append(event)


jax.monitoring.register_event_duration_secs_listener(count_programs)

USES = {
    "create": lambda key, x: mixture_of_six_features(),
    "precisions": lambda key, x: mixture_of_six_features().precisions,
    "mahalanobis": lambda key, x: jg.mahalanobis(mixture_of_six_features(), x),
    "overlap": lambda key, x: jg.overlap(mixture_of_six_features()),
    "condition": lambda key, x: jg.condition(mixture_of_six_features(), [0], x[0, :1]),
    "m_step": lambda key, x: jg.m_step(jg.e_step(mixture_of_six_features(), x)),
    "fit_batch": lambda key, x: jg.fit_batch(key, x.reshape(2, 30, 6), 2, max_iter=3),
    "select": lambda key, x: jg.select(key, x, [1, 2], ["tied", "diag"], n_init=1, max_iter=3),
}


def mixture_of_six_features():
    identity = np.eye(6, dtype=DTYPE)
    return jg.GaussianMixture.create([0.3, 0.7], identity[:2], np.stack([identity] * 2))


@pytest.mark.parametrize("use", USES)
def test_a_second_call_compiles_nothing(key, use):
    """Of what isn't compiled as a whole neither, nor any loop in it."""
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(DTYPE)
    USES[use](key, x)
    before = len(COMPILED)
    USES[use](key, x[::-1])
    assert len(COMPILED) == before


def test_fits_to_data_of_many_sizes_are_few_programs(key):
    """Rows of weight 0 fill up to one of a few sizes."""
    x = np.random.default_rng(0).normal(size=(300, D)).astype(DTYPE)
    options = {"covariance_type": "tied_spherical", "max_iter": 3}
    # What a process compiles once, whatever the size is.
    jg.fit(key, x[:60], K, **options)
    before = len(COMPILED)
    for n_rows in range(130, 257):
        jg.fit(key, x[:n_rows], K, **options)
    assert 1 <= len(COMPILED) - before <= 3


@pytest.mark.parametrize("n_rows", [1, 63, 64, 65, 96, 97, 128, 129, 1000, 30_000, 10**6])
def test_padding_is_at_most_half(n_rows):
    assert n_rows <= padded_rows(n_rows) <= max(64, 1.5 * n_rows)
    assert len({padded_rows(n) for n in range(n_rows, 2 * n_rows)}) <= 4


def test_padding_changes_no_fit(key, monkeypatch):
    """Neither where it starts, nor where it ends."""
    x = array(blobs()[:70])
    options = {"covariance_type": "diag", "max_iter": 21}
    filled = jg.fit(key, x, K, **options)
    set_budget(monkeypatch, small=0)
    plain = jg.fit(key, x, K, **options)
    assert abs(int(filled.n_iter) - int(plain.n_iter)) <= 1
    assert_same_mixture(filled.mixture, plain.mixture)
    assert_close(filled.log_likelihood, plain.log_likelihood, rtol=by_dtype(1e-5, 1e-11))


def test_padding_leaves_data_on_the_device_that_was_chosen(key):
    x = array(blobs())
    chosen = jax.device_put(x, jax.devices()[0])
    assert chosen.committed and not x.committed and len(x) < padded_rows(len(x))
    assert jg.fit(key, chosen, 2).mixture.means.committed
    assert not jg.fit(key, x, 2).mixture.means.committed
