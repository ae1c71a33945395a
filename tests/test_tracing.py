"""What can't be traced, and what is written for one mixture, says so in a sentence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import K, array, blobs, em, start_from_labels

import jaxgmm as jg

X = blobs()
KEY = jax.random.key(0)
MIXTURE = start_from_labels(X, "full")

LOOKS_AT_VALUES = {
    "select": lambda x: jg.select(KEY, x, [1, 2]),
    "select of known data": lambda x: jg.select(KEY, array(X), [1, 2]),
    "select with known data and traced weights": lambda x: jg.select(
        KEY, array(X), [1], weights=x[:, 0]
    ),
    "select_batch": lambda x: jg.select_batch(KEY, x[None], [1, 2]),
    "check": lambda x: jg.em(MIXTURE, x, max_iter=1).check(),
    "save": lambda x: jg.save("nowhere.npz", jg.em_step(MIXTURE, x)[0]),
    "to_sklearn": lambda x: jg.to_sklearn(jg.em_step(MIXTURE, x)[0]),
}


@pytest.mark.parametrize("call", LOOKS_AT_VALUES.values(), ids=LOOKS_AT_VALUES)
def test_what_looks_at_values_is_to_be_called_outside(call):
    with pytest.raises(TypeError, match=r"looks at values.*call it outside") as raised:
        jax.jit(call)(array(X))
    assert type(raised.value) is TypeError


STATIC = {
    "n_components": lambda count: jg.fit(KEY, array(X), count),
    "n_components of a batch": lambda count: jg.fit_batch(KEY, array(X)[None], count),
    "n_init": lambda count: jg.fit(KEY, array(X), K, n_init=count),
    "max_iter": lambda count: jg.em(MIXTURE, array(X), max_iter=count),
    "batch_rows": lambda count: jg.fit_gradient(MIXTURE, array(X), key=KEY, batch_rows=count),
    "polish": lambda flag: jg.em(MIXTURE, array(X), polish=flag > 0),
    "history": lambda flag: jg.fit(KEY, array(X), K, history=flag > 0),
    "n": lambda count: MIXTURE.sample(KEY, count),
    "return_labels": lambda flag: MIXTURE.sample(KEY, 3, flag > 0),
    "n_samples": lambda count: jg.entropy(MIXTURE, key=KEY, n_samples=count),
    "n_components of reduce": lambda count: jg.reduce(MIXTURE, count),
    "indices": lambda index: jg.condition(MIXTURE, index, 0.0),
    "indices, a mask": lambda mask: jg.condition(MIXTURE, jnp.arange(2) == mask, 0.0),
    "indices, a list": lambda index: jg.marginal(MIXTURE, [0, index]),
    "indices of regress": lambda index: jg.regress(MIXTURE, index, array([[0.0]])),
}


@pytest.mark.parametrize(("name", "call"), STATIC.items(), ids=STATIC)
def test_what_a_program_is_compiled_for_is_static(name, call):
    match = rf"{name.split()[0].strip(',')} is traced.*static_argnames"
    with pytest.raises(TypeError, match=match) as raised:
        jax.jit(call)(1)
    assert type(raised.value) is TypeError


def test_a_fit_of_a_batch_may_be_picked_by_a_traced_number():
    batch = jg.fit_batch(KEY, array(np.stack([X, X + 1])), 1, max_iter=2)
    second = jax.jit(lambda b: batch[b].mixture.means)(1)
    assert np.array_equal(second, batch[1].mixture.means)
    with pytest.raises(TypeError):
        batch["1"]


BATCH = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), MIXTURE)
OF_ONE_MIXTURE = {
    "mean": lambda m: m.mean(),
    "covariance_matrix": lambda m: m.covariance_matrix(),
    "sample": lambda m: m.sample(KEY, 3),
    "predict": lambda m: m.predict(array(X)),
    "log_prob": lambda m: m.log_prob(array(X)),
    "component_log_prob": lambda m: m.component_log_prob(array(X)),
    "responsibilities": lambda m: m.responsibilities(array(X)),
    "covariances": lambda m: m.covariances,
    "precisions": lambda m: m.precisions,
    "covariance_type": lambda m: m.covariance_type,
    "e_step": lambda m: jg.e_step(m, array(X)),
    "em_step": lambda m: jg.em_step(m, array(X)),
    "em": lambda m: jg.em(m, array(X)),
    "m_step": lambda m: jg.m_step(jg.e_step(MIXTURE, array(X)), previous=m),
    "fit_gradient": lambda m: jg.fit_gradient(m, array(X)),
    "log_likelihood": lambda m: jg.log_likelihood(m, array(X)),
    "bic": lambda m: jg.bic(m, array(X)),
    "n_parameters": lambda m: jg.n_parameters(m),
    "observed_information": lambda m: jg.observed_information(m, array(X)),
    "standard_errors": lambda m: jg.standard_errors(m, array(X)),
    "marginal": lambda m: jg.marginal(m, 0),
    "condition": lambda m: jg.condition(m, 0, 0.0),
    "regress": lambda m: jg.regress(m, 0, array([[0.0]])),
    "affine": lambda m: jg.affine(m, array(np.eye(2)), array(np.zeros(2))),
    "unconstrain": lambda m: jg.unconstrain(m),
    "entropy": lambda m: jg.entropy(m),
    "component_entropies": lambda m: jg.component_entropies(m),
    "kl_divergence": lambda m: jg.kl_divergence(MIXTURE, m),
    "l2_distance": lambda m: jg.l2_distance(m, MIXTURE),
    "cauchy_schwarz_divergence": lambda m: jg.cauchy_schwarz_divergence(m, m),
    "wasserstein_distance": lambda m: jg.wasserstein_distance(m, m),
    "overlap": lambda m: jg.overlap(m),
    "product": lambda m: jg.product(m, MIXTURE),
    "reduce": lambda m: jg.reduce(m, 1),
    "match": lambda m: jg.match(MIXTURE, m),
    "mahalanobis": lambda m: jg.mahalanobis(m, array(X)),
    "outlier_score": lambda m: jg.outlier_score(KEY, m, array(X)),
    "highest_density_level": lambda m: jg.highest_density_level(KEY, m, 0.5),
    "cdf": lambda m: jg.cdf(m, 0.0),
    "quantile": lambda m: jg.quantile(m, 0.5),
    "niw_prior": lambda m: jg.niw_prior(m, array(X)),
    "linear_dynamics": lambda m: jg.linear_dynamics(m, 0),
    "to_sklearn": lambda m: jg.to_sklearn(m),
    "to_numpyro": lambda m: jg.to_numpyro(m),
}


@pytest.mark.parametrize("call", OF_ONE_MIXTURE.values(), ids=OF_ONE_MIXTURE)
def test_what_is_asked_of_a_batch_says_vmap(call):
    with pytest.raises(ValueError, match=r"jax\.vmap, or mixture\[b\]"):
        call(BATCH)


def test_statistics_of_a_batch_say_vmap():
    batch = jax.vmap(partial(jg.e_step, x=array(X)))(BATCH)
    with pytest.raises(ValueError, match=r"jax\.vmap"):
        jg.m_step(batch)
    moved = jax.jit(lambda one: one.about(one.origin + 1))(batch)
    assert moved.second.shape == batch.second.shape


def test_traced_numbers_that_make_no_sense_are_not_called_converged():
    def status(numbers):
        tol, reg_covar, weight = numbers
        weights = array(np.ones(len(X))).at[3].set(weight)
        numbers = {"tol": tol, "reg_covar": reg_covar, "max_iter": 60}
        result = jg.em(MIXTURE, array(X), weights=weights, **numbers)
        return result.status, result.n_iter

    good = (1e-3, 1e-6, 1.0)
    cases = {
        jg.Status.CONVERGED: [good],
        jg.Status.NON_FINITE: [(1e-3, -1e-6, 1.0), (1e-3, np.nan, 1.0), (1e-3, 1e-6, -1.0)],
        jg.Status.MAX_ITER: [(-1e-3, 1e-6, 1.0), (np.nan, 1e-6, 1.0), (0.0, 1e-6, 1.0)],
    }
    numbers = array([row for rows in cases.values() for row in rows])
    statuses, n_iter = jax.jit(jax.vmap(status))(numbers)
    assert statuses.tolist() == [int(kind) for kind, rows in cases.items() for _ in rows]
    assert n_iter[4:].tolist() == [60, 60, 60]


def test_rows_with_nan_or_infinity_have_no_label():
    x = array(X[:4]).at[1, 0].set(jnp.nan).at[2, 1].set(jnp.inf)
    labels = MIXTURE.predict(x)
    assert labels.tolist() == [int(labels[0]), -1, -1, int(labels[3])] and labels[0] >= 0
    assert jnp.issubdtype(labels.dtype, jnp.integer)
    assert np.isnan(MIXTURE.responsibilities(x)[1:3]).all()
    assert em(MIXTURE, X).mixture.predict(array([[1e30, -1e30]])) >= 0
