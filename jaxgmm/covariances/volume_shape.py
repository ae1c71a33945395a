"""Covariances of which components share the shape but not the volume: Σ_k = λ_k A, |A| = 1.

A is diagonal, so that in logarithms the variance of feature d is log λ_k + a_d, with Σ a_d = 0. The
expected log-likelihood of components with variances s_kd and shares p_k of the rows is concave in
both, and its maximum balances the ratios m_kd = s_kd / (λ_k A_d): of each component they average 1
over the features, and of each feature over the components by their shares. In turn for rows and
columns, that is Sinkhorn's iteration.

Source: Celeux & Govaert 1995; Sinkhorn & Knopp 1967.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays.krylov import conjugate_residuals
from jaxgmm.arrays.numerics import at_least, logsumexp, varying
from jaxgmm.covariances.charts import Chart, FreeNumbers
from jaxgmm.covariances.storage import Covariance, Diagonal, diagonal_of_factors

# Nearly equal rows or columns take two or three iterations. Where these are not enough, the next
# step of EM goes on from there.
MAX_ITERATIONS = 100


def common_shape(count: Array, scatter: Array, before: Covariance | None) -> Diagonal:
    """Volumes of their own, and a diagonal shape that all components share."""
    share = count / jnp.sum(count)
    variance = scatter / count[:, None]
    log_variance = jnp.log(at_least(variance, jnp.finfo(variance.dtype).tiny))
    first = jnp.zeros_like(variance[0])
    if before is not None:
        first = 2 * jnp.log(diagonal_of_factors(before, variance.shape[1]))
        first = _centered(jnp.mean(first, axis=0))
    log_shape = _balanced(log_variance, jnp.log(share), lax.stop_gradient(first))
    log_volume = _log_volume(log_variance, log_shape)
    return Diagonal(jnp.exp((log_volume[:, None] + log_shape[None]) / 2))


def _balanced(log_variance: Array, log_share: Array, first: Array) -> Array:
    """The shape (D,) that balances variances (K, D) of components with shares (K,)."""
    eps = float(jnp.finfo(first.dtype).eps)

    def moved(log_shape: Array) -> Array:
        """How far one iteration moves the shape."""
        ratio = log_variance - _log_volume(log_variance, log_shape)[:, None]
        return _centered(logsumexp(log_share[:, None] + ratio, axis=0)) - log_shape

    def solve(moved: Callable[[Array], Array], first: Array) -> Array:
        def goes_on(state: tuple[Array, Array, Array]) -> Array:
            _, step, number = state
            # Logarithms are rounded, the larger the more.
            rounding = 4 * eps * (1 + jnp.max(jnp.abs(log_variance)))
            return (jnp.max(jnp.abs(step)) > rounding) & (number < MAX_ITERATIONS)

        def advance(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            log_shape, step, number = state
            log_shape = log_shape + step
            return log_shape, moved(log_shape), number + 1

        begin = (first, moved(first), jnp.asarray(0))
        return lax.while_loop(goes_on, advance, varying(begin, log_variance, log_share))[0]

    def tangent(derivative: Callable[[Array], Array], right_side: Array) -> Array:
        # At the balance the derivative of an iteration is symmetric.
        return lax.custom_linear_solve(
            derivative,
            right_side,
            lambda product, vector: conjugate_residuals(product, vector, eps**0.7).vector,
            symmetric=True,
        )

    return lax.custom_root(moved, first, solve, tangent)


def _log_volume(log_variance: Array, log_shape: Array) -> Array:
    """log λ_k of components with variances (K, D), given a shape: (K,)."""
    ratio = log_variance - log_shape[None]
    return logsumexp(ratio, axis=1) - math.log(ratio.shape[1])


def _centered(log_shape: Array) -> Array:
    return log_shape - jnp.mean(log_shape)


def _numbers(covariance: Diagonal) -> FreeNumbers:
    log_scale = jnp.log(covariance.scale)
    log_volume = jnp.mean(log_scale, axis=1)
    log_shape = jnp.mean(log_scale - log_volume[:, None], axis=0)
    return FreeNumbers(log_volume, log_shape=log_shape[:-1])


def _covariance(numbers: FreeNumbers) -> Diagonal:
    assert numbers.log_shape is not None
    last = -jnp.sum(numbers.log_shape, keepdims=True)
    log_shape = jnp.concatenate([numbers.log_shape, last])
    return Diagonal(jnp.exp(numbers.log_scale[:, None] + log_shape[None]))


def _metric(covariance: Diagonal, share: Array) -> FreeNumbers:
    n_features = covariance.scale.shape[1]
    of_shape = jnp.ones_like(covariance.scale[0, 1:])
    return FreeNumbers(n_features**0.5 * share, log_shape=of_shape)


def _reflect(log_shape: Array) -> Array:
    """A reflection (D,) -> (D,) that turns the last axis to where all features are equal."""
    n_features = log_shape.shape[0]
    normal = jnp.full_like(log_shape, n_features**-0.5).at[-1].add(1)
    return log_shape - normal * (2 * jnp.sum(normal * log_shape) / jnp.sum(normal**2))


def _log_growth(unit: Array, step: FreeNumbers, n_features: int) -> Array:
    """The change of the logarithms of deviations that a step is: (K, D)."""
    assert step.log_shape is not None
    of_volumes = (2 * n_features) ** -0.5 * unit * step.log_scale
    of_shape = 0.5**0.5 * _reflect(jnp.pad(step.log_shape, (0, 1)))
    return of_volumes[:, None] + of_shape[None]


def _slope(unit: Array, of_scales: Array) -> FreeNumbers:
    """The transpose of `_log_growth`, of slopes by logarithms of deviations (K, D)."""
    of_volumes = (2 * of_scales.shape[1]) ** -0.5 * unit * jnp.sum(of_scales, axis=1)
    of_shape = 0.5**0.5 * _reflect(jnp.sum(of_scales, axis=0))[:-1]
    return FreeNumbers(of_volumes, log_shape=of_shape)


def _retract(covariance: Diagonal, unit: Array, step: FreeNumbers, n_features: int) -> Diagonal:
    return Diagonal(covariance.scale * jnp.exp(_log_growth(unit, step, n_features)))


def _score(covariance: Diagonal, unit: Array, square: Array, count: Array) -> FreeNumbers:
    return _slope(unit, square / covariance.scale**2 - count[:, None])


def _information(
    covariance: Diagonal, unit: Array, square: Array, step: FreeNumbers
) -> FreeNumbers:
    growth = _log_growth(unit, step, square.shape[1])
    return _slope(unit, 2 * growth * square / covariance.scale**2)


VOLUME_SHAPE = Chart(
    numbers=_numbers,
    covariance=_covariance,
    metric=_metric,
    retract=_retract,
    score=_score,
    information=_information,
)
