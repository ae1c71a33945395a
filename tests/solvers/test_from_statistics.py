"""EM by an E-step that the caller brings: it is `em`, wherever the statistics come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    K,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    em,
    start_from_labels,
)

import jaxgmm as jg

X = blobs(width=2.0)
TOL = by_dtype(1e-5, 1e-9)
BLOCKS = [array(X[:30]), array(X[30:])]


def of_blocks(mixture):
    return sum(jg.e_step(mixture, block) for block in BLOCKS)


@pytest.mark.parametrize("accelerate", [None, "squarem"])
def test_it_is_em(storage_type, accelerate):
    start = start_from_labels(X, storage_type, blur=0.3)
    found = jg.em_from_statistics(of_blocks, start, tol=TOL, accelerate=accelerate)
    expected = em(start, array(X), tol=TOL, accelerate=accelerate)
    assert found.converged and expected.converged
    assert abs(int(found.n_iter) - int(expected.n_iter)) <= by_dtype(10, 1)
    assert_same_mixture(found.mixture, expected.mixture, by_dtype(2e-2, 1e-6))
    assert_close(found.log_likelihood, expected.log_likelihood, by_dtype(1e-5, 1e-10))
    assert_close(found.objective, expected.objective, by_dtype(1e-5, 1e-10))
    assert found.mixture.covariance_type == storage_type


def test_a_type_of_its_own_takes_the_statistics_it_needs():
    start = start_from_labels(X, "full")
    found = jg.em_from_statistics(of_blocks, start, covariance_type="VEI", tol=TOL)
    expected = jg.em(start, array(X), covariance_type="VEI", tol=TOL)
    assert_same_mixture(found.mixture, expected.mixture, by_dtype(2e-2, 1e-6))
    full = jg.em_from_statistics(
        of_blocks, start_from_labels(X, "diag"), covariance_type="full", tol=TOL
    )
    assert full.mixture.covariance_type == "full"


def test_regularization_is_part_of_the_objective():
    start, added = start_from_labels(X, "full"), array([0.5, 0.25])
    found = jg.em_from_statistics(of_blocks, start, regularization=added, tol=0, max_iter=40)
    history = double(found.history)
    assert np.diff(history).min() >= -by_dtype(1e-5, 1e-10) * abs(history[-1])
    assert_close(history[-1], found.objective)
    own = jg.e_step(found.mixture, array(X), regularization=added).log_likelihood
    assert_close(found.objective, own, by_dtype(1e-5, 1e-10))
    assert_close(found.log_likelihood, jg.log_likelihood(found.mixture, array(X)), 1e-5)
    assert found.log_likelihood > found.objective
    again = jg.m_step(
        jg.e_step(found.mixture, array(X), regularization=added), regularization=added
    )
    assert_same_mixture(again, found.mixture, by_dtype(1e-2, 1e-3))


def test_it_can_be_traced():
    """As part of a program, and with rows that are spread over an axis."""
    start = start_from_labels(X, "diag")

    @jax.jit
    def fitted(start, x):
        return jg.em_from_statistics(lambda mixture: jg.e_step(mixture, x), start, tol=TOL)

    expected = em(start, array(X), tol=TOL)
    assert_same_mixture(fitted(start, array(X)).mixture, expected.mixture, by_dtype(2e-2, 1e-6))

    def of_share(x):
        def statistics(mixture):
            return jg.e_step(mixture, x).psum("devices")

        return jg.em_from_statistics(statistics, start, tol=TOL)

    shares = jax.jit(jax.vmap(of_share, axis_name="devices"))(array(X.reshape(3, N // 3, 2)))
    for share in range(3):
        assert_same_mixture(shares[share].mixture, expected.mixture, by_dtype(2e-2, 1e-6))


def test_a_callback_sees_each_iteration_and_can_go_on_from_it():
    start, seen = start_from_labels(X, "diag"), []
    found = jg.em_from_statistics(of_blocks, start, max_iter=6, tol=0, callback=seen.append)
    assert [iteration.n_iter for iteration in seen] == list(range(1, 7))
    objectives = np.array([iteration.objective for iteration in seen])
    assert np.diff(objectives).min() >= -by_dtype(1e-5, 1e-10) * abs(objectives[-1])
    assert_close(objectives[1:], found.history[:5])
    assert found.status == jg.Status.MAX_ITER and found.n_iter == 6
    rest = jg.em_from_statistics(of_blocks, seen[2].mixture, max_iter=3, tol=0)
    assert_same_mixture(rest.mixture, found.mixture, by_dtype(1e-3, 1e-9))


def test_a_file_is_read_a_block_at_a_time(tmp_path):
    np.save(tmp_path / "x.npy", np.asarray(array(X)))
    rows = np.load(tmp_path / "x.npy", mmap_mode="r")

    def statistics(mixture):
        return sum(jg.e_step(mixture, rows[first : first + 45]) for first in range(0, N, 45))

    start = start_from_labels(X, "full")
    found = jg.em_from_statistics(statistics, start, tol=TOL)
    assert_same_mixture(found.mixture, em(start, array(X), tol=TOL).mixture, by_dtype(2e-2, 1e-6))


def test_no_step_at_all_is_the_start():
    start = start_from_labels(X, "full")
    found = jg.em_from_statistics(of_blocks, start, max_iter=0)
    assert_same_mixture(found.mixture, start, by_dtype(1e-5, 1e-12))
    assert_close(found.log_likelihood, jg.log_likelihood(start, array(X)), 1e-5)


def test_what_goes_wrong_is_in_the_status():
    start = start_from_labels(X, "diag")

    def broken(mixture):
        return float("nan") * jg.e_step(mixture, array(X))

    found = jg.em_from_statistics(broken, start)
    assert found.status == jg.Status.NON_FINITE
    assert np.isfinite(double(found.mixture.means)).all()
    masses = array(np.repeat([[0.0, 0.0], [5.0, 1.0], [12.0, -6.0]], 10, axis=0))
    alike = jg.em_from_statistics(lambda mixture: jg.e_step(mixture, masses), start)
    assert alike.status == jg.Status.DEGENERATE and alike.degenerate.any()
    assert np.isfinite(double(alike.log_likelihood))


@pytest.mark.parametrize("covariance_type", ["full", "diag", "VEI"])
@pytest.mark.parametrize("regularization", [None, 0.0])
def test_a_constant_feature_is_degenerate_as_it_is_for_em(covariance_type, regularization):
    x = array(np.c_[X[:, 0], np.full(N, 7.0)])
    start = start_from_labels(X, "diag")
    options = {"covariance_type": covariance_type, "tol": TOL}
    found = jg.em_from_statistics(
        lambda m: jg.e_step(m, x), start, regularization=regularization, **options
    )
    assert found.status == em(start, x, **options).status == jg.Status.DEGENERATE
    assert np.isfinite(double(found.log_likelihood))


def test_what_is_no_e_step_is_refused():
    start = start_from_labels(X, "diag")
    with pytest.raises(TypeError, match="SufficientStatistics"):
        jg.em_from_statistics(lambda mixture: mixture, start)
    with pytest.raises(TypeError, match="GaussianMixture"):
        jg.em_from_statistics(of_blocks, array(X))
    with pytest.raises(ValueError, match="first moments"):
        fewer = jax.tree.map(lambda leaf: leaf[:2], start)
        jg.em_from_statistics(lambda _: jg.e_step(fewer, array(X)), start)
    with pytest.raises(ValueError, match="second moments"):
        jg.em_from_statistics(lambda _: of_blocks(start), start, covariance_type="full")
    with pytest.raises(ValueError, match="at least 0"):
        jg.em_from_statistics(of_blocks, start, regularization=-1.0)
    with pytest.raises(ValueError, match="callback"):
        jax.jit(lambda m: jg.em_from_statistics(of_blocks, m, callback=print))(start)


def test_statistics_about_other_origins_add_under_a_trace():
    """To those of all rows, or not at all: never silently to something else."""
    first, second = start_from_labels(X, "full"), start_from_labels(X, "full", blur=0.5)
    one = jg.e_step(first, BLOCKS[0])
    two = jg.e_step(second, BLOCKS[1])
    with pytest.raises(ValueError, match="about"):
        one + two
    added = jax.jit(lambda one, two: one + two)(one, two)
    moved = one + two.about(one.origin)
    for ours, theirs in zip(jax.tree.leaves(added), jax.tree.leaves(moved), strict=True):
        assert_close(ours, theirs, by_dtype(1e-4, 1e-10), by_dtype(1e-3, 1e-9))
    assert jnp.all(added.origin == one.origin) and added.count.shape == (K,)
