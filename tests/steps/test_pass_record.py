"""The record says in which form passes were made."""

import jax
import jax.numpy as jnp
import numpy as np
from helpers import D, K, array, blobs, by_dtype, set_budget, start_from_labels

import jaxgmm as jg


def test_every_iteration_of_every_fit_is_written_down_and_none_later(monkeypatch):
    """By products in wide clusters, and apart where they are too tight; in a batch, of each."""
    set_budget(monkeypatch, small=0)
    set_budget(monkeypatch, smallest_pass=0)
    data = [array(blobs(width=3.0)), array(blobs(width=by_dtype(1e-4, 1e-7)))]
    starts = [start_from_labels(x, "full") for x in data]
    for x, start, kept in zip(data, starts, (True, False), strict=True):
        with jg.record_passes() as record:
            jg.em(start, x, max_iter=3, tol=0)
        assert record.n_passes == 3 and set(record.n_components) == {K}
        assert (record.share_of_passes == 1) == kept
        assert (record.share_of_components == 1) == kept
        # Of those that are tight, one is the origin.
        assert max(record.n_logits_apart) == (0 if kept else K - 1)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    with jg.record_passes() as record:
        jax.vmap(lambda start, x: jg.em(start, x, max_iter=2, tol=0))(both, jnp.stack(data))
    assert record.n_passes == 4 and 0.5 <= record.share_of_passes < 1
    jg.em(starts[0], data[0], max_iter=3, tol=0)
    jax.effects_barrier()
    assert record.n_passes == 4


def test_a_pass_too_short_for_products_has_all_components_apart():
    with jg.record_passes() as record:
        jg.e_step(start_from_labels(blobs(), "full"), array(blobs()))
    assert record.n_passes == 1 and record.share_of_components == 0
    assert record.n_moments_apart == [K]


def test_nothing_is_a_record_too():
    with jg.record_passes() as record:
        pass
    assert record.n_passes == 0 and D == 2
    assert np.isnan(record.share_of_passes) and np.isnan(record.share_of_components)
