"""Many fits in one call: each is what `fit` gives, whatever becomes of the others."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DOUBLE,
    DTYPE,
    D,
    K,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    cloud,
    double,
    padded,
    set_budget,
    start_at_random,
    start_from_labels,
)

import jaxgmm as jg
from jaxgmm.arrays import budgets
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.execution import blocks
from jaxgmm.execution.queue import iterate_all
from jaxgmm.fits import entry, restarts

TOL = by_dtype(1e-4, 1e-8)
BOUND = by_dtype(0.1, 2e-3)
SLOW, SINGULAR, SPOILED = 3, 4, 5


def data_sets():
    """Of 90 rows and fewer; of the last three one is slow, one singular, and one full of NaN."""
    clusters = [blobs(), blobs(seed=1)[10:], blobs(seed=2)[::2]]
    flat = np.stack([np.arange(60.0) % 7, np.ones(60)], axis=1)
    return [*clusters, cloud()[:80], flat, np.full((70, D), np.nan)]


def stacked(data):
    """Data sets of many lengths as arrays, with rows of NaN behind, and weights."""
    x, weights = zip(*(padded(item) for item in data), strict=True)
    return jnp.stack(x), jnp.stack(weights)


@cache
def single_fit(names, values):
    """`fit` under `jit`, where values are not known and NaN is not refused."""
    options = dict(zip(names, values, strict=True))
    return jax.jit(lambda key, x, weights: jg.fit(key, x, K, weights=weights, **options))


def single(key, b, x, weights=None, **options):
    """The fit that model b is to be."""
    weights = jnp.ones(len(x), DTYPE) if weights is None else weights
    fit = single_fit(tuple(options), tuple(options.values()))
    return fit(jax.random.fold_in(key, b), x, weights)


def assert_same_fit(actual, expected, bound=None):
    """Equal up to where a fit that has converged may end.

    Where one creeps over a plateau in float32, rounding decides how many steps that takes, whether
    they are more than are allowed included, and the tolerance how far below the top it ends.
    """
    creeps = not DOUBLE and min(expected.n_iter, actual.n_iter) > 50
    healthy = (jg.Status.CONVERGED, jg.Status.MAX_ITER)
    either = creeps and actual.status in healthy and expected.status in healthy
    assert either or actual.status == expected.status
    assert actual.degenerate.tolist() == expected.degenerate.tolist()
    if not creeps:
        assert abs(int(actual.n_iter) - int(expected.n_iter)) <= 1
    if either or expected.status == jg.Status.CONVERGED:
        assert_same_mixture(actual.mixture, expected.mixture, BOUND if bound is None else bound)
        for name in ("log_likelihood", "objective"):
            reached = getattr(expected, name)
            left = TOL * N if creeps else 0
            error = by_dtype(1e-5, 1e-8) * abs(float(reached)) + left
            assert_close(getattr(actual, name), reached, 0, error)


def test_each_model_is_what_fit_gives(key, storage_type):
    """For data of many lengths, with one that is slow, one singular, and one full of NaN."""
    x, weights = stacked(data_sets())
    options = {"covariance_type": storage_type, "tol": TOL}
    results = jg.fit_batch(key, x, K, weights=weights, **options)
    for b in range(len(x)):
        assert_same_fit(results[b], single(key, b, x[b], weights[b], **options))
    assert results.status[:3].tolist() == [jg.Status.CONVERGED] * 3
    if not STRUCTURES[storage_type].isotropic:
        assert results.status[SINGULAR] == jg.Status.DEGENERATE
    assert results.status[SPOILED] == jg.Status.NON_FINITE
    assert results.n_iter[SLOW] > 2 * max(results.n_iter[:3])


def test_a_model_that_fails_changes_nothing_for_the_others(key):
    x, weights = stacked(data_sets())
    good = jg.fit_batch(key, x, K, weights=weights, tol=TOL)
    for spoiled in (x.at[SPOILED].set(0.0), x.at[SPOILED, 3].set(jnp.inf), x.at[SPOILED].set(1e30)):
        other = jg.fit_batch(key, spoiled, K, weights=weights, tol=TOL)
        for b in range(SPOILED):
            assert_same_fit(other[b], good[b], by_dtype(1e-3, 1e-8))


@pytest.fixture
def several_cores(monkeypatch):
    """Blocks of two models, three at a time, whatever this machine has."""
    if jax.default_backend() != "cpu":
        pytest.skip("blocks are side by side on CPUs only")
    monkeypatch.setattr(blocks, "n_cores", lambda: 3)
    set_budget(monkeypatch, models_in_call=2)


def of_one_program(key, x, weights, **options):
    """Under `jit` there are no blocks."""
    return jax.jit(lambda x, weights: jg.fit_batch(key, x, K, weights=weights, **options))(
        x, weights
    )


def assert_same_results(actual, expected):
    """Of batches, model by model."""
    assert actual.status.shape == expected.status.shape
    for b in range(actual.status.size):
        assert_same_fit(actual[b], expected[b])


@pytest.mark.parametrize("n_models", [1, 2, 5, 6])
def test_blocks_side_by_side_change_nothing(key, several_cores, n_models):
    x, weights = stacked(data_sets()[::-1])
    x, weights, options = x[:n_models], weights[:n_models], {"tol": TOL, "n_init": 2}
    results = jg.fit_batch(key, x, K, weights=weights, **options)
    assert_same_results(results, of_one_program(key, x, weights, **options))


def test_blocks_of_one_data_set_with_many_weights(key, several_cores):
    x = array(blobs())
    weights = array(np.random.default_rng(0).uniform(size=(2 * N, N)))
    results = jg.fit_batch(key, x, K, weights=weights, tol=TOL)
    assert_same_results(results, of_one_program(key, x, weights, tol=TOL))


def test_blocks_of_given_starts(key, several_cores):
    x, weights = stacked(data_sets()[:3])
    start = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), start_at_random(blobs(), "full"))
    soft = np.random.default_rng(0).dirichlet(np.ones(K), x.shape[:2])
    for init in (start, array(soft)):
        results = jg.fit_batch(key, x, K, weights=weights, init=init, tol=TOL)
        assert_same_results(results, of_one_program(key, x, weights, init=init, tol=TOL))


def test_threads_know_the_dtype_of_their_caller(key, several_cores):
    """JAX's settings belong to a thread."""
    data = np.asarray(blobs(), np.float32 if DOUBLE else np.float64)
    with jax.enable_x64(not DOUBLE):
        x = jnp.asarray(np.stack([data] * 5))
        results = jg.fit_batch(key, x, K, history=True, max_iter=50)
    assert results.mixture.means.dtype == results.history.dtype == x.dtype != DTYPE


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, 0.0])
def test_bad_weights_are_the_trouble_of_their_model(key, bad, storage_type):
    x = jnp.stack([array(blobs())] * 3)
    weights = jnp.ones((3, N), DTYPE).at[1].set(bad)
    results = jg.fit_batch(key, x, K, weights=weights, covariance_type=storage_type, tol=TOL)
    expected = [jg.Status.CONVERGED, jg.Status.NON_FINITE, jg.Status.CONVERGED]
    assert results.status.tolist() == expected
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(results.mixture))


