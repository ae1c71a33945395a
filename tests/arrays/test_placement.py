"""Where arrays are and how long they may be: said before anything is compiled or copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, array, assert_same_mixture, blobs, padded

import jaxgmm as jg
from jaxgmm.arrays import padding
from jaxgmm.arrays.padding import with_rows
from jaxgmm.arrays.placement import check_points
from jaxgmm.execution import blocks
from jaxgmm.fits import batching

KEY = jax.random.key(0)
ONE = jg.GaussianMixture.create([1.0], [[0.0]], [1.0], "spherical")
# More rows than 32-bit integers count; of which no memory is held.
HUGE = np.broadcast_to(np.float32(0), (2**31, 1))

OF_ROWS = {
    "fit": lambda x: jg.fit(KEY, x, 1),
    "fit from a mixture": lambda x: jg.fit(KEY, x, 1, init=ONE, covariance_type="spherical"),
    "em": lambda x: jg.em(ONE, x),
    "em_step": lambda x: jg.em_step(ONE, x),
    "e_step": lambda x: jg.e_step(ONE, x),
    "accumulate": lambda x: jg.accumulate(x, np.ones((2, 1)), covariance_type="diag"),
    "log_likelihood": lambda x: jg.log_likelihood(ONE, x),
    "bic": lambda x: jg.bic(ONE, x),
    "icl": lambda x: jg.icl(ONE, x),
    "select": lambda x: jg.select(KEY, x, 1, "diag"),
    "fit_batch": lambda x: jg.fit_batch(KEY, x[None], 1),
    "fit_batch of a list": lambda x: jg.fit_batch(KEY, [x], 1),
    "fit_gradient": lambda x: jg.fit_gradient(ONE, x),
    "observed_information": lambda x: jg.observed_information(ONE, x),
    "standard_errors": lambda x: jg.standard_errors(ONE, x),
    "log_prob": ONE.log_prob,
    "responsibilities": ONE.responsibilities,
    "predict": ONE.predict,
    "regress": lambda x: jg.regress(
        jg.GaussianMixture.create([1.0], [[0, 0]], [1.0], "spherical"), [0], x
    ),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_more_rows_than_integers_count_are_refused(name):
    with pytest.raises(ValueError, match="at most 2³¹ - 1 = 2147483647 rows, got shape"):
        OF_ROWS[name](HUGE)


def test_traced_rows_are_counted_too():
    struct = jax.ShapeDtypeStruct((2**31, 1), DTYPE)
    for name in ("em", "e_step", "log_prob", "log_likelihood"):
        with pytest.raises(ValueError, match="2147483647 rows"):
            jax.eval_shape(OF_ROWS[name], struct)


def test_more_numbers_than_integers_count_are_fine():
    """And the number of rows next to the limit."""
    mixture = jg.GaussianMixture.create([1.0], [[0.0] * 16], [1.0], "spherical")
    for shape in ((2**28, 16), (2**31 - 1, 16)):
        found = jax.eval_shape(lambda x: jg.e_step(mixture, x), jax.ShapeDtypeStruct(shape, DTYPE))
        assert found.first.shape == (1, 16)


def test_points_are_counted_over_all_axes():
    with pytest.raises(ValueError, match="2147483647"):
        check_points("x", jax.ShapeDtypeStruct((2**16, 2**16, 1), DTYPE), 1)


@pytest.fixture
def away_from_the_host(monkeypatch):
    """As if NumPy couldn't read JAX's arrays without a transfer; lists what it is given to read."""
    given = []

    def recorded(array, device=None):
        given.append(array.shape)
        return jax.device_put(array, device)

    def nowhere(*arrays):
        return not any(isinstance(array, jax.Array) for array in arrays)

    for module in (batching, blocks, padding):
        monkeypatch.setattr(module, "on_host", nowhere)
        monkeypatch.setattr(module, "from_host", recorded)
    monkeypatch.setattr(blocks, "platform_of", lambda *_: "gpu")
    return given


def test_batches_stay_on_their_device(away_from_the_host):
    """Padded, packed, joined and put in order there, with the same results."""
    sets = [array(blobs()[:n]) for n in (70, 90, 60)]
    x, weights = (
        jnp.stack(arrays) for arrays in zip(*(padded(s, n_rows=96) for s in sets), strict=True)
    )
    of_list = jg.fit_batch(KEY, sets, 2, max_iter=3, init="random_from_data")
    of_arrays = jg.fit_batch(KEY, x, 2, weights=weights, max_iter=3, init="random_from_data")
    # But for the count of models and what NumPy had from the beginning.
    assert all(len(shape) < 3 and np.prod(shape) <= 8 for shape in away_from_the_host)
    for b in range(3):
        assert_same_mixture(of_list.mixture[b], of_arrays.mixture[b], 1e-3)
    assert with_rows(sets[0], 96).tolist() == np.pad(sets[0], ((0, 26), (0, 0))).tolist()
