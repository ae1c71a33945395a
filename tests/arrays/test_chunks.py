"""Rows that are read in chunks are the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    COVARIANCE_TYPES,
    DTYPE,
    EPS,
    TIGHT,
    K,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    padded,
    set_budget,
    start_from_labels,
)

import jaxgmm as jg
from jaxgmm.arrays.chunks import sum_over_chunks
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.fits.initialization import STARTS, start_from
from jaxgmm.mixtures import densities
from jaxgmm.steps import rows
from jaxgmm.steps.problem import problem_of


@pytest.fixture(scope="module")
def in_chunks():
    """What comes out when rows are read 7 at a time, of which their number is no multiple."""

    def seven(n_rows, numbers_per_row):
        return min(n_rows, 7)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "chunk_size", seven)
        patch.setattr(densities, "chunk_size", seven)
        # Rows of a number that no other test has, so that nothing is compiled yet.
        set_budget(patch, small=0)
        return fit_and_densities(N + 5)


def fit_and_densities(n_rows):
    x, weights = padded(blobs(), n_rows=n_rows)
    starts = {name: start_from_labels(blobs(), name) for name in COVARIANCE_TYPES}
    statistics = {name: jg.e_step(start, x, weights) for name, start in starts.items()}
    start = starts["full"]
    queries = start.log_prob(x), start.responsibilities(x), start.component_log_prob(x)
    by_number = jax.jit(lambda x: by_row_number(start, x, weights))(x)
    fit = jg.em(start, x, weights=weights, tol=TIGHT)
    return fit, (statistics, by_number), [query[:N] for query in queries]


def by_row_number(start, x, weights):
    """Statistics for which rows are found by their numbers: a prior, responsibilities, starts."""
    random = np.random.default_rng(0)
    absent = np.zeros((len(weights) - N, K))
    prior = array(np.r_[random.normal(size=(N, K)), absent])
    shares = array(np.r_[random.dirichlet(np.ones(K), size=N), absent])
    problem = problem_of(x, weights, array(0.0), K, STRUCTURES["full"])
    active = jnp.ones(K, bool)
    starts = [
        start_from(
            STARTS[init](jax.random.key(3), problem.rows, active, jnp.asarray(2)),
            problem.rows,
            active,
            problem.structure,
            problem.regularization,
            pseudocounts=True,
        )
        for init in STARTS
    ]
    given = jg.accumulate(x, shares, weights, covariance_type="full")
    return jg.e_step(start, x, weights, log_prior=prior), given, starts


def test_rows_in_chunks_are_the_whole(in_chunks):
    chunked_fit, chunked_statistics, chunked_queries = in_chunks
    fit, statistics, queries = fit_and_densities(N)
    assert chunked_fit.status == fit.status
    assert abs(int(chunked_fit.n_iter) - int(fit.n_iter)) <= 1
    assert_same_mixture(chunked_fit.mixture, fit.mixture, by_dtype(1e-3, 1e-8))
    for actual, expected in zip(
        jax.tree.leaves(chunked_statistics), jax.tree.leaves(statistics), strict=True
    ):
        size = max(N, np.abs(double(expected)).max())
        assert_close(actual, expected, rtol=0, atol=100 * EPS * size)
    for actual, expected in zip(chunked_queries, queries, strict=True):
        assert_close(actual, expected)


def test_sums_over_chunks_do_not_lose_what_is_small():
    """Ten thousand chunks, each below the rounding of the first."""
    large = by_dtype(1e8, 1e17)
    terms = array(np.r_[large, np.ones(10_000)])
    total = sum_over_chunks(lambda start, _: terms[start], terms.size, 1)
    assert_close(double(total) - large, 1e4, rtol=2e-3)


@pytest.mark.parametrize("chunk_rows", [1, 7, 30, 89, 90])
def test_every_row_is_summed_once(chunk_rows):
    """Also where the last chunk overlaps the one before."""

    def summand(start, fresh):
        numbers = start + jnp.arange(chunk_rows)
        return jnp.sum(jnp.where(fresh, numbers.astype(DTYPE), 0))

    assert sum_over_chunks(summand, N, chunk_rows) == N * (N - 1) / 2
