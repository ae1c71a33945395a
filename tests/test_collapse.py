"""Components that collapse: the others go on, and fits to heavy tails don't end with them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, EPS, array, assert_close, by_dtype
from sklearn.datasets import load_breast_cancer

import jaxgmm as jg
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.fits.initialization import STARTS, least_rows
from jaxgmm.fits.splitting import split_instead
from jaxgmm.solvers.convergence import CONFIRMATIONS, Gain, Progress
from jaxgmm.steps.rows import Rows, standardization_of

N_ROWS, D, K = 400, 2, 10


def outlier_beside(n_rows):
    """Three groups that overlap, and one row far from them all."""
    random = np.random.default_rng(0)
    body = random.normal(size=(n_rows, 2)) @ np.array([[1, 0.6], [0, 0.8]])
    body += 1.2 * random.integers(0, 3, size=(n_rows, 1))
    return array(np.vstack([body, [[40.0, -35.0]]]))


def heavy_tails(n_rows=N_ROWS, seed=0):
    """Student's t with two degrees of freedom around six centers."""
    random = np.random.default_rng(seed)
    centers = 4 * random.normal(size=(6, D))
    noise = random.normal(size=(n_rows, D)) / np.sqrt(random.chisquare(2, size=(n_rows, 1)) / 2)
    return centers[random.integers(6, size=n_rows)] + noise


def outlier_start(x):
    """Three components in the body, and one on the outlier that has collapsed."""
    return jg.GaussianMixture.create(
        weights=[0.3, 0.3, 0.39, 0.01],
        means=[[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], np.asarray(x[-1], float).tolist()],
        covariances=[[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1e-6, 1e-6]],
        covariance_type="diag",
    )


@pytest.mark.parametrize("accelerate", [None, "squarem"])
def test_a_collapsed_component_does_not_stop_the_others(accelerate):
    """Its noise is larger than all that they still gain."""
    x = outlier_beside(299)
    start = jax.tree.map(lambda leaf: leaf.astype(DTYPE), outlier_start(x))
    start = jg.em(start, x, covariance_type="full", max_iter=3, history=False).mixture
    options = {"covariance_type": "full", "history": False, "accelerate": accelerate}
    found = jg.em(start, x, **options, max_iter=2000)
    end = jg.em(found.mixture, x, covariance_type="full", tol=0.0, max_iter=2000, history=False)
    short = (float(end.objective) - float(found.objective)) / len(x)
    assert found.degenerate.tolist() == [False, False, False, True]
    assert found.n_iter > 20
    # What has collapsed makes the objective itself noisy.
    assert short <= 10 * float(found.remaining_gain) + by_dtype(2e-4, 1e-9)


def gain(of_shapes, rounding):
    """Of means and covariances; none of the mixing weights."""
    none = np.zeros_like(of_shapes)
    return Gain(array([none, of_shapes]), array([none, rounding]))


def test_noise_of_one_component_is_no_arrival_of_the_others_and_no_progress():
    tol = array(1e-7)
    progress = Progress.begin(jnp.zeros(2, DTYPE))
    for number in range(20):
        noise = 1e-3 * (1 + number % 3)
        progress = progress.update(gain([0.5**number, noise], [1e-12, 1e-2]), tol)
        assert not progress.converged() or progress.remaining < tol
    assert_close(progress.gain, 0.5**19)
    assert_close(progress.ratio, 0.5)


def test_gains_are_compared_with_those_of_the_same_components():
    """One that falls silent takes nothing from the ratio of the others."""
    progress = Progress.begin(jnp.zeros(2, DTYPE))
    progress = progress.update(gain([1e-3, 1e-2], [1e-9, 1e-9]), array(1e-7))
    progress = progress.update(gain([9e-4, 1e-10], [1e-9, 1e-9]), array(1e-7))
    assert_close(progress.ratio, 0.9)


def test_what_remains_is_by_the_slowest_rate_of_the_last_steps():
    progress = Progress.begin(jnp.zeros(1, DTYPE))
    gains, reported = 0.9 ** np.arange(30.0), []
    gains[20:] = 0.1 * 0.1 ** np.arange(10.0)
    for value in gains:
        progress = progress.update(gain([value], [0.0]), array(1e-9))
        reported.append(float(progress.remaining))
    slow = 0.9 / (1 - 0.9**0.5)
    assert_close(reported[19], slow * gains[19], rtol=by_dtype(1e-3, 1e-9))
    assert_close(reported[20], slow * gains[20], rtol=by_dtype(1e-3, 1e-9))
    fast = 0.1 / (1 - 0.1**0.5)
    assert_close(reported[-1], fast * gains[-1], rtol=by_dtype(1e-3, 1e-9))


def test_where_all_is_noise_what_remains_is_no_less_than_that():
    progress, tol = Progress.begin(jnp.zeros(2, DTYPE)), array(1e-7)
    for value in 0.25 ** np.arange(8.0):
        progress = progress.update(gain([value, value], [1e-12, 1e-12]), tol)
    noise = progress.update(gain([1e-10, 2e-10], [1e-9, 1e-9]), tol)
    assert noise.confirmed == CONFIRMATIONS
    assert_close(noise.remaining, 3e-10 * 0.25 / (1 - 0.5), rtol=by_dtype(1e-3, 1e-9))
    loud = progress.update(gain([1e-5, 2e-5], [1e-4, 1e-9]), tol)
    assert not loud.converged()


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_the_remaining_gain_of_heavy_tails_is_never_an_order_of_magnitude_too_small(
    covariance_type,
):
    """Judged by 3000 further steps.

    A coarser tolerance takes a plateau of such data for a maximum, in one dtype or the other: gains
    that fall over a hundred steps and rise again afterwards say nothing else.
    """
    x = array(heavy_tails())
    climb = partial(jg.em, covariance_type=covariance_type, history=False)
    start = jg.fit(jax.random.key(0), x, K, covariance_type=covariance_type, max_iter=0).mixture
    for tol in (1e-5, 1e-6):
        some = climb(start, x, tol=tol, max_iter=500)
        end = climb(some.mixture, x, tol=0.0, max_iter=3000)
        short = float(end.objective - some.objective) / N_ROWS
        rounding = 4 * EPS * abs(float(end.objective)) / N_ROWS
        assert short <= 10 * float(some.remaining_gain) + rounding


