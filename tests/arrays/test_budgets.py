"""Sizes by platform: who asks for it, what it is, and what comes of it."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DTYPE,
    D,
    N,
    array,
    assert_close,
    blobs,
    by_dtype,
    set_budget,
    start_from_labels,
)

import jaxgmm as jg
from jaxgmm.arrays import budgets, chunks
from jaxgmm.arrays.budgets import ACCELERATOR, CPU, budget, on_platform, platform_of
from jaxgmm.arrays.chunks import chunk_size, map_over_chunks, rows_of_features, sum_over_chunks
from jaxgmm.execution.programs import Program
from jaxgmm.execution.queue import Queue

ALIGNED = budgets.ALIGNED_ROWS


def test_only_one_file_asks_for_the_platform():
    files = Path(jg.__file__).parent.rglob("*.py")
    assert {file.name for file in files if "default_backend" in file.read_text()} == {"budgets.py"}


@pytest.fixture
def beside_a_gpu(monkeypatch):
    """What JAX says where there is a GPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def test_arguments_are_asked_first_then_the_default_device(beside_a_gpu):
    cpu = jax.devices("cpu")[0]
    anywhere, there = jnp.ones(2), jax.device_put(jnp.ones(2), cpu)
    assert platform_of(anywhere) == platform_of(np.ones(2), "name", None) == "gpu"
    assert platform_of(there) == platform_of(np.ones(2), anywhere, there) == "cpu"
    with jax.default_device(cpu):
        assert platform_of(anywhere) == "cpu"
    with jax.default_device("cpu"):
        assert platform_of() == "cpu"
    with on_platform("tpu"):
        assert platform_of(there) == "tpu"


def test_programs_of_two_platforms_are_not_mixed_up(beside_a_gpu):
    """Though their arguments have the same shapes."""
    program = Program(lambda x: x + budget().chunk, static_argnames=(), pass_size=lambda x: x.size)
    anywhere = jnp.zeros((), jnp.int32)
    there = jax.device_put(anywhere, jax.devices("cpu")[0])
    for _ in range(2):
        assert program(anywhere) == ACCELERATOR.chunk
        assert program(there) == CPU.chunk
        with jax.default_device(jax.devices("cpu")[0]):
            assert program(anywhere) == CPU.chunk