def test_responsibilities_of_nothing(key):
    """No row belongs to any component."""
    result = jg.fit(key, array(blobs()), K, init=jnp.zeros((N, K), DTYPE), tol=TOL)
    assert result.status == jg.Status.DEGENERATE
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result.mixture))


def test_one_negative_weight_is_enough(key):
    weights = jnp.ones((2, N), DTYPE).at[1, 7].set(-0.25)
    results = jg.fit_batch(key, array(blobs()), K, weights=weights, tol=TOL)
    assert results.status.tolist() == [jg.Status.CONVERGED, jg.Status.NON_FINITE]


@pytest.mark.parametrize("length", [40, 300])
def test_a_slow_model_changes_nothing_for_the_others(key, length):
    """One that needs hundreds of times as many steps as any other, wherever it is in the queue."""
    random = np.random.default_rng(0)
    x = random.normal(size=(length, N, 1)) + 40.0 * (np.arange(N) % 2)[None, :, None]
    slow = length // 3
    x[slow] = random.normal(size=(N, 1))
    results = jg.fit_batch(key, array(x), 2, tol=by_dtype(1e-6, 1e-8), covariance_type="spherical")
    others = np.delete(np.asarray(results.n_iter), slow)
    assert int(results.n_iter[slow]) > 30 * np.median(others)
    assert np.all(np.delete(np.asarray(results.status), slow) == jg.Status.CONVERGED)
    centers = np.sort(double(results.mixture.means)[..., 0], axis=1)
    expected = np.stack([x[:, 0::2, 0].mean(axis=1), x[:, 1::2, 0].mean(axis=1)], axis=1)
    assert_close(np.delete(centers, slow, 0), np.delete(expected, slow, 0), 0, 1e-4)


