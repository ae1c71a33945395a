"""Kernels are lowered for a GPU, as part of programs, which takes no GPU.

Interpreted kernels do some of what Triton refuses. Whether it compiles them is seen with a GPU, or
by `benchmarks/accelerators.py --compile`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import jaxgmm as jg
from jaxgmm.kernels.launching import TRITON

pytestmark = [
    pytest.mark.once,
    pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated"),
]

N, D, K = 4096, 5, 3
GPU = AbstractDevice(platform="gpu", device_kind="NVIDIA H100 80GB HBM3", num_cores=None)
MESH = AbstractMesh((2,), ("rows",), axis_types=(AxisType.Auto,), abstract_device=GPU)


def lowered(function, *arguments):
    """The text of a program for a GPU."""
    with jax.sharding.use_abstract_mesh(MESH):
        traced = jax.jit(function).trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def rows(n_features=D):
    return jax.ShapeDtypeStruct((N, n_features), jnp.float32)


def start(covariance_type, n_features=D):
    def made(x):
        first = jnp.eye(K, dtype=x.dtype)[jnp.arange(N) % K]
        return jg.m_step(jg.accumulate(x, first, covariance_type=covariance_type), covariance_type)

    return jax.eval_shape(made, rows(n_features))


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_em_is_lowered_with_kernels(kernels, covariance_type):
    kernels(TRITON)
    text = lowered(partial(jg.em, max_iter=3), start(covariance_type), rows())
    assert '"em_pass"' in text
    has_factors = covariance_type in ("full", "tied")
    assert ('"cholesky_factors"' in text) == ('"inverses_of_lower"' in text) == has_factors


@pytest.mark.parametrize("n_features", [33, 64])
def test_many_features_are_lowered_with_kernels(kernels, n_features):
    kernels(TRITON)
    text = lowered(partial(jg.em, max_iter=3), start("full", n_features), rows(n_features))
    assert '"cholesky_factors"' in text and '"inverses_of_lower"' in text


def test_rows_spread_over_gpus_are_lowered_with_kernels(kernels):
    kernels(TRITON)

    def spread(mixture, x):
        own = partial(jg.em, max_iter=3, axis_name="rows")
        specs = {"in_specs": (P(), P("rows")), "out_specs": P()}
        return jax.shard_map(own, mesh=MESH, **specs)(mixture, x)

    text = lowered(spread, start("full"), rows())
    assert '"em_pass"' in text and '"cholesky_factors"' in text


def test_derivatives_are_lowered_with_kernels(kernels):
    kernels(TRITON)

    def slope(mixture, x):
        return jax.grad(lambda x: jg.em(mixture, x, max_iter=3).log_likelihood)(x)

    assert '"em_pass"' in lowered(slope, start("full"), rows())
