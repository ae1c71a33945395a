"""Two mixtures of each covariance type, over the same four features."""

import jax
import numpy as np
from helpers import array

import jaxgmm as jg

K, D = 3, 4
RANDOM = np.random.default_rng(5)
RANDOM_ROOTS = RANDOM.normal(size=(K, D, D)) / 2
MEANS = RANDOM.normal(size=(K, D))


def mixture_of(covariance_type):
    """Three components over four features, of any type."""
    roots = RANDOM_ROOTS + 1.5 * np.eye(D)
    dense = roots @ np.swapaxes(roots, 1, 2)
    variances = {
        "full": dense,
        "tied": dense[0],
        "diag": np.einsum("kii->ki", dense),
        "spherical": dense[:, 0, 0],
        "tied_diag": np.diag(dense[0]),
        "tied_spherical": dense[0, 0, 0],
    }[covariance_type]
    return jg.GaussianMixture.create(
        array([0.2, 0.3, 0.5]), array(MEANS), array(variances), covariance_type
    )


def shifted(covariance_type, step=0.7):
    """Another mixture of the type, over the same features."""
    mixture = mixture_of(covariance_type)
    covariance = jax.tree.map(lambda leaf: leaf * 1.3, mixture.covariance)
    return jg.GaussianMixture(mixture.log_weights[::-1], mixture.means + step, covariance)
