"""VEI, a type whose components share a shape: it meets all that the others do."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    DTYPE,
    K,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    start_from_labels,
)
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_iris

import jaxgmm as jg
from jaxgmm.command_line import main
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.files.tables import old_faithful

X = blobs(width=2.0)
VEI = {"covariance_type": "VEI"}
TOL = by_dtype(1e-6, 1e-10)


def conforms(mixture):
    return bool(STRUCTURES["VEI"].conforms(mixture.covariance, mixture.n_features))


@pytest.fixture(scope="module")
def fitted():
    """The maximum next to the clusters that the data were made of."""
    start = start_from_labels(X, "diag")
    return jg.em(start, array(X), **VEI, tol=TOL, polish=True, history=False).check()


def test_published_fits_are_reached():
    """mclust's figures; it stops early, so that ours may be better."""
    key = jax.random.key(0)
    x = array(old_faithful()[1])
    two = jg.fit(key, x, 2, **VEI, n_init=3).check()
    assert_close(two.log_likelihood, -1152.880196, 0, by_dtype(1e-2, 1e-5))
    assert jg.n_parameters(two.mixture, "VEI") == 8
    iris = array(load_iris().data)
    for n_components, published in ((2, 956.2823), (3, 779.1566)):
        fit = jg.fit(key, iris, n_components, **VEI, n_init=10).check()
        assert jg.bic(fit.mixture, iris, **VEI) <= published + by_dtype(1e-2, 1e-4)
        assert conforms(fit.mixture)


@pytest.mark.parametrize("how", [{"accelerate": "squarem"}, {"accelerate": "anderson"}, {}])
def test_ways_to_the_maximum_agree(fitted, how):
    start = start_from_labels(X, "full")
    fit = jg.em(start, array(X), **VEI, tol=TOL, history=False, **how).check()
    assert_same_mixture(fit.mixture, fitted.mixture, by_dtype(2e-2, 1e-3))
    assert_close(fit.log_likelihood, fitted.log_likelihood, 0, by_dtype(1e-2, 1e-6))
    assert conforms(fit.mixture)


def test_gradients_lead_to_the_same_maximum(fitted):
    fit = jg.fit_gradient(start_from_labels(X, "diag"), array(X), **VEI, tol=TOL).check()
    assert_close(fit.log_likelihood, fitted.log_likelihood, 0, by_dtype(1e-2, 1e-6))
    assert conforms(fit.mixture)


def test_the_objective_never_falls():
    fit = jg.em(start_from_labels(X, "diag"), array(X), **VEI, max_iter=60, tol=0)
    change = np.diff(double(fit.history))
    assert change.min() >= -by_dtype(1e-5, 1e-10) * abs(float(fit.objective))


def test_a_batch_is_single_fits(key):
    x = np.stack([X, 3 * X + 1])
    batch = jg.fit_batch(key, array(x), K, **VEI, tol=TOL)
    for b in range(2):
        single = jg.fit(jax.random.fold_in(key, b), array(x[b]), K, **VEI, tol=TOL, history=False)
        assert batch.status[b] == single.status
        assert_same_mixture(batch[b].mixture, single.mixture, by_dtype(2e-2, 1e-6))


def test_components_that_a_sweep_leaves_out_change_nothing(key):
    """Small data are fitted with as many components as the largest of the sweep has."""
    selection = jg.select(key, array(X), [3, 5], ["VEI", "tied"], n_init=2, tol=TOL)
    row = selection.table[0]
    assert row["covariance_type"] == "VEI" and row["n_parameters"] == 2 + 3 * 2 + 3 + 1
    padded = jg.select(key, array(X), [3, 5], "VEI", n_init=2, tol=TOL).best
    assert padded.mixture.n_components == 3 and conforms(padded.mixture)
    assert_close(row["log_likelihood"], padded.log_likelihood, by_dtype(1e-4, 1e-9))
    alone = jg.em(padded.mixture, array(X), **VEI, tol=TOL, history=False).check()
    assert_close(padded.log_likelihood, alone.log_likelihood, by_dtype(1e-5, 1e-9))
    assert_same_mixture(padded.mixture, alone.mixture, by_dtype(2e-2, 1e-3))


def test_a_dead_component_shares_the_shape_and_changes_nothing(fitted):
    mixture = fitted.mixture
    log_weights = jnp.concatenate([mixture.log_weights, array([-np.inf])])
    means = jnp.concatenate([mixture.means, mixture.means[:1]])
    scale = jnp.concatenate([mixture.covariance.scale, 50 * mixture.covariance.scale[:1]])
    more = jg.GaussianMixture(log_weights, means, jg.Diagonal(scale))
    fit = jg.em(more, array(X), **VEI, tol=TOL, history=False)
    assert fit.status == jg.Status.DEGENERATE and fit.degenerate.tolist() == [False] * K + [True]
    assert_close(fit.log_likelihood, fitted.log_likelihood, by_dtype(1e-5, 1e-10))
    assert conforms(fit.mixture)


