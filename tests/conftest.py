"""Nothing may promote dtypes or ranks silently; programs are compiled in a hurry, and shared."""

import atexit
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

# Most programs run for a moment, and take seconds to compile. Must be set before JAX is imported.
# Only in JAX 0.10 is there an emitter of kernels that takes half as long as the usual one.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
    + ["--xla_cpu_use_fusion_emitters=false"] * metadata.version("jaxlib").startswith("0.10.")
)

import jax
import pytest

from jaxgmm.covariances.structures import SWEPT

MOST_MAPS = 10_000

# A program of its own, see `test_devices.py`.
collect_ignore = ["eight_devices.py"]

if "JAXGMM_TEST_CACHE" not in os.environ:
    os.environ["JAXGMM_TEST_CACHE"] = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, os.environ["JAXGMM_TEST_CACHE"], ignore_errors=True)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", os.environ["JAXGMM_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module", autouse=True)
def _room_for_programs():
    """Each program maps memory, and a process on Linux has 65530 maps at most by default."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(params=SWEPT)
def covariance_type(request):
    """The types that a sweep tries; all rows of the table go through `check_structure`."""
    return request.param


@pytest.fixture(params=["full", "tied_diag", "spherical"])
def storage_type(request):
    """A row for each storage, of which one is shared: for what all rows of a storage have alike.

    What a row itself decides is for `covariance_type`, and for `check_structure`.
    """
    return request.param


@pytest.fixture
def key():
    return jax.random.key(0)
