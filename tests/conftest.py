"""Nothing may promote dtypes or ranks silently, anywhere in the library."""

import jax
import pytest

from jaxgmm.structures import STRUCTURES

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(params=STRUCTURES)
def covariance_type(request):
    """Every row of the table of covariance types."""
    return request.param


@pytest.fixture
def key():
    return jax.random.key(0)