def test_weights_of_zero_are_rows_that_are_not_there(fitted):
    x = np.concatenate([X, np.full((10, 2), np.nan)])
    weights = np.r_[np.ones(N), np.zeros(10)]
    fit = jg.em(fitted.mixture, array(x), weights=array(weights), **VEI, tol=TOL, history=False)
    assert_same_mixture(fit.mixture, fitted.mixture, by_dtype(2e-2, 1e-4))


def test_a_step_is_its_two_halves_with_regularization_too():
    mixture, x = start_from_labels(X, "diag"), array(X)
    options = {"regularization": array([0.5, 0.25])}
    statistics = jg.e_step(mixture, x, covariance_type="VEI", **options)
    halves = jg.m_step(statistics, "VEI", previous=mixture, **options)
    whole, _ = jg.em_step(mixture, x, covariance_type="VEI", **options)
    assert_same_mixture(whole, halves, by_dtype(1e-4, 1e-10))


@pytest.mark.once
def test_derivatives_of_a_fit_are_those_of_finite_differences():
    with jax.enable_x64(True):
        x = jnp.asarray(X)
        given = jax.tree.map(lambda leaf: leaf.astype("float64"), start_from_labels(X, "diag"))
        number = jnp.arange(1.0, 7.0).reshape(3, 2)

        def functional(x, tol):
            fit = jg.em(given, x, **VEI, tol=tol, reg_covar=1e-3, history=False)
            moments = jnp.sum(jnp.cos(fit.mixture.means) * number) + jnp.sum(fit.mixture.weights**2)
            return moments + jnp.sum(jnp.sin(fit.mixture.covariance.scale) * number)

        direction = jnp.asarray(np.random.default_rng(3).normal(size=x.shape))
        value = jax.jit(lambda step: functional(x + step * direction, 0.0))
        wide, narrow = ((value(h) - value(-h)) / (2 * h) for h in (2e-3, 1e-3))
        for tol in (1e-3, 1e-10):
            ours = jnp.vdot(jax.jit(jax.grad(functional))(x, tol), direction)
            np.testing.assert_allclose(ours, (4 * narrow - wide) / 3, rtol=1e-6)


def test_standard_errors_are_those_of_its_own_parameters(fitted):
    """By the delta method from the information about the free numbers, which are fewer."""
    mixture, x = fitted.mixture, array(X)
    coordinates, unravel = ravel_pytree(jg.unconstrain(mixture, "VEI"))
    assert coordinates.size == jg.n_parameters(mixture, "VEI")
    inverse = np.linalg.inv(double(jg.observed_information(mixture, x, **VEI)))

    def variances(coordinates):
        return jg.constrain(unravel(coordinates)).covariance.scale ** 2

    slopes = double(jax.jacfwd(variances)(coordinates))
    expected = np.sqrt(np.einsum("kdp,pq,kdq->kd", slopes, inverse, slopes))
    errors = jg.standard_errors(mixture, x, kind="information", **VEI)
    np.testing.assert_allclose(errors.covariances, expected, rtol=by_dtype(2e-2, 1e-4))


def test_files_keep_it_exactly(fitted, tmp_path):
    jg.save(tmp_path / "model.npz", fitted.mixture)
    loaded = jg.load(tmp_path / "model.npz")
    for ours, theirs in zip(jax.tree.leaves(loaded), jax.tree.leaves(fitted.mixture), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    again = jg.em(loaded, array(X), **VEI, tol=TOL, history=False)
    assert again.converged and conforms(again.mixture)


@pytest.mark.filterwarnings("ignore:.*float64 parameters")
def test_the_command_line_takes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savetxt("table.csv", X, delimiter=",", header="a,b", comments="")
    options = ["--components", "3", "--covariance-type", "VEI", "--n-init", "1"]
    assert main(["fit", "table.csv", "--output", "model.npz", *options]) == 0
    assert "VEI" in capsys.readouterr().out
    assert conforms(jg.load("model.npz"))


def test_one_feature_has_no_shape():
    mixture = start_from_labels(X[:, :1], "diag")
    fit = jg.em(mixture, array(X[:, :1]), **VEI, tol=TOL, history=False)
    same = jg.em(mixture, array(X[:, :1]), tol=TOL, history=False)
    assert_close(fit.log_likelihood, same.log_likelihood, by_dtype(1e-5, 1e-9))


def test_a_tight_component_and_point_masses_stay_finite(key):
    x = np.concatenate([X, np.tile([[40.0, 40.0]], (30, 1))])
    fit = jg.fit(key, array(x), 4, **VEI, tol=TOL)
    assert np.isfinite(double(ravel_pytree(replace(fit, history=None).mixture.means)[0])).all()
    assert jnp.isfinite(fit.log_likelihood) and fit.mixture.means.dtype == DTYPE
