"""Maximum likelihood by gradients, beside EM."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    DTYPE,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    padded,
    start_from_labels,
)

import jaxgmm as jg

X = blobs(width=2.0)


def test_it_finds_the_maximum_that_em_finds(storage_type):
    start = start_from_labels(X, storage_type)
    ours = jg.fit_gradient(start, array(X)).check()
    theirs = jg.em(start, array(X), max_iter=5000)
    assert ours.n_iter < 200
    assert_close(ours.log_likelihood, theirs.log_likelihood, 0, 1e-4 * len(X))
    assert_same_mixture(ours.mixture, theirs.mixture, by_dtype(0.05, 0.02))
    np.testing.assert_allclose(ours.history[-1], ours.objective)


def test_any_optimizer_will_do():
    start = start_from_labels(X, "diag")
    for optimizer in (optax.adam(0.05), optax.chain(optax.clip(1.0), optax.sgd(0.3, 0.9))):
        result = jg.fit_gradient(start, array(X), optimizer, max_iter=3000).check()
        expected = jg.em(start, array(X), max_iter=5000).log_likelihood
        assert_close(result.log_likelihood, expected, 0, 1e-4 * len(X))


def test_few_updates_are_not_called_convergence():
    start = start_from_labels(X, "diag", blur=0.9)
    result = jg.fit_gradient(start, array(X), optax.sgd(1e-3), max_iter=5)
    assert result.status == jg.Status.MAX_ITER and result.n_iter == 5
    assert not result.remaining_gain < 1e-7


def test_drawn_rows_lead_near_the_maximum(key):
    start = start_from_labels(X, "diag", blur=0.9)
    result = jg.fit_gradient(start, array(X), key=key, batch_rows=32, max_iter=400)
    top = jg.em(start, array(X), max_iter=5000).log_likelihood
    begin = jg.log_likelihood(start, array(X))
    assert result.n_iter == 400 and result.status == jg.Status.MAX_ITER
    assert top - result.log_likelihood < (top - begin) / 3
    again = jg.fit_gradient(start, array(X), key=key, batch_rows=32, max_iter=400)
    np.testing.assert_array_equal(again.mixture.means, result.mixture.means)


def test_rows_without_weight_are_absent():
    x, weights = padded(X[:60])
    start = start_from_labels(X, "diag")
    ours = jg.fit_gradient(start, x, weights=weights)
    theirs = jg.fit_gradient(start, array(X[:60]))
    assert_close(ours.log_likelihood, theirs.log_likelihood, 0, by_dtype(1e-3, 1e-6))


def test_derivatives_are_those_of_the_maximum():
    start = start_from_labels(X, "diag")

    def of(fit):
        return jax.grad(lambda x: jnp.sum(jnp.sin(fit(start, x).mixture.means)))(array(X))

    assert_close(of(jg.fit_gradient), of(jg.em), 0, by_dtype(1e-4, 1e-8))


def test_a_batch_of_them_is_each_of_them():
    start = start_from_labels(X, "diag")
    batch = jnp.stack([array(X), array(X) + 1])
    together = jax.vmap(lambda x: jg.fit_gradient(start, x))(batch)
    alone = jg.fit_gradient(start, batch[1])
    assert together.converged.all()
    assert_close(together[1].log_likelihood, alone.log_likelihood, 0, by_dtype(1e-2, 1e-5))


def test_a_start_of_nan_data_says_so():
    x = array(X).at[3, 1].set(jnp.nan)
    start = start_from_labels(X, "diag")
    result = jax.jit(lambda x: jg.fit_gradient(start, x))(x)
    assert result.status == jg.Status.NON_FINITE
    assert np.isfinite(double(result.mixture.means)).all()


def test_what_is_no_optimizer_is_refused(key):
    start = start_from_labels(X, "diag")
    with pytest.raises(TypeError, match="optax"):
        jg.fit_gradient(start, array(X), "adam")
    with pytest.raises(ValueError, match="batch_rows"):
        jg.fit_gradient(start, array(X), key=key, batch_rows=0)


def test_a_mixture_can_be_trained_as_part_of_something_else():
    """Coordinates are a parameter like any other."""
    x = array(X)
    coordinates = jg.unconstrain(start_from_labels(X, "full"))
    optimizer = optax.sgd(0.02, 0.9)

    @jax.jit
    def update(coordinates, state):
        def loss(coordinates):
            return -jnp.mean(jg.constrain(coordinates).log_prob(x))

        value, slope = jax.value_and_grad(loss)(coordinates)
        updates, state = optimizer.update(slope, state)
        return optax.apply_updates(coordinates, updates), state, value

    state, values = optimizer.init(coordinates), []
    for _ in range(30):
        coordinates, state, value = update(coordinates, state)
        values.append(float(value))
    assert values[-1] < values[0] and coordinates.means.dtype == DTYPE


def test_rows_without_weight_are_never_drawn(key):
    """Padding neither: of a batch of nothing else the objective would be 0/0."""
    start = start_from_labels(X, "diag")
    weights = array(np.arange(len(X)) % 30 == 0)
    options = {"key": key, "batch_rows": 1, "max_iter": 40}
    result = jg.fit_gradient(start, array(X), weights=weights, **options)
    assert result.status == jg.Status.MAX_ITER and result.n_iter == 40
    few = jg.fit_gradient(start, array(X[::30]), **options)
    assert few.status == jg.Status.MAX_ITER
