"""Covariances from sufficient statistics: the M-step of each covariance type.

All are called with count: (K,) positive; scatter: (K, D, D) or (K, D), sums of squares about the
components' new means, or (1, ...) of all together where these share a covariance; and the
covariance before, or None, which those that iterate begin with.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.matrices import cholesky, is_positive_definite
from jaxgmm.arrays.numerics import at_least
from jaxgmm.covariances.storage import Covariance, Diagonal, Full, Spherical

Estimator = Callable[[Array, Array, Covariance | None], Covariance]


def root_of_matrices(covariances: Array) -> Array:
    """Cholesky factors (..., D, D), NaN where a matrix isn't positive definite.

    LAPACK is faster for large matrices, but in a program, and for its derivatives, must not be
    called for batches, see `reflections.py`.
    """
    if is_concrete(covariances):
        # Known values inside of somebody's trace, too, are factorized by a program of their own.
        with jax.ensure_compile_time_eval():
            return jnp.linalg.cholesky(covariances)
    symmetric = (covariances + jnp.swapaxes(covariances, -1, -2)) / 2
    is_good = is_positive_definite(symmetric)[..., None, None]
    return jnp.where(is_good, cholesky(symmetric), jnp.nan)


def full(count: Array, scatter: Array, _: Covariance | None) -> Full:
    """Each component its own covariance."""
    return Full(cholesky(scatter / count[:, None, None]))


def tied(count: Array, scatter: Array, _: Covariance | None) -> Full:
    """One covariance for all components."""
    return full(jnp.sum(count)[None], jnp.sum(scatter, axis=0)[None], None)


def diag(count: Array, scatter: Array, _: Covariance | None) -> Diagonal:
    """Each component its own variances, feature by feature."""
    variance = scatter / count[:, None]
    return Diagonal(jnp.sqrt(at_least(variance, jnp.finfo(variance.dtype).tiny)))


def tied_diag(count: Array, scatter: Array, _: Covariance | None) -> Diagonal:
    """The same variances for all components."""
    return diag(jnp.sum(count)[None], jnp.sum(scatter, axis=0)[None], None)


def spherical(count: Array, scatter: Array, _: Covariance | None) -> Spherical:
    """Each component its own variance, the same in every direction."""
    variance = jnp.mean(scatter / count[:, None], axis=-1)
    return Spherical(jnp.sqrt(at_least(variance, jnp.finfo(variance.dtype).tiny)))


def tied_spherical(count: Array, scatter: Array, _: Covariance | None) -> Spherical:
    """One variance for all components and directions."""
    return spherical(jnp.sum(count)[None], jnp.sum(scatter, axis=0)[None], None)
