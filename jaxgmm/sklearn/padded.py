"""Fits and densities of NumPy's arrays by few programs: small data are filled up.

Rows are filled up with rows of weight 0, components with some that are not there, and of tiny data
the covariance type is data, too. So a search over a grid compiles a handful of programs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.padding import padded_rows, power_of_two
from jaxgmm.covariances.storage import Covariance, Diagonal, Full
from jaxgmm.covariances.structures import Structure
from jaxgmm.covariances.traced import AnyStructure, TracedStructure
from jaxgmm.mixtures.densities import component_log_prob
from jaxgmm.sklearn.climb import Climb, Start, climb


def climb_from(
    start: Start,
    X: np.ndarray,
    weights: np.ndarray,
    log_prior: np.ndarray | None,
    structure: Structure,
    n_components: int,
    numbers: tuple[float, float, float],
    max_iter: int,
) -> Climb:
    """`climb` from a start, in the precision of the rows, with NumPy's arrays.

    Args:
        start: see `climb`.
        X: (N, D).
        weights: (N,).
        log_prior: (N, K), or None.
        structure: the covariance type.
        n_components: K.
        numbers: `reg_covar`, `tol` and `before` of `climb`.
        max_iter: steps.
    """
    dtype, n_rows = X.dtype, rows_of_program(X)
    given = any(part is not None for part in start[1:])
    of_program, size = _program_for(X, structure, n_components, as_data=not given)
    start = Start(with_zeros(start.responsibilities, n_rows, size), *start[1:])
    start, numbers = jax.tree.map(lambda part: np.asarray(part, dtype), (start, numbers))
    with jax.enable_x64(dtype == np.float64):
        found = climb(
            with_zeros(X, n_rows),
            with_zeros(weights, n_rows),
            with_zeros(log_prior, n_rows, size),
            start,
            np.arange(size) < n_components,
            *numbers,
            np.asarray(max_iter),
            of_program,
            capacity=power_of_two(max(1, max_iter)),
        )
        found = jax.tree.map(np.asarray, found)
    covariances = found.covariances
    if isinstance(of_program, TracedStructure):
        covariances = _written_down(covariances, structure)
    if not structure.shared:
        covariances = covariances[:n_components]
    return found._replace(
        weights=found.weights[:n_components],
        means=found.means[:n_components],
        covariances=covariances,
    )


def _program_for(
    X: np.ndarray, structure: Structure, n_components: int, as_data: bool
) -> tuple[AnyStructure, int]:
    """The covariance type and the number of components that a fit is compiled for.

    Args:
        X: (N, D).
        structure: the covariance type.
        n_components: K.
        as_data: whether the type may be data.
    """
    size = power_of_two(n_components)
    numbers = rows_of_program(X) * size * X.shape[1] ** 2
    if not as_data or structure.coupled or numbers > budget().padded_pass:
        return structure, n_components
    if numbers > budget().common_pass:
        return structure, size
    of_one = TracedStructure.of([structure.name])
    return jax.tree.map(lambda flag: flag[0], of_one), size


def _written_down(matrices: np.ndarray, structure: Structure) -> np.ndarray:
    """Covariances (K, D, D) as they are written down for a type."""
    found = matrices
    if structure.diagonal:
        found = np.diagonal(matrices, axis1=1, axis2=2)
    if structure.isotropic:
        found = found[:, 0]
    return found[0] if structure.shared else found


def log_densities(
    X: np.ndarray, means: np.ndarray, factors: np.ndarray, structure: Structure
) -> np.ndarray:
    """log N(x | μ_k, Σ_k): (N, K).

    Args:
        X: (N, D) of floats, whose precision is that of the result.
        means: (K, D).
        factors: of the precisions, as scikit-learn has them.
        structure: the covariance type.
    """
    (n_components, n_features), dtype = means.shape, X.dtype
    if structure.diagonal:
        of_each = factors[:, None] if structure.isotropic and not structure.shared else factors
        factors = np.broadcast_to(of_each, means.shape)
    n_rows, size = rows_of_program(X), n_components
    if X.size <= budget().small:
        size = power_of_two(n_components)
    by_matrices = n_rows * size * n_features**2 <= budget().padded_pass
    with jax.enable_x64(dtype == np.float64):
        if structure.diagonal and not by_matrices:
            more = np.ones((size - n_components, n_features))
            covariance: Covariance = Diagonal(
                jnp.asarray(np.concatenate([1 / factors, more]), dtype)
            )
        else:
            if structure.diagonal:
                factors = factors[:, :, None] * np.eye(n_features)[None]
            covariance = full_of(factors.reshape(-1, n_features, n_features), size, dtype)
        padded = with_zeros(means.astype(dtype, copy=False), size)
        found = component_log_prob(covariance, padded, with_zeros(X, n_rows))
    return np.array(found)[: len(X), :n_components]


def full_of(factors: np.ndarray, size: int, dtype: Any) -> Full:
    """Full covariances Σ⁻¹ = U Uᵀ of factors U (K or 1, D, D), and so many in all that are I."""
    inverse = np.swapaxes(factors, 1, 2).astype(dtype)
    if len(inverse) > 1 and size > len(inverse):
        more = np.broadcast_to(np.eye(inverse.shape[1], dtype=dtype), (size, *inverse.shape[1:]))
        inverse = np.concatenate([inverse, more[len(inverse) :]])
    return Full(jnp.asarray(np.linalg.inv(inverse)), jnp.asarray(inverse))


def rows_of_program(X: np.ndarray) -> int:
    """The number of rows that a program for X (N, D) is compiled for."""
    return padded_rows(len(X)) if X.size <= budget().small else len(X)


def with_zeros(array: np.ndarray | None, *lengths: int) -> np.ndarray | None:
    """An array whose first axes have been filled up to some lengths by zeros."""
    if array is None or array.shape[: len(lengths)] == lengths:
        return array
    missing = [length - had for length, had in zip(lengths, array.shape, strict=False)]
    return np.pad(array, [(0, count) for count in missing] + [(0, 0)] * (array.ndim - len(missing)))


def has_collapsed(structure: Structure, covariances: np.ndarray, X: np.ndarray) -> bool:
    """Whether some covariance has no variance left, or is singular to rounding.

    Args:
        structure: the covariance type.
        covariances: as they are written down.
        X: (N, D) rows.
    """
    # To the smallest numbers there are Cholesky factors raise what is zero.
    eps, least = np.finfo(X.dtype).eps, 2**20 * np.finfo(X.dtype).tiny
    of_data = X.var(axis=0, dtype=np.float64)
    of_data[of_data == 0] = 1
    if structure.isotropic:
        of_data = of_data.mean()
    if not structure.full_second_moment:
        return bool(np.any(covariances <= least * of_data))
    variances = np.diagonal(covariances, axis1=-2, axis2=-1)
    if np.any(variances <= least * of_data):
        return True
    deviations = np.sqrt(variances)
    correlations = covariances / (deviations[..., :, None] * deviations[..., None, :])
    return bool(np.linalg.eigvalsh(correlations).min() <= 2 * X.shape[1] * eps)
