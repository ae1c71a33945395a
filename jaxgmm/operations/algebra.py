"""Maps of mixtures to mixtures: marginals, conditionals and affine maps.

Features are picked by whole numbers that are known when a program is traced. Factors of covariances
come from factors, by orthogonal transformations: nothing is squared, and nothing inverted.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays.chunks import chunk_size, map_over_chunks
from jaxgmm.arrays.conversion import as_float_array, in_common_dtype
from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.numerics import einsum, shifted_exponentials
from jaxgmm.arrays.placement import check_points
from jaxgmm.arrays.reflections import factor_of_root
from jaxgmm.arrays.validation import check_mixture, check_static
from jaxgmm.covariances.storage import Full, factors, is_diagonal
from jaxgmm.covariances.transformations import of_features
from jaxgmm.execution.programs import PlatformProgram, points_at
from jaxgmm.mixtures.densities import far_density, log_shares, standardized
from jaxgmm.mixtures.mixture import GaussianMixture

Indices = int | Sequence[int] | np.ndarray


def marginal(mixture: GaussianMixture, indices: Indices) -> GaussianMixture:
    """The mixture of some features, whatever the others are.

    Args:
        mixture: over D features.
        indices: which, in the order wanted: a whole number, several, or a mask (D,) of bools.
            Negative ones count from the end.

    Returns:
        Over d features, with a covariance of the same kind.

    Raises:
        TypeError: indices are no whole numbers.
        ValueError: none, one twice, or one that there isn't; a batch.

    Example:
        >>> import jaxgmm as jg
        >>> mixture = jg.GaussianMixture.create([1.0], [[1.0, 2.0]], [[[2.0, 1.0], [1.0, 3.0]]])
        >>> jg.marginal(mixture, 1).means.tolist()
        [[2.0]]
    """
    check_mixture(mixture)
    kept = _as_indices(indices, mixture.n_features)
    if not kept:
        raise ValueError("marginal needs at least one feature to keep, got no indices")
    return _marginal(mixture, kept)


def condition(mixture: GaussianMixture, indices: Indices, values: ArrayLike) -> GaussianMixture:
    """The mixture of the other features, given the values of some.

    For many values use `jax.vmap` over them: what doesn't depend on the values is done once.

    Args:
        mixture: over D features.
        indices: of the given features, see `marginal`; none at all leave the mixture as it is.
        values: (d,) of these features, in their order; a number for a single one.

    Returns:
        Over the D - d other features, in ascending order. However unlikely the values are, weights
        are finite.

    Raises:
        TypeError: indices are no whole numbers, or values not numeric.
        ValueError: one index twice, or one that there isn't; all of them, so that nothing is left;
            values of another shape; a batch of mixtures.
    """
    check_mixture(mixture)
    given = _as_indices(indices, mixture.n_features)
    mixture, values = in_common_dtype(mixture, jnp.atleast_1d(as_float_array("values", values)))
    if values.shape != (len(given),):
        raise ValueError(
            f"values must be ({len(given)},), one for each index, got shape {values.shape}; for "
            "many use jax.vmap"
        )
    if len(given) == mixture.n_features:
        raise ValueError("all features are given: nothing is left to condition")
    return _condition(mixture, given, values) if given else mixture


def regress(mixture: GaussianMixture, indices: Indices, values: ArrayLike) -> tuple[Array, Array]:
    """Gaussian mixture regression: mean and covariance of the other features, given some.

    Args:
        mixture: over D features.
        indices: of the d given features, see `marginal`.
        values: (..., d) in their order.

    Returns:
        (..., D - d) and (..., D - d, D - d), of the other features in ascending order.

    Raises:
        TypeError, ValueError: as for `condition`; no features are given.

    Source: Ghahramani & Jordan 1994.
    """
    check_mixture(mixture)
    given = _some_indices(indices, mixture.n_features)
    mixture, values = in_common_dtype(mixture, as_float_array("values", values))
    if values.ndim:
        check_points("values", values, mixture.n_components * mixture.n_features)
    if values.ndim == 0 or values.shape[-1] != len(given):
        raise ValueError(
            f"values must be (..., {len(given)}), a number for each index, got shape {values.shape}"
        )
    return _regress(mixture, values, given=given)


def affine(mixture: GaussianMixture, matrix: ArrayLike, offset: ArrayLike) -> GaussianMixture:
    """The mixture of A x + b.

    Args:
        mixture: of x, over D features.
        matrix: A, (M, D) of rank M.
        offset: b, (M,).

    Returns:
        Over M features, with full covariances.

    Raises:
        TypeError: not numeric.
        ValueError: shapes don't agree; where values are known, A has a lower rank than M, so that
            A x has no density. A batch.
    """
    check_mixture(mixture)
    given = (as_float_array("matrix", matrix), as_float_array("offset", offset))
    mixture, matrix, offset = in_common_dtype(mixture, *given)
    good = matrix.ndim == 2 and matrix.shape[1] == mixture.n_features and matrix.shape[0] > 0
    if not good or offset.shape != matrix.shape[:1]:
        raise ValueError(
            f"matrix must be (M, {mixture.n_features}) and offset (M,), got {matrix.shape} and "
            f"{offset.shape}"
        )
    n_new, n_features = matrix.shape
    if is_concrete(matrix):
        rank = np.linalg.matrix_rank(np.asarray(matrix))
        if rank < n_new:
            raise ValueError(
                f"matrix has rank {rank}, and {n_new} rows: what it makes of x has no density; "
                "leave out rows that depend on others"
            )
    elif n_new > n_features:
        raise ValueError(f"matrix must not have more rows than columns, got {matrix.shape}")
    return _affine(mixture, matrix, offset)


def linear_parts(gaussian: GaussianMixture, indices: Indices) -> tuple[Array, Array, Array]:
    """The linear model of one Gaussian, see `priors.linear_dynamics`."""
    given = _some_indices(indices, gaussian.n_features)
    known, across, covariance = _split(gaussian, given)
    rest = _rest(given, gaussian.n_features)
    slopes = jnp.zeros((len(rest), len(given)), gaussian.means.dtype)
    if across is not None:
        slopes = einsum("ij,jl->il", across[0], known.covariance.inverse_factor()[0])
    offset = _pick(gaussian.means[0], rest) - einsum("ij,j->i", slopes, known.means[0])
    return slopes, offset, covariance.dense(len(rest))[0]


def _some_indices(indices: Indices, n_features: int) -> tuple[int, ...]:
    given = _as_indices(indices, n_features)
    if not 0 < len(given) < n_features:
        raise ValueError(
            f"some features have to be given and some left, got {len(given)} of {n_features}"
        )
    return given


def _as_indices(indices: Indices, n_features: int) -> tuple[int, ...]:
    """Indices as whole numbers from 0 to D - 1, each at most once."""
    for number in jax.tree.leaves(indices):
        check_static("indices", number)
    array = np.atleast_1d(np.asarray(indices))
    if array.ndim != 1:
        raise ValueError(f"indices must be a number or a list of numbers, got shape {array.shape}")
    if array.dtype == bool:
        if array.size != n_features:
            raise ValueError(f"a mask must be ({n_features},), got shape {array.shape}")
        array = np.flatnonzero(array)
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"indices must be whole numbers, got {array.dtype}")
    numbers = [int(number) for number in array]
    wrong = [number for number in numbers if not -n_features <= number < n_features]
    if wrong:
        raise ValueError(f"index {wrong[0]} is out of range for {n_features} features")
    numbers = [number % n_features for number in numbers]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"indices must not repeat, got {numbers}")
    return tuple(numbers)


def _rest(given: tuple[int, ...], n_features: int) -> tuple[int, ...]:
    return tuple(number for number in range(n_features) if number not in given)


def _pick(array: Array, indices: tuple[int, ...]) -> Array:
    """Some of the last axis."""
    return array[..., np.array(indices, int)]


@partial(jax.jit, static_argnames="kept")
def _marginal(mixture: GaussianMixture, kept: tuple[int, ...]) -> GaussianMixture:
    covariance = of_features(mixture.covariance, kept)
    return replace(mixture, means=_pick(mixture.means, kept), covariance=covariance)


def _split(mixture: GaussianMixture, given: tuple[int, ...]) -> tuple[Any, ...]:
    """The marginal of the given features; and of the rest what they add, and the covariance.

    The means of the rest move by a matrix (K or 1, D - d, d) times the given features' differences
    from their means, standardized; it is None where features are independent within components.
    """
    rest = _rest(given, mixture.n_features)
    if is_diagonal(mixture.covariance):
        return _marginal(mixture, given), None, of_features(mixture.covariance, rest)
    n_given = len(given)
    factor = factors(of_features(mixture.covariance, given + rest), mixture.n_features)
    covariance = Full(factor[:, :n_given, :n_given])
    known = replace(mixture, means=_pick(mixture.means, given), covariance=covariance)
    return known, factor[:, n_given:, :n_given], Full(factor[:, n_given:, n_given:])


def _means_of_rest(
    mixture: GaussianMixture, given: tuple[int, ...], across: Array | None, z: Array
) -> Array:
    """Conditional means of each component, for standardized values (K, d, N): (K, D - d, N)."""
    means = _pick(mixture.means, _rest(given, mixture.n_features))[:, :, None]
    if across is None:
        return jnp.broadcast_to(means, (*means.shape[:2], z.shape[2]))
    across = jnp.broadcast_to(across, (means.shape[0], *across.shape[1:]))
    return means + einsum("kij,kjn->kin", across, z)


@partial(jax.jit, static_argnames="given")
def _condition(mixture: GaussianMixture, given: tuple[int, ...], values: Array) -> GaussianMixture:
    known, across, covariance = _split(mixture, given)
    z = standardized(known.covariance, known.means, values[None])
    log_weights = log_shares(known.log_weights, known.covariance, z)
    means = _means_of_rest(mixture, given, across, z)
    return GaussianMixture(log_weights[:, 0], means[:, :, 0], covariance)


@partial(PlatformProgram, static_argnames="given", layout=points_at(1), of_each_row=True)
def _regress(
    mixture: GaussianMixture, values: Array, given: tuple[int, ...]
) -> tuple[Array, Array]:
    known, across, covariance = _split(mixture, given)
    n_rest = mixture.n_features - len(given)
    dense = covariance.dense(n_rest)
    within = jnp.broadcast_to(dense, (mixture.n_components, n_rest, n_rest))

    pairs = np.triu_indices(n_rest)
    place = np.empty((n_rest, n_rest), int)
    place[pairs] = place[pairs[::-1]] = np.arange(len(pairs[0]))

    def moments(values: Array) -> tuple[Array, Array]:
        z = standardized(known.covariance, known.means, values)
        logits = far_density(known.covariance, z) + known.log_weights[:, None]
        terms, sum_of_terms, _ = shifted_exponentials(logits, axis=0)
        shares = terms / sum_of_terms
        means = jnp.swapaxes(_means_of_rest(mixture, given, across, z), 0, 1)
        # One after the other: sums that are vectors of rows, of which XLA makes fast loops.
        mean = lax.map(lambda own: jnp.sum(shares * own, axis=0), means)
        apart = means - mean[:, None]
        between = lax.map(
            lambda pair: jnp.sum(shares * apart[pair[0]] * apart[pair[1]], axis=0),
            jax.tree.map(jnp.asarray, pairs),
        )
        total = einsum("kf,kn->fn", within.reshape(-1, n_rest**2), shares) + between[place.ravel()]
        return mean.T, total.T

    rows = values.reshape(-1, len(given))
    size = chunk_size(rows.shape[0], mixture.n_components * mixture.n_features)
    mean, total = map_over_chunks(moments, rows, size)
    shape = values.shape[:-1]
    return mean.reshape(*shape, n_rest), total.reshape(*shape, n_rest, n_rest)


@jax.jit
def _affine(mixture: GaussianMixture, matrix: Array, offset: Array) -> GaussianMixture:
    roots = einsum("ij,kjl->kil", matrix, factors(mixture.covariance, mixture.n_features))
    means = einsum("ij,kj->ki", matrix, mixture.means) + offset[None]
    return GaussianMixture(mixture.log_weights, means, Full(factor_of_root(roots)))
