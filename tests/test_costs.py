"""What programs hold: nothing about a diagonal covariance is larger than the data and K·D."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, array
from jax.extend.core import jaxprs_in_params

import jaxgmm as jg
from jaxgmm.arrays.chunks import LARGEST_CHUNK, chunk_size, rows_of_features
from jaxgmm.covariances.storage import (
    average,
    kl_between_covariances,
    precision_diagonal,
    variances,
)
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.solvers.acceleration import metric
from jaxgmm.solvers.convergence import expected_gain
from jaxgmm.solvers.degeneracy import degenerate_components
from jaxgmm.steps.maximization import stored_as
from jaxgmm.steps.regularization import with_penalty

# Few rows and many features: D² is far more than the data's N·D, and K times as much as they are.
N, D, K = 10, 400, 3
DIAGONAL = ["diag", "spherical", "tied_diag", "tied_spherical"]


def sizes(jaxpr):
    """Of all arrays that a program computes, loops and calls inside of it included."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            if hasattr(variable.aval, "size"):
                yield variable.aval.size
        for part in jaxprs_in_params(equation.params):
            yield from sizes(part)


def largest_array(function, *arguments) -> int:
    return max(sizes(jax.make_jaxpr(function)(*arguments).jaxpr))


def data():
    random = np.random.default_rng(0)
    return array(random.normal(size=(N, D)) + np.arange(N)[:, None] % K)


def mixture_of(covariance_type):
    shape = {"diag": (K, D), "spherical": (K,), "tied_diag": (D,), "tied_spherical": ()}
    return jg.GaussianMixture.create(
        array(np.full(K, 1 / K)),
        data()[:K],
        array(np.full(shape[covariance_type], 1.5)),
        covariance_type,
    )


@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_nothing_of_a_diagonal_mixture_is_a_matrix(covariance_type):
    """Steps, densities, draws, criteria, diagnosis: K·D and N·K·D numbers, never D²."""
    mixture, x = mixture_of(covariance_type), data()
    key, variance = jax.random.key(0), jnp.ones(D, DTYPE)
    other = "spherical" if covariance_type == "diag" else "diag"
    functions = {
        "e_step": lambda m, x: jg.e_step(m, x),
        "em_step": lambda m, x: jg.em_step(m, x, regularization=variance),
        "another type": lambda m, x: stored_as(STRUCTURES[other], m),
        "log_prob": lambda m, x: m.log_prob(x),
        "predict": lambda m, x: m.predict(x),
        "sample": lambda m, x: m.sample(key, N),
        "bic": lambda m, x: jg.bic(m, x),
        "icl": lambda m, x: jg.icl(m, x),
        "twins": lambda m, x: degenerate_components(m, variance),
        "gain": lambda m, x: expected_gain(m, m),
        "divergence": lambda m, x: kl_between_covariances(m.covariance, m.covariance, D),
        "penalty": lambda m, x: with_penalty(m, variance),
        "metric": lambda m, x: metric(STRUCTURES[covariance_type].chart, m),
        "coordinates": lambda m, x: jg.constrain(jg.unconstrain(m)),
        "gradient": jax.grad(lambda m, x: jnp.sum(m.log_prob(x))),
    }
    for name, function in functions.items():
        assert largest_array(function, mixture, x) < D**2, name


@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_questions_about_a_diagonal_covariance_have_the_answers_of_its_matrix(covariance_type):
    mixture = mixture_of(covariance_type)
    covariance = mixture.covariance
    dense = np.asarray(covariance.dense(D), np.float64)
    shares = array(np.arange(1.0, K + 1))
    of_all = np.broadcast_to(dense, (K, D, D))
    expected = np.einsum("k,kij->ij", np.arange(1.0, K + 1), of_all)
    np.testing.assert_allclose(average(covariance, shares, D), expected, rtol=1e-5)
    diagonal = np.einsum("kii->ki", dense)
    np.testing.assert_allclose(variances(covariance, D), diagonal, rtol=1e-5)
    np.testing.assert_allclose(precision_diagonal(covariance, D), 1 / diagonal, rtol=1e-5)


def test_a_feature_held_up_by_regularization_is_found_without_its_matrix():
    variances = np.ones((K, D))
    variances[1, 7] = 1e-3
    weights = array(np.full(K, 1 / K))
    mixture = jg.GaussianMixture.create(weights, data()[:K], array(variances), "diag")
    found = degenerate_components(mixture, jnp.full(D, 0.6e-3, DTYPE))
    assert found.tolist() == [False, True, False]
    dense = jg.GaussianMixture(
        mixture.log_weights, mixture.means, jg.Full(jnp.sqrt(mixture.covariances))
    )
    assert degenerate_components(dense, jnp.full(D, 0.6e-3, DTYPE)).tolist() == found.tolist()


def test_chunks_of_wide_rows_have_few_of_them():
    """One row of many features and components may alone be more than a chunk should hold."""
    for numbers in (10, 10_000, 1_000_000, 10**9):
        for n_rows in chunk_size(10**6, numbers):
            assert n_rows == 1 or n_rows * numbers <= max(2**26, LARGEST_CHUNK)
        x = jax.ShapeDtypeStruct((10**6, 2), DTYPE)
        assert min(rows_of_features(x, numbers, 5)) >= 1


@pytest.mark.parametrize("covariance_type", DIAGONAL)
def test_nothing_in_a_fit_of_diagonal_covariances_is_a_matrix(covariance_type):
    """Starts, restarts, loops, accelerated and polished ones, batches and derivatives included."""
    mixture, x, key = mixture_of(covariance_type), data(), jax.random.key(0)
    options = {"max_iter": 5}
    of_type = {"covariance_type": covariance_type, **options}
    functions = {
        "em": lambda m, x: jg.em(m, x, **options),
        "squarem": lambda m, x: jg.em(m, x, accelerate="squarem", **options),
        "anderson": lambda m, x: jg.em(m, x, accelerate="anderson", **options),
        "polish": lambda m, x: jg.em(m, x, polish=True, **options),
        "fit": lambda m, x: jg.fit(key, x, K, **of_type),
        "restarts": lambda m, x: jg.fit(key, x, K, init="kmeans", n_init=6, **of_type),
        "batch": lambda m, x: jg.fit_batch(key, jnp.stack([x, x]), K, **of_type),
        "gradient": jax.grad(lambda m, x: jnp.sum(jg.em(m, x, **options).mixture.means)),
    }
    for name, function in functions.items():
        assert largest_array(function, mixture, x) < D**2, name
