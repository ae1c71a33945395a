"""Every public function is lowered for every platform, which takes no device of it."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from helpers import DTYPE, D, K, N, array, blobs, start_from_labels

import jaxgmm as jg

pytestmark = pytest.mark.once

PLATFORMS = ["cpu", "cuda", "tpu", "rocm"]
KEY = jax.random.key(0)
# Of known values only, see `test_tracing.py`; and what is of the host.
OF_KNOWN_VALUES = {"select", "select_batch", "save", "load", "record_passes"}
OF_KNOWN_VALUES |= {"from_sklearn", "to_sklearn", "to_numpyro", "n_parameters"}
CALLS_THE_HOST = {"wasserstein_distance"}


def of_mixture_and_rows():
    """Calls with a mixture and rows, by the public name that each is for."""
    few = {"max_iter": 3}
    return {
        "em": lambda m, x: jg.em(m, x, **few),
        "em, polished": lambda m, x: jg.em(m, x, polish=True, **few),
        "em, accelerated": lambda m, x: jg.em(m, x, accelerate="anderson", **few),
        "em, its derivative": lambda m, x: jax.grad(
            lambda x: jnp.sum(jg.em(m, x, history=False, **few).mixture.means)
        )(x),
        "em of long rows": lambda m, x: jg.em(m, jnp.tile(x, (400, 1)), **few),
        "em_from_statistics": lambda m, x: jg.em_from_statistics(
            lambda m: jg.e_step(m, x), m, max_iter=3
        ),
        "fit": lambda m, x: jg.fit(KEY, x, K, n_init=2, **few),
        "fit_batch": lambda m, x: jg.fit_batch(KEY, x.reshape(3, -1, D), 2, **few),
        "fit_gradient": lambda m, x: jg.fit_gradient(m, x, **few),
        "e_step": jg.e_step,
        "accumulate": lambda m, x: jg.accumulate(x, m.responsibilities(x), covariance_type="full"),
        "m_step": lambda m, x: [
            jg.m_step(jg.e_step(m, x), name) for name in ("full", "tied", "diag", "VEI")
        ],
        "em_step": jg.em_step,
        "log_likelihood": jg.log_likelihood,
        "aic": jg.aic,
        "bic": jg.bic,
        "icl": jg.icl,
        "standard_errors": jg.standard_errors,
        "observed_information": jg.observed_information,
        "unconstrain": lambda m, x: jg.unconstrain(m),
        "constrain": lambda m, x: jg.constrain(jg.unconstrain(m)),
        "marginal": lambda m, x: jg.marginal(m, [0]),
        "condition": lambda m, x: jg.condition(m, [0], x[0, :1]),
        "regress": lambda m, x: jg.regress(m, [0], x[:, :1]),
        "affine": lambda m, x: jg.affine(m, 2 * jnp.eye(D, dtype=DTYPE), x[0]),
        "product": lambda m, x: jg.product(m, m),
        "reduce": lambda m, x: jg.reduce(m, 2),
        "match": lambda m, x: jg.match(m, m),
        "entropy": lambda m, x: jg.entropy(m, key=KEY, n_samples=100),
        "component_entropies": lambda m, x: jg.component_entropies(m),
        "kl_divergence": lambda m, x: jg.kl_divergence(m, m, key=KEY, n_samples=100),
        "l2_distance": lambda m, x: jg.l2_distance(m, m),
        "cauchy_schwarz_divergence": lambda m, x: jg.cauchy_schwarz_divergence(m, m),
        "wasserstein_distance": lambda m, x: jg.wasserstein_distance(m, m),
        "overlap": lambda m, x: jg.overlap(m),
        "cdf": lambda m, x: jg.cdf(jg.marginal(m, [0]), x[:, 0]),
        "quantile": lambda m, x: jg.quantile(jg.marginal(m, [0]), array([0.1, 0.9])),
        "mahalanobis": jg.mahalanobis,
        "outlier_score": lambda m, x: jg.outlier_score(KEY, m, x, n_samples=100),
        "highest_density_level": lambda m, x: jg.highest_density_level(KEY, m, 0.9, n_samples=100),
        "niw_prior": jg.niw_prior,
        "linear_dynamics": lambda m, x: jg.linear_dynamics(jg.niw_prior(m, x).gaussian(), [0]),
        "methods of a mixture": lambda m, x: (
            m.log_prob(x),
            m.component_log_prob(x),
            m.log_responsibilities(x),
            m.predict(x),
            m.sample(KEY, 10),
            m.mean(),
            m.covariance_matrix(),
            m.precisions,
        ),
    }


def test_all_public_functions_are_here():
    functions = {name for name in jg.__all__ if inspect.isfunction(getattr(jg, name))}
    assert functions - OF_KNOWN_VALUES == functions & set(of_mixture_and_rows())


@pytest.mark.parametrize("name", of_mixture_and_rows())
def test_a_function_is_lowered_for_every_platform(name):
    mixture = jax.eval_shape(lambda mixture: mixture, start_from_labels(blobs(), "full"))
    rows = jax.ShapeDtypeStruct((N, D), DTYPE)
    call = jax.jit(of_mixture_and_rows()[name])
    if name in CALLS_THE_HOST:
        # JAX exports no such program, and lowers it for platforms of which a device is here.
        assert "callback" in call.lower(mixture, rows).as_text()
    else:
        program = jax.export.export(call, platforms=PLATFORMS)(mixture, rows)
        assert set(program.platforms) == set(PLATFORMS)
