"""The pass by matrix products gives what the one by differences gives, and knows where it can't."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DTYPE,
    LABELS,
    TIGHT,
    D,
    K,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    em,
    padded,
    set_budget,
    start_from_labels,
)
from jax.extend.core import jaxprs_in_params

import jaxgmm as jg
from jaxgmm.arrays import budgets
from jaxgmm.arrays.budgets import on_platform
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.fits.kmeans import Nearest
from jaxgmm.steps import products
from jaxgmm.steps.accumulation import accumulate_hard, accumulate_soft
from jaxgmm.steps.differences import statistics_by_differences
from jaxgmm.steps.features import LINEAR, PRODUCTS
from jaxgmm.steps.forms import extent_of
from jaxgmm.steps.maximization import maximize
from jaxgmm.steps.products import logit_coefficients, statistics_by_products
from jaxgmm.steps.rows import Rows, standardization_of


def rows_of(x, weights, isotropic):
    x, weights = padded(x, weights)
    return Rows(standardization_of(x, weights, isotropic), x, weights)


@pytest.mark.parametrize("in_block", [None, 4], ids=["whole", "blocks"])
@pytest.mark.parametrize("shared", [False, True], ids=["each", "together"])
def test_statistics_are_those_of_differences(monkeypatch, covariance_type, shared, in_block):
    """Of each component, or where they share a covariance of all of them together."""
    monkeypatch.setattr(budgets, "CPU", budgets.CPU._replace(features_in_block=in_block))
    weights = np.random.default_rng(0).uniform(0.5, 2, size=N)
    weights[::7] = 0
    structure = STRUCTURES[covariance_type]
    x = np.where(weights[:, None] > 0, blobs(), np.nan)
    rows = rows_of(x, weights, structure.isotropic)
    mixture = rows.standardization.transform(start_from_labels(blobs(), covariance_type))
    extent = extent_of_small(rows, structure if shared else None)
    full = structure.full_second_moment
    expected = statistics_by_differences(rows, mixture, full)
    actual = statistics_by_products(rows, mixture, full, extent.second_moment)
    assert not np.any(actual.origin)
    tolerance = by_dtype(2e-4, 1e-12)
    assert_close(actual.log_likelihood, expected.log_likelihood, rtol=by_dtype(1e-5, 1e-13))
    assert_close(actual.count, expected.count, rtol=tolerance)
    if not (shared and structure.shared):
        moved = actual.about(expected.origin)
        assert_close(moved.first, expected.first, rtol=0, atol=tolerance * N)
        assert_close(moved.second, expected.second, rtol=0, atol=tolerance * N)
    nothing = jnp.zeros(D, DTYPE)
    assert_same_mixture(
        maximize(structure, actual, mixture, nothing),
        maximize(structure, expected, mixture, nothing),
        by_dtype(1e-3, 1e-11),
    )


def extent_of_small(rows, structure):
    with pytest.MonkeyPatch.context() as patch:
        set_budget(patch, smallest_pass=0)
        return extent_of(rows, K, structure)


def test_a_log_prior_is_added_and_dead_components_stay_dead():
    rows = rows_of(blobs(), np.ones(N), False)
    mixture = rows.standardization.transform(start_from_labels(blobs(), "full"))
    dead = jg.GaussianMixture(
        mixture.log_weights.at[1].set(-jnp.inf), mixture.means, mixture.covariance
    )
    assert np.isfinite(logit_coefficients(dead, PRODUCTS).coefficients).all()
    log_prior = np.random.default_rng(0).normal(size=(N, K))
    only_dead = np.where((np.arange(N) < 3)[:, None] & (np.arange(K) != 1), -np.inf, log_prior)
    for prior, impossible in ((log_prior, 0), (only_dead, 3)):
        expected = statistics_by_differences(rows._replace(log_prior=array(prior)), dead, True)
        actual = statistics_by_products(rows._replace(log_prior=array(prior)), dead, True, None)
        assert_close(actual.count, expected.count, rtol=by_dtype(1e-4, 1e-12))
        assert_close(actual.count[1], impossible / K)
        if impossible:
            assert actual.log_likelihood == expected.log_likelihood == -jnp.inf
        else:
            assert_close(actual.log_likelihood, expected.log_likelihood, rtol=by_dtype(1e-5, 1e-13))


@pytest.mark.parametrize("full", [True, False], ids=["full", "diag"])
def test_moments_of_a_partition_are_those_of_its_responsibilities(full):
    """Also of parts far narrower than they are apart, which products about zero would lose."""
    rows = rows_of(blobs(width=by_dtype(1e-3, 1e-7)), np.linspace(0, 2, N), False)
    z = rows.standardization.standardize(rows.x, rows.weights)
    partition = Nearest(z[np.array([0, 30, 80])], jnp.ones(z.shape[1]))
    actual = accumulate_hard(rows, partition, partition.centers, full)
    expected = accumulate_soft(rows, partition, partition.centers, full)
    for name in ("count", "first", "second"):
        assert_close(
            getattr(actual, name),
            getattr(expected, name),
            rtol=0,
            atol=1e-3 * np.abs(double(getattr(expected, name))).max(),
        )


FORMS = ["full", "diag", "tied"]


@pytest.fixture(scope="module")
def by_products():
    """Fits of which every step may be made by products, by covariance type, and a batch of them."""
    starts = {name: start_from_labels(blobs(), name, blur=0.4) for name in FORMS}
    # Rows of a number that no other test has, so that nothing is compiled yet.
    x, weights = padded(blobs(), n_rows=N + 7)
    with pytest.MonkeyPatch.context() as patch:
        set_budget(patch, small=0)
        set_budget(patch, smallest_pass=0)
        patch.setattr(products, "rows_of_features", lambda x, n_features, n_components: 7)
        fits = {name: jg.em(start, x, weights=weights, tol=TIGHT) for name, start in starts.items()}
        statistics = {name: jg.e_step(start, x, weights) for name, start in starts.items()}
        one = lambda x: jg.em(starts["tied"], x, weights=weights, tol=TIGHT)  # noqa: E731
        batch = jax.vmap(one)(jnp.stack([x, 3 * x]))
    return fits, statistics, batch


@pytest.mark.parametrize("covariance_type", FORMS)
def test_a_fit_by_products_is_the_fit(by_products, covariance_type):
    """And its objective never falls, also where it changes from one form to the other."""
    actual = by_products[0][covariance_type]
    start = start_from_labels(blobs(), covariance_type, blur=0.4)
    expected = em(start, blobs(), tol=TIGHT)
    assert actual.status == expected.status == jg.Status.CONVERGED
    assert abs(int(actual.n_iter) - int(expected.n_iter)) <= by_dtype(3, 1)
    assert_same_mixture(actual.mixture, expected.mixture, by_dtype(1e-3, 1e-8))
    size = np.abs(double(expected.mixture.log_prob(array(blobs())))).sum()
    assert np.diff(double(actual.history)).min() >= -by_dtype(1e-5, 1e-10) * size


@pytest.mark.parametrize("covariance_type", FORMS)
def test_an_e_step_by_products_is_the_e_step(by_products, covariance_type):
    expected = jg.e_step(start_from_labels(blobs(), covariance_type, blur=0.4), array(blobs()))
    actual = by_products[1][covariance_type]
    assert np.array_equal(actual.origin, expected.origin)
    for name in ("log_likelihood", "count", "first", "second"):
        wanted = double(getattr(expected, name))
        tolerance = by_dtype(2e-4, 1e-11) * max(1, np.abs(wanted).max())
        assert_close(getattr(actual, name), wanted, rtol=0, atol=tolerance)


def test_a_batch_by_products_is_fitted_as_one_by_one(by_products):
    fits, _, batch = by_products
    assert np.all(np.asarray(batch.status) == jg.Status.CONVERGED)
    assert_same_mixture(batch[0].mixture, fits["tied"].mixture, by_dtype(1e-3, 1e-8))


def innermost_loops(jaxpr):
    """The equations of while loops in whose bodies there is no other one."""
    for equation in jaxpr.eqns:
        inside = [
            loop for part in jaxprs_in_params(equation.params) for loop in innermost_loops(part)
        ]
        yield from inside
        if equation.primitive.name == "while" and not inside:
            yield equation


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_choice_of_a_form_stays_a_choice_in_a_batch(monkeypatch, platform):
    """A branch, or the turns of two sums, of which one has none for all members."""
    set_budget(monkeypatch, smallest_pass=0)
    jax.clear_caches()
    start = start_from_labels(blobs(), "full")

    def program(function, x):
        with on_platform(platform):
            return jax.make_jaxpr(function)(array(x)).jaxpr

    def fit(x):
        return jg.em(start, x, max_iter=13).log_likelihood

    for function in (fit, jax.grad(fit)):
        alone = program(function, blobs())
        batch = program(jax.vmap(function), np.stack([blobs()] * 2))
        if platform == "cpu":
            loops = list(innermost_loops(batch))
            assert len(loops) == len(list(innermost_loops(alone))) >= 2
            assert all(loop.params["cond_jaxpr"].out_avals[0].shape == () for loop in loops)
        else:
            assert str(batch).count("cond[") == str(alone).count("cond[") >= 1
    jax.clear_caches()


@pytest.mark.parametrize("covariance_type", FORMS)
def test_derivatives_of_an_e_step_by_products_are_those_of_the_e_step(monkeypatch, covariance_type):
    """The rule by differences is there, forward and backward, for all that it depends on."""
    start = start_from_labels(blobs(), covariance_type, blur=0.4)
    weights, log_prior = np.linspace(0.5, 2, N), np.linspace(-1, 1, N * K).reshape(N, K)

    def total(mixture, x, weights, log_prior):
        found = jg.e_step(mixture, x, weights, log_prior=log_prior)
        return found.log_likelihood + jnp.sum(found.second**2) / N

    arguments = (start, array(blobs()), array(weights), array(log_prior))
    forms = []
    for smallest in (budgets.CPU.smallest_pass, 0):
        set_budget(monkeypatch, smallest_pass=smallest)
        jax.clear_caches()
        backward = jax.grad(total, argnums=(0, 1, 2, 3))(*arguments)
        forward = jax.jvp(total, arguments, arguments)[1]
        forms.append(jax.tree.leaves((backward, forward)))
    for expected, actual in zip(*forms, strict=True):
        assert_close(actual, expected, rtol=by_dtype(1e-3, 1e-9), atol=by_dtype(1e-3, 1e-9))


@pytest.mark.parametrize("n_features", [1, 2, 5, 33])
def test_features_are_the_same_whether_coordinates_are_picked_or_not(monkeypatch, n_features):
    z = array(np.random.default_rng(0).normal(size=(7, n_features)))
    found = []
    for gathers in (True, False):
        set_budget(monkeypatch, gathers_features=gathers, features_in_block=None)
        (block,) = PRODUCTS.of(z)
        found.append(double(block))
    first, second = np.triu_indices(n_features + 1)
    augmented = np.concatenate([double(z), np.ones((7, 1))], axis=1)
    np.testing.assert_array_equal(found[0], array(augmented[:, first] * augmented[:, second]))
    np.testing.assert_array_equal(*found)


def test_features_of_first_order_leave_out_what_all_components_share():
    rows = rows_of(blobs(), np.ones(N), False)
    mixture = rows.standardization.transform(start_from_labels(blobs(), "tied"))
    z = rows.standardization.standardize(rows.x, rows.weights)
    logits = double(mixture.component_log_prob(z)) + double(mixture.log_weights)
    linear = double(logit_coefficients(mixture, LINEAR).at(LINEAR.of(z))).T
    rest = logits - linear
    assert_close(rest, rest[:, :1] * np.ones(K), rtol=0, atol=by_dtype(1e-3, 1e-11))
    assert len(LABELS) == len(rest)


def test_a_dead_component_stays_where_it_is(covariance_type):
    """Though the statistics are about the data's center."""
    structure = STRUCTURES[covariance_type]
    rows = rows_of(blobs(), np.ones(N), structure.isotropic)
    mixture = rows.standardization.transform(start_from_labels(blobs(), covariance_type))
    dead = replace(mixture, log_weights=mixture.log_weights.at[1].set(-jnp.inf))
    extent = extent_of_small(rows, structure)
    statistics = statistics_by_products(
        rows,
        dead,
        structure.full_second_moment,
        extent.second_moment if structure.shared else None,
    )
    new = maximize(structure, statistics, dead, jnp.zeros(D, DTYPE))
    assert new.log_weights[1] == -jnp.inf
    assert_close(new.means[1], mixture.means[1])
