"""The record says in which form passes were made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import K, array, blobs, by_dtype, set_budget, start_from_labels

import jaxgmm as jg


@pytest.fixture
def always_products(monkeypatch):
    set_budget(monkeypatch, small=0)
    set_budget(monkeypatch, smallest_pass=0)


def data_and_starts(covariance_type):
    data = [array(blobs(width=3.0)), array(blobs(width=by_dtype(1e-4, 1e-7)))]
    return data, [start_from_labels(x, covariance_type) for x in data]


def test_every_iteration_of_every_fit_is_written_down_and_none_later(always_products):
    """By products in wide clusters, and apart where they are too tight; in a batch, of each."""
    data, starts = data_and_starts("full")
    for x, start, kept in zip(data, starts, (True, False), strict=True):
        with jg.record_passes() as record:
            jg.em(start, x, max_iter=3, tol=0)
        assert [one.n_components for one in record.passes] == [K] * 3
        assert (record.share_of_passes == 1) == kept
        assert (record.share_of_components == 1) == kept
        # Of those that are tight, one is the origin.
        assert max(one.n_logits_apart for one in record.passes) == (0 if kept else K - 1)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    with jg.record_passes() as record:
        jax.vmap(lambda start, x: jg.em(start, x, max_iter=3, tol=0))(both, jnp.stack(data))
    assert len(record.passes) == 6 and 0.5 <= record.share_of_passes < 1
    jg.em(starts[0], data[0], max_iter=3, tol=0)
    jax.effects_barrier()
    assert len(record.passes) == 6


def test_components_that_share_a_covariance_go_together(always_products):
    data, starts = data_and_starts("tied")
    with jg.record_passes() as record:
        jg.em(starts[1], data[1], max_iter=3, tol=0)
    assert {one.n_logits_apart for one in record.passes} <= {0, K}
    assert record.share_of_components < 1


def test_a_pass_too_short_for_products_has_all_components_apart():
    """Also in a batch, of which each member is written down."""
    start = start_from_labels(blobs(), "full")
    with jg.record_passes() as record:
        jg.e_step(start, array(blobs()))
    assert record.passes == [(K, K, K, K)] and record.share_of_components == 0
    with jg.record_passes() as record:
        jax.vmap(lambda x: jg.em(start, x, max_iter=2, tol=0))(jnp.stack([array(blobs())] * 3))
    assert len(record.passes) == 6 and record.share_of_passes == 0


def test_nothing_is_a_record_too():
    with jg.record_passes() as record:
        pass
    assert record.passes == []
    assert np.isnan(record.share_of_passes) and np.isnan(record.share_of_components)