@pytest.mark.parametrize(
    ("n_rows", "numbers"),
    [(1_048_576, 77), (1_000_000, 217), (1_048_577, 77), (65_536, 625), (999_999, 3), (10**9, 217)],
)
def test_chunks_on_an_accelerator_are_equal_and_aligned(n_rows, numbers):
    """As few as fit, and few rows are left."""
    length, n_chunks, n_left = chunk_size(n_rows, numbers).pieces(n_rows, ACCELERATOR)
    assert length % ALIGNED == 0
    assert length * n_chunks + n_left == n_rows
    assert length * numbers <= ACCELERATOR.chunk
    fewest = -(-n_rows * numbers // ACCELERATOR.chunk)
    assert fewest <= n_chunks <= 1.05 * fewest + 1
    assert n_left < ALIGNED * (n_chunks + 1)


def test_small_data_are_one_chunk():
    for n_rows in (1, 1000, ALIGNED, 5 * ALIGNED + 1):
        assert chunk_size(n_rows, 100).pieces(n_rows, ACCELERATOR) == (n_rows, 1, 0)


def test_an_accelerator_computes_no_row_twice():
    """Nor more rows than there are."""
    seen = []

    def summand(start, fresh):
        seen.append(fresh.shape[0])
        return jnp.sum(start + jnp.arange(fresh.shape[0]), where=fresh).astype(DTYPE)

    def mapped(x):
        seen.append(x.shape[0])
        return 2 * x

    sizes = chunks.ChunkRows(20, 16)
    x = jnp.arange(float(N)).astype(DTYPE)[:, None]
    n_chunks, n_left = divmod(N, 16)
    for function in (
        lambda: sum_over_chunks(summand, N, sizes),
        lambda: map_over_chunks(mapped, x, sizes),
    ):
        with on_platform("gpu"):
            found = function()
        assert set(seen) == {16, n_left} and 16 * n_chunks + n_left == N
        seen.clear()
        expected = N * (N - 1) / 2 if found.ndim == 0 else 2 * x
        assert_close(found, expected)
        with on_platform("cpu"):
            assert_close(function(), expected)
        assert set(seen) == {20}
        seen.clear()


def test_results_are_those_of_a_cpu(monkeypatch):
    """Of both forms of the E-step, of densities, fits and batches."""
    set_budget(monkeypatch, smallest_pass=0)
    monkeypatch.setattr(budgets, "ALIGNED_ROWS", 8)
    monkeypatch.setattr(budgets, "FEW_ALIGNED", 1)
    monkeypatch.setattr(budgets, "ACCELERATOR", ACCELERATOR._replace(chunk=2**8))
    monkeypatch.setattr(
        chunks, "max", lambda *values: 20 if 256 in values else max(*values), raising=False
    )
    start, x = start_from_labels(blobs(), "full"), array(np.r_[blobs(), blobs()])
    assert chunk_size(len(x), 6).pieces(len(x), budgets.ACCELERATOR)[1:] > (1, 0)

    def everything(x):
        batch = jg.fit_batch(jax.random.key(0), x.reshape(4, -1, D), 2, init="random", max_iter=5)
        statistics = jg.e_step(start, x)
        return statistics, start.log_prob(x), jg.em(start, x, max_iter=5).mixture, batch.mixture

    found = []
    for platform in ("cpu", "gpu"):
        jax.clear_caches()
        with on_platform(platform):
            found.append(everything(x))
    jax.clear_caches()
    for actual, expected in zip(*map(jax.tree.leaves, reversed(found)), strict=True):
        assert_close(actual, expected, rtol=by_dtype(1e-4, 1e-9), atol=by_dtype(1e-3, 1e-9))


def exported(function, shape, platform):
    """The text of a function of one array, exported for a platform from a CPU."""
    struct = jax.ShapeDtypeStruct(shape, DTYPE)
    return jax.export.export(jax.jit(function), platforms=[platform])(struct).mlir_module()


def n_loops(text):
    return len(re.findall(r"stablehlo\.while", text))


def test_an_exported_program_has_the_form_of_its_platform():
    """A CPU goes through chunks that fit its caches, an accelerator has all rows at once."""
    start, shape = start_from_labels(blobs(), "full"), (65_536, D)

    def pass_over(x):
        return jg.e_step(start, x), start.log_prob(x)

    on_cpu, on_gpu, on_tpu = (exported(pass_over, shape, name) for name in ("cpu", "cuda", "tpu"))
    # Over components that products may lose: one loop for logits, one for moments.
    of_components = 2
    assert n_loops(on_gpu) == n_loops(on_tpu) == of_components
    assert n_loops(on_cpu) >= of_components + 2


def test_an_accelerator_has_no_second_phase_of_slots(monkeypatch):
    """Where it isn't known for which platform a program is, both are made."""
    phases = []
    drain = Queue.drain

    def recorded(self, size, *rest):
        phases.append(size)
        return drain(self, size, *rest)

    monkeypatch.setattr(Queue, "drain", recorded)
    fit = partial(jg.fit_batch, jax.random.key(0), n_components=2, init="random")
    made = {}
    for platform in ("cpu", "gpu", None):
        jax.clear_caches()
        with on_platform(platform):
            jax.jit(fit).trace(jax.ShapeDtypeStruct((100, 64, 1), DTYPE))
        made[platform] = phases.copy()
        phases.clear()
    assert made == {"cpu": [100, 6], "gpu": [100], None: [100, 6, 100]}


def test_with_few_components_one_core_goes_through_chunks_that_stay_in_its_cache(monkeypatch):
    def bytes_of_chunk(n_features, n_components, n_cores, dtype=np.float32):
        monkeypatch.setattr(chunks, "n_cores", lambda: n_cores)
        x = np.zeros((100_000, 8), dtype)
        return rows_of_features(x, n_features, n_components).on_cpu * n_features * x.itemsize

    whole = budgets.CPU.of_one_core
    for dtype in (np.float32, np.float64):
        assert whole / 2 < bytes_of_chunk(153, 16, 2, dtype) <= 1.1 * whole
        assert bytes_of_chunk(153, 16, 16, dtype) > 4 * whole
        assert bytes_of_chunk(153, 100, 2, dtype) > 4 * whole
        # Of a few rows it would be.
        assert bytes_of_chunk(2000, 16, 2, dtype) > 4 * whole


@pytest.mark.parametrize("n_rows", [1, 700, 897, 1797, 100_001])
def test_chunks_of_features_have_about_one_length(monkeypatch, n_rows):
    monkeypatch.setattr(chunks, "n_cores", lambda: 2)
    found = rows_of_features(np.zeros((n_rows, 8), np.float32), 45, 16).on_cpu
    n_chunks = -(-n_rows // found)
    assert n_chunks * found - n_rows < max(16 * n_chunks, 1)


def test_chunks_of_other_numbers_hold_as_many_as_the_budget_says():
    assert chunk_size(100_000, 64).on_cpu == 2**18 // 64
