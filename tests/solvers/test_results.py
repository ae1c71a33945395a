"""What a fit says about itself, in an error and at a prompt; and what the package shows."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import K, array, blobs, em, start_from_labels

import jaxgmm as jg

X = blobs()
START = start_from_labels(X, "full")


@pytest.fixture(scope="module")
def result():
    return em(START, X, max_iter=60)


def says(result, **changes):
    """The message of the error."""
    with pytest.raises(jg.FitError) as raised:
        replace(result, **changes).check()
    return str(raised.value)


def test_a_gain_below_the_tolerance_is_explained(result):
    message = says(result, status=array(1), remaining_gain=array(3e-9), n_iter=jnp.asarray(12))
    assert "MAX_ITER: the fit stopped after 12 iterations" in message
    assert "an estimated 3e-09" in message and "5 such estimates in a row" in message
    assert "if this one isn't, a larger tol would do" in message


def test_a_gain_that_is_unknown_is_not_estimated_as_infinite(result):
    message = says(result, status=array(1), remaining_gain=array(np.inf), n_iter=jnp.asarray(1))
    assert "after 1 iteration, too early to estimate" in message
    assert "inf " not in message and "tol" not in message


def test_a_batch_names_each_kind_of_failure(result):
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 5), result)
    degenerate = np.zeros((5, K), bool)
    degenerate[4, 1] = True
    message = says(batch, status=jnp.asarray([0, 1, 2, 1, 3]), degenerate=jnp.asarray(degenerate))
    assert message.startswith("2 MAX_ITER, 1 NON_FINITE, 1 DEGENERATE: 4 of 5 fits failed: fit 1")
    assert "; fit 2 met NaN" in message
    assert "; fit 4 ended with degenerate components [1]" in message
    assert "use fewer components" in message and "left out" not in message


def test_features_that_degenerate_every_component_are_named():
    constant = np.c_[X[:, 0], np.full(len(X), 3.0), X[:, 1]]
    message = says(jg.fit(jax.random.key(0), array(constant), K))
    assert "should be left out: feature 1 is the same in all of them; or use fewer" in message
    doubled = np.c_[X, 2 * X[:, 0]]
    message = says(jg.fit(jax.random.key(0), array(doubled), K))
    assert "left out: features 0 and 2 are multiples of one another; or use fewer" in message
    message = says(jg.fit(jax.random.key(0), array(constant), K, covariance_type="diag"))
    assert "feature 1 is the same in all of them" in message


def test_results_and_mixtures_are_shown_in_a_few_words(result):
    sizes = "3 full components of 2 features"
    assert repr(result.mixture).startswith(f"GaussianMixture({sizes}, float")
    assert repr(result).startswith(f"FitResult(CONVERGED after {int(result.n_iter)} iterations")
    assert "log-likelihood" in repr(result) and repr(result).endswith(f", {sizes})")
    assert "\n" not in repr(result)
    tied = jg.m_step(jg.e_step(START, array(X), covariance_type="tied"), "tied")
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tied)
    assert repr(batch).startswith("GaussianMixture(batch of 2, 3 tied components")
    results = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf, leaf]), result)
    results = replace(results, status=jnp.asarray([0, 3, 0]))
    assert "3 fits: 2 CONVERGED, 1 DEGENERATE" in repr(results)
    assert f"{jg.Status.DEGENERATE}" == "DEGENERATE"
    seen = []
    jax.eval_shape(lambda one: seen.append(repr(one)), result)
    assert "traced" in seen[0]
    moving = jax.jvp(lambda x: jg.em(START, x, max_iter=2), (array(X),), (array(X),))[1]
    for mapped in (jax.tree.map(jnp.shape, result), jax.eval_shape(lambda: result), moving):
        assert repr(mapped).startswith("FitResult(")


def test_the_package_shows_its_public_names_and_nothing_else():
    assert dir(jg) == sorted(jg.__all__)
    names = {}
    exec("from jaxgmm import *", names)
    assert set(jg.__all__) <= set(names)
    own = {name for name in vars(jg) if not name.startswith("_")}
    modules = {name for name in own if type(vars(jg)[name]).__name__ == "module"}
    assert own - modules == set(jg.__all__) - {"__version__"}
    assert not modules & set(jg.__all__)
