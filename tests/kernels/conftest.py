"""Kernels are switched on for a test, and no program is left that was made so."""

import jax
import pytest
from helpers import set_budget


@pytest.fixture
def kernels(monkeypatch):
    """A switch for the kernels; off to begin with."""
    jax.clear_caches()
    yield lambda how: (set_budget(monkeypatch, kernels=how, smallest_pass=0), jax.clear_caches())
    jax.clear_caches()