@pytest.mark.parametrize("init", ["k-means++", "kmeans", "random_from_data"])
def test_parts_that_fits_start_from_have_rows_for_a_covariance(init, key):
    """Twice as many as a full covariance takes; greedy seeds alone have parts of one row."""
    x = array(heavy_tails())
    weights = jnp.ones(N_ROWS, DTYPE)
    rows = Rows(standardization_of(x, weights, isotropic=False), x, weights)
    least = least_rows(STRUCTURES["full"], D)
    z = rows.standardization.standardize(x, weights)

    @partial(jax.jit, static_argnames="least")
    def smallest(key, least):
        partition = STARTS[init](key, rows, jnp.ones(K, bool), jnp.asarray(least))
        return jnp.sum(partition(jnp.arange(N_ROWS), z), axis=0).min()

    keys = jax.random.split(key, 4)
    assert least == 2 * (D + 1)
    assert min(float(smallest(one, 2 * (D + 1))) for one in keys) >= 2 * (D + 1)
    if init == "k-means++":
        assert min(float(smallest(one, 0)) for one in keys) == 1


def test_fits_to_heavy_tails_end_healthy(key):
    """Where from the same starts, left alone, most end with a component on as many rows as
    features."""
    x, n_models = array(heavy_tails()), 8
    weights = jnp.ones((n_models, N_ROWS), DTYPE)
    options = {"max_iter": 100, "tol": 1e-4}
    found = jg.fit_batch(key, x, K, weights=weights, **options)
    starts = jg.fit_batch(key, x, K, weights=weights, max_iter=0).mixture
    alone = jg.fit_batch(key, x, K, weights=weights, init=starts, **options)
    n_degenerate = int(np.sum(np.any(found.degenerate, axis=1)))
    assert n_degenerate <= int(np.sum(np.any(alone.degenerate, axis=1))) // 4
    assert np.all(np.isfinite(found.objective))


@pytest.fixture
def mixture():
    return jg.GaussianMixture.create(
        [0.4, 0.1, 0.3, 0.2],
        [[0.0, 0.0], [5.0, 5.0], [9.0, 0.0], [0.0, 9.0]],
        [[4.0, 1.0], [1e-6, 1e-6], [1.0, 1.0], [2.0, 2.0]],
        "diag",
    )


def test_large_components_are_split_in_the_place_of_collapsed_ones(mixture):
    bad, spare = jnp.array([False, True, False, False]), jnp.array([True, False, True, True])
    split = split_instead(mixture, bad, spare)
    assert_close(split.weights, np.array([0.4, 0.4, 0.6, 0.4]) / 1.8, rtol=1e-4)
    step = np.array([2.0, 1.0]) / 2**0.5
    assert_close(split.means[0], -step, rtol=1e-5)
    assert_close(split.means[1], step, rtol=1e-5)
    assert_close(split.covariance.scale[1], mixture.covariance.scale[0])
    for k in (2, 3):
        assert_close(split.means[k], mixture.means[k])


def test_no_more_are_replaced_than_there_are_components_to_split(mixture):
    bad = jnp.array([False, True, True, True])
    split = split_instead(mixture, bad, jnp.array([True, False, False, False]))
    assert_close(split.means[2:], mixture.means[2:])
    unchanged = split_instead(mixture, bad, jnp.zeros(4, bool))
    for before, after in zip(jax.tree.leaves(mixture), jax.tree.leaves(unchanged), strict=True):
        assert_close(after, before, rtol=1e-6)


def test_starts_that_are_given_are_left_alone(key):
    """Even if a component of them has collapsed."""
    x = outlier_beside(99)
    start = jax.tree.map(lambda leaf: leaf.astype(DTYPE), outlier_start(x))
    found = jg.fit(key, x, 4, covariance_type="diag", init=start, max_iter=40)
    assert found.degenerate.tolist() == [False, False, False, True]


def test_collapsed_components_do_not_hide_their_mixing_weights():
    """On a lattice all of them collapse, and go on to share the rows among them."""
    x = array(np.random.default_rng(4).poisson([1.0, 3.0], (300, 2)))
    start = jg.fit(jax.random.key(1), x, 6, max_iter=0).mixture
    some = jg.em(start, x, tol=1e-5, max_iter=1000, history=False)
    end = jg.em(some.mixture, x, tol=0.0, max_iter=2000, history=False)
    short = float(end.objective - some.objective) / len(x)
    assert short <= 10 * float(some.remaining_gain) + by_dtype(1e-4, 1e-9)


def test_what_regularization_flattens_is_not_split_anew():
    """Three of four components; splits of the last one would only lower the objective."""
    x = array(load_breast_cancer().data[:, :5])
    options = {"reg_covar": 1e-3, "history": False, "max_iter": 1000}
    for number in range(3):
        key = jax.random.key(number)
        start = jg.fit(key, x, 4, **{**options, "max_iter": 0}).mixture
        alone, found = jg.em(start, x, **options), jg.fit(key, x, 4, **options)
        assert np.sum(alone.degenerate) == 3
        assert found.objective >= alone.objective - 4 * EPS * abs(float(alone.objective))