def test_a_list_of_data_sets_is_an_array_with_weights(key):
    data = data_sets()
    x, weights = stacked(data)
    expected = jg.fit_batch(key, x, K, weights=weights, tol=TOL)
    actual = jg.fit_batch(key, [array(item) for item in data], K, tol=TOL)
    own = [jnp.ones(len(item), DTYPE) for item in data]
    weighted = jg.fit_batch(key, [*map(array, data)], K, weights=own, tol=TOL)
    for b in range(len(data)):
        assert_same_fit(actual[b], expected[b])
        assert_same_fit(weighted[b], expected[b])


@pytest.mark.parametrize("covariance_type", ["full", "tied_spherical"])
def test_one_data_set_with_many_weightings(key, covariance_type):
    """As bootstrap and folds have them."""
    x = array(blobs())
    random = np.random.default_rng(0)
    counts = array(random.multinomial(N, np.full(N, 1 / N), size=4))
    options = {"covariance_type": covariance_type, "tol": TOL}
    results = jg.fit_batch(key, x, K, weights=counts, **options)
    for b in range(4):
        assert_same_fit(results[b], single(key, b, x, counts[b], **options))


def test_one_weighting_for_all_models(key):
    x = jnp.stack([array(blobs(seed=seed)) for seed in range(3)])
    weights = array(np.arange(N) % 3)
    results = jg.fit_batch(key, x, K, weights=weights, tol=TOL)
    repeated = jg.fit_batch(key, x, K, weights=jnp.stack([weights] * 3), tol=TOL)
    for b in range(3):
        assert_same_fit(results[b], repeated[b])


def test_restarts_of_each_model(key):
    x, weights = stacked(data_sets()[:3])
    options = {"init": "random", "n_init": 3, "tol": TOL, "covariance_type": "diag"}
    results = jg.fit_batch(key, x, K, weights=weights, **options)
    for b in range(3):
        assert_same_fit(results[b], single(key, b, x[b], weights[b], **options))


