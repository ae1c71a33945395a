"""What the factory of mixtures refuses, and where it works."""

import jax
import numpy as np
import pytest
from helpers import array, assert_close, double

import jaxgmm as jg

pytestmark = pytest.mark.quick

EYE = np.eye(2)
GOOD = {"weights": [0.5, 0.5], "means": EYE, "covariances": [EYE, EYE], "covariance_type": "full"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": [0.5, 0.4]}, "sum to 1"),
        ({"weights": [1.5, -0.5]}, "negative"),
        ({"weights": [1.0]}, r"weights must be \(2,\)"),
        ({"weights": [np.nan, 0.5]}, "weights must be finite"),
        ({"means": [0.0, 1.0]}, r"means must be \(K, D\)"),
        ({"means": np.zeros((0, 2))}, r"means must be \(K, D\)"),
        ({"means": [[np.inf, 0], [0, 0]]}, "means must be finite"),
        ({"covariances": EYE}, "covariances must be"),
        ({"covariances": [EYE, -EYE]}, "number 1 is not"),
        ({"covariances": [EYE, [[1, 1], [1, 1]]]}, "positive definite"),
        ({"covariances": [EYE, [[1, 0.5], [0.2, 1]]]}, "symmetric"),
        ({"covariances": [EYE, EYE * np.nan]}, "covariances must be finite"),
        ({"covariances": [1.0, 0.0], "covariance_type": "spherical"}, "positive variances"),
        ({"covariances": [1.0, -1.0], "covariance_type": "tied_diag"}, "positive variances"),
        ({"covariances": [1.0, 1.0], "covariance_type": "tied_spherical"}, r"must be \(\)"),
        ({"covariance_type": "Full"}, "tied_spherical"),
        ({"covariance_type": None}, "tied_spherical"),
        ({"covariance_type": 3}, "tied_spherical"),
    ],
)
def test_create_refuses(changed, message):
    arguments = GOOD | changed
    numbers = {k: array(v) for k, v in arguments.items() if k != "covariance_type"}
    with pytest.raises(ValueError, match=message):
        jg.GaussianMixture.create(**numbers, covariance_type=arguments["covariance_type"])


@pytest.mark.parametrize("argument", ["weights", "means", "covariances"])
@pytest.mark.parametrize("value", [["a", "b"], [1j, 2j]], ids=["text", "complex"])
def test_create_refuses_what_is_not_real(argument, value):
    numbers = {name: array(GOOD[name]) for name in ("weights", "means", "covariances")}
    with pytest.raises(TypeError, match=argument):
        jg.GaussianMixture.create(**numbers | {argument: np.asarray(value)})


def test_create_works_under_transformations():
    def log_prob(variance):
        means, point = array(EYE), array([0.0, 0.0])
        mixture = jg.GaussianMixture.create(array([0.5, 0.5]), means, variance, "tied_spherical")
        return mixture.log_prob(point)

    assert_close(jax.jit(log_prob)(array(2.0)), log_prob(array(2.0)))
    assert jax.vmap(log_prob)(array([1.0, 2.0])).shape == (2,)
    assert np.isfinite(double(jax.grad(log_prob)(array(2.0))))