def test_starts_of_each_model(key):
    x = array([blobs(seed=seed) for seed in range(3)])
    starts = [start_at_random(item, "full", seed) for seed, item in enumerate(x)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    results = jg.fit_batch(key, x, K, init=batch, tol=TOL)
    for b in range(3):
        assert_same_fit(results[b], jg.em(starts[b], x[b], tol=TOL))


def test_responsibilities_of_each_model(key):
    x = array([blobs(seed=seed) for seed in range(3)])
    shares = array(np.random.default_rng(0).dirichlet(np.ones(K), size=(3, N)))
    results = jg.fit_batch(key, list(x), K, init=list(shares), tol=TOL)
    for b in range(3):
        assert_same_fit(results[b], jg.fit(key, x[b], K, init=shares[b], tol=TOL))


def test_accelerated(key):
    x, weights = stacked(data_sets()[:4])
    options = {"accelerate": "squarem", "tol": TOL}
    results = jg.fit_batch(key, x, K, weights=weights, **options)
    for b in range(4):
        assert_same_fit(results[b], single(key, b, x[b], weights[b], **options), 3 * BOUND)


def test_histories(key):
    x, weights = stacked(data_sets())
    results = jg.fit_batch(key, x, K, weights=weights, tol=TOL, max_iter=60, history=True)
    assert results.history.shape == (len(x), 60)
    for b in range(4):
        own = double(results.history[b])
        assert_close(own[-1], results.objective[b])
        assert np.all(np.diff(own[: int(results.n_iter[b])]) > -by_dtype(1e-2, 1e-9))
    assert jg.fit_batch(key, x, K, weights=weights, tol=TOL, max_iter=60).history is None


def test_numbers_are_traced_and_sizes_are_few(key, monkeypatch):
    """Neither another tolerance, nor another number of models of the same size, compiles."""
    x = np.stack([blobs(seed=seed)[:77] for seed in range(24)])
    options = {"covariance_type": "tied_spherical", "max_iter": 9}
    traced = []
    fit_all = entry.fit_all
    monkeypatch.setattr(entry, "fit_all", lambda *a: (traced.append(1), fit_all(*a))[1])
    for n_models in range(17, 25):
        results = jg.fit_batch(key, array(x[:n_models]), K, tol=10.0**-n_models, **options)
        assert results.status.shape == (n_models,)
    jg.fit_batch(jax.random.key(1), array(x[:17]), K, reg_covar=1e-3, **options)
    assert len(traced) == 1


def test_under_transformations(key):
    x = array(np.stack([blobs(seed=seed) for seed in range(4)]))
    expected = jg.fit_batch(key, x, K, tol=TOL)
    compiled = jax.jit(lambda x: jg.fit_batch(key, x, K, tol=TOL))(x)
    vmapped = jax.vmap(lambda x: jg.fit_batch(key, x, K, tol=TOL))(x.reshape(2, 2, N, D))
    for b in range(4):
        assert_same_fit(compiled[b], expected[b])
        one = jax.tree.map(lambda leaf, b=b: leaf[b // 2, b % 2], vmapped)
        again = single(key, b % 2, x[b], tol=TOL)
        assert_same_fit(one, again)


def test_lists_under_transformations(key):
    data = [array(blobs()), array(blobs(seed=1)[10:])]
    expected = jg.fit_batch(key, data, K, tol=TOL)
    compiled = jax.jit(lambda data: jg.fit_batch(key, data, K, tol=TOL))(data)
    for b in range(2):
        assert_same_fit(compiled[b], expected[b])


def test_known_data_in_a_function_that_is_traced(key):
    """As constants of a program of the caller's own."""
    x = array(np.stack([blobs(seed=seed) for seed in range(5)]))
    for data in (x, list(x)):
        for weights in (None, jnp.ones((5, N), DTYPE)):
            expected = jg.fit_batch(key, data, K, weights=weights, tol=TOL).log_likelihood

            @jax.jit
            def scaled(scale, data=data, weights=weights):
                return scale * jg.fit_batch(key, data, K, weights=weights, tol=TOL).log_likelihood

            assert_close(scaled(1.0), expected)


def test_derivatives_are_those_of_single_fits(key):
    x = array(np.stack([blobs(seed=seed, width=1.5) for seed in range(3)]))
    weights = jnp.ones((3, N), DTYPE)
    options = {"tol": by_dtype(1e-6, 1e-13), "covariance_type": "diag"}

    def of_batch(x, weights):
        return jnp.sum(jg.fit_batch(key, x, K, weights=weights, **options).mixture.means ** 2)

    @partial(jax.jit, static_argnums=3)
    @partial(jax.grad, argnums=(0, 1))
    def of_one(x, weights, key, options):
        return jnp.sum(jg.fit(key, x, K, weights=weights, **dict(options)).mixture.means ** 2)

    gradients = jax.grad(of_batch, (0, 1))(x, weights)
    for b in range(3):
        own_key = jax.random.fold_in(key, b)
        expected = of_one(x[b], weights[b], own_key, tuple(options.items()))
        for actual, wanted in zip(gradients, expected, strict=True):
            assert_close(actual[b], wanted, 0, by_dtype(2e-2, 1e-6) * jnp.max(jnp.abs(wanted)))


def test_slots_are_refilled(monkeypatch):
    """Of the steps that are made six in ten are needed, where `vmap` needs one in ten."""
    n_models, n_rows = 256, 64
    sizes = budgets.CPU._replace(in_slots=n_rows * 2 * 32)
    monkeypatch.setattr(budgets, "CPU", sizes)
    random = np.random.default_rng(0)
    apart = np.where(random.random(n_models) < 0.95, 8.0, 0.0)
    x = (
        random.normal(size=(n_models, n_rows, 1))
        + apart[:, None, None] * (np.arange(n_rows) % 2)[None, :, None]
    )
    start = jg.GaussianMixture.create([0.5, 0.5], [[-0.7], [0.7]], array([0.5, 0.5]), "spherical")
    starts = jax.tree.map(lambda leaf: jnp.stack([array(leaf)] * n_models), start)
    options = {"covariance_type": "spherical", "max_iter": 997, "tol": by_dtype(1e-5, 1e-7)}
    turns = []

    def counted(*arguments, **named):
        states, n_turns = iterate_all(*arguments, **named)
        jax.debug.callback(lambda n: turns.append(int(n)), n_turns)
        return states, n_turns

    monkeypatch.setattr(restarts, "iterate_all", counted)
    fit = jax.jit(lambda x: jg.fit_batch(jax.random.key(0), x, 2, init=starts, **options))
    needed = np.asarray(fit(array(x)).n_iter)
    jax.effects_barrier()
    assert needed.sum() < 0.15 * n_models * needed.max()
    assert needed.sum() > 0.6 * sum(turns) > 0


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("x", "n_components", "options", "message"),
    [
        ([zeros(9, 2), zeros(3, 2)], 5, {}, "n_components=5 needs at least as many rows"),
        ([zeros(9, 2)], 2, {"init": []}, "init must hold 1 arrays"),
        ([zeros(90, 2)], 2, {"init": [zeros(70, 2)]}, r"init\[0\] must be"),
        ([zeros(9, 2), zeros(3, 2)], 5, {}, r"x\[1\] has 3"),
        ([zeros(9, 0), zeros(9, 0)], 2, {}, r"x\[0\] must hold at least one row and feature"),
        ([zeros(9, 2)], 2, {"weights": []}, "weights must hold 1 arrays"),
        ([zeros(9, 2), zeros(9, 3)], 2, {}, r"x\[1\] must be \(N, 2\)"),
        ([zeros(9, 2)], 2, {"weights": [zeros(8)]}, r"x\[0\] must be"),
        ([], 2, {}, "at least one data set"),
        (zeros(4, 9, 2), 2, {"weights": zeros(4, 8)}, r"weights must be \(B, N\)"),
        (zeros(4, 9, 2), 2, {"init": zeros(4, 9, 3)}, "responsibilities must be"),
        (zeros(4, 9, 2), 2, {"init": "best"}, "init must be one of"),
        (zeros(4, 9, 2), 10, {}, "n_components=10 needs"),
        (zeros(9, 2), 2, {}, "a single data set is for fit"),
        (zeros(0, 9, 2), 2, {}, "at least one model"),
    ],
)
def test_what_does_not_fit_together_is_refused(key, x, n_components, options, message):
    with pytest.raises(ValueError, match=message):
        jg.fit_batch(key, x, n_components, **options)


@pytest.mark.parametrize("options", [{"weights": 1.0}, {"init": None}])
def test_lists_go_with_lists(key, options):
    with pytest.raises(TypeError, match="an array for each of x"):
        jg.fit_batch(key, [zeros(9, 2)], 2, **options)


def test_given_mixtures_are_one_for_each_model(key, storage_type):
    start = start_at_random(blobs(), storage_type)

    def of_models(count):
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * count), start)

    x = array([blobs()] * 3)
    wrong = [of_models(2), of_models(5), start]
    wrong += [replace(of_models(3), covariance=other.covariance) for other in wrong]
    for init in wrong:
        for data in (x, list(x)):
            with pytest.raises(ValueError, match="all its leaves lead with B"):
                jg.fit_batch(key, data, K, init=init, covariance_type=storage_type)


def test_neighbors_change_nothing(key, monkeypatch):
    """Tight models, which matrix products lose, beside wide ones, in any order or alone."""
    set_budget(monkeypatch, smallest_pass=0)
    jax.clear_caches()
    widths = [1.0, 1e-4, 3.0, 1e-5]
    data = np.stack([blobs(seed=b, width=width) for b, width in enumerate(widths)])
    starts = [start_from_labels(x, "full", blur=0.1) for x in data]

    def fitted(order):
        init = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(starts[b] for b in order))
        return jg.fit_batch(key, array(data[order]), K, init=init, tol=0, max_iter=30)

    expected = fitted([0, 1, 2, 3])
    for order in ([3, 1, 0, 2], [2, 0], [1]):
        found = fitted(order)
        for place, b in enumerate(order):
            assert_same_mixture(found[place].mixture, expected[b].mixture, by_dtype(1e-4, 1e-11))
            assert_close(found.objective[place], expected.objective[b], by_dtype(1e-5, 1e-13))
    jax.clear_caches()
