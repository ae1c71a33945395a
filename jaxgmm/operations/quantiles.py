"""Distribution functions, quantiles and outlier scores: where a point stands in a mixture."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm
from jax.typing import ArrayLike

from jaxgmm.arrays.conversion import as_float_array, in_common_dtype
from jaxgmm.arrays.numerics import align, difference, einsum, square_root, varying
from jaxgmm.arrays.validation import (
    as_query,
    check_count,
    check_key,
    check_mixture,
    check_probability,
)
from jaxgmm.covariances.storage import diagonal_of_factors
from jaxgmm.execution.programs import PlatformProgram, points_at
from jaxgmm.mixtures.mixture import GaussianMixture

# Weights, means and standard deviations of components over one feature: (K,) each.
Line = tuple[Array, Array, Array]


def cdf(mixture: GaussianMixture, x: ArrayLike) -> Array:
    """P(X ≤ x) of a mixture over one feature: (...) -> (...).

    Args:
        mixture: over one feature, for instance a `marginal`.
        x: (...) in the data's units.

    Raises:
        TypeError: x is not numeric.
        ValueError: several features, or a batch.

    Example:
        >>> import jaxgmm as jg
        >>> mixture = jg.GaussianMixture.create([0.5, 0.5], [[0.0], [4.0]], [1.0, 1.0], "spherical")
        >>> jg.cdf(mixture, [2.0, 9.0]).round(4).tolist()
        [0.5, 1.0]
    """
    _check_line(mixture)
    mixture, x = in_common_dtype(mixture, as_float_array("x", x))
    return _below(_line_of(mixture), x)


def quantile(mixture: GaussianMixture, probability: ArrayLike) -> Array:
    """The x with P(X ≤ x) = probability, of a mixture over one feature: (...) -> (...).

    Differentiable in the mixture and in the probability.

    Args:
        mixture: over one feature, for instance a `marginal`.
        probability: (...) between 0 and 1.

    Returns:
        In the data's units; infinite for 0 and 1, NaN for what is no probability.

    Raises:
        TypeError: the probability is not numeric.
        ValueError: several features, or a batch; where values are known, no probabilities.
    """
    _check_line(mixture)
    mixture, given = in_common_dtype(mixture, check_probability("probability", probability))
    return _quantile(_line_of(mixture), given)


def mahalanobis(mixture: GaussianMixture, x: ArrayLike) -> Array:
    """Distances from the components' means in standard deviations: (..., D) -> (..., K).

    Raises:
        TypeError: x is not numeric.
        ValueError: x is not (..., D).
    """
    mixture, x = as_query(mixture, x)
    x = x[..., None, :]
    z = mixture.covariance.whiten(x - align(mixture.means, x))
    largest = lax.stop_gradient(jnp.max(jnp.abs(z), axis=-1, keepdims=True))
    unit = jnp.where((largest > 0) & (largest < jnp.inf), largest, 1)
    return unit[..., 0] * square_root(jnp.sum((z / unit) ** 2, axis=-1))


def highest_density_level(
    key: Array, mixture: GaussianMixture, mass: ArrayLike, *, n_samples: int = 100_000
) -> Array:
    """The log density above which some part of the mixture lies, from draws: (...) -> (...).

    The smallest region that holds the mass is where the density is above this level.

    Args:
        key: a JAX PRNG key.
        mixture: K components.
        mass: (...) between 0 and 1.
        n_samples: how many draws; the mass is known to about 1 / √n_samples. Static.

    Raises:
        TypeError: no key.
        ValueError: a batch, a bad count, or, where values are known, a mass beyond 0 and 1.

    Source: Hyndman 1996.
    """
    given = check_probability("mass", mass)
    levels = _levels_of_draws(key, mixture, n_samples)
    return jnp.quantile(levels, 1 - given.astype(levels.dtype))


def outlier_score(
    key: Array, mixture: GaussianMixture, x: ArrayLike, *, n_samples: int = 100_000
) -> Array:
    """The mass that is denser than a point, from draws: (..., D) -> (...), 0 to 1.

    Of data that are from the mixture a part of 1 % scores above 0.99. It is a count of draws, and
    has no derivative.

    Args:
        key: a JAX PRNG key.
        mixture: K components.
        x: (..., D).
        n_samples: how many draws; scores are known to about 1 / √n_samples. Static.

    Raises:
        TypeError: no key, or x is not numeric.
        ValueError: x is not (..., D), or a bad count.
    """
    mixture, x = as_query(mixture, x)
    levels = _levels_of_draws(key, mixture, n_samples)
    level = mixture.log_prob(x)
    return _mass_above(levels, level)


@partial(PlatformProgram, layout=points_at(1, n_axes=0), of_each_row=True)
def _mass_above(levels: Array, level: Array) -> Array:
    """The part of sorted levels that is above others (...)."""
    n_below = jnp.searchsorted(levels, level, side="right").astype(levels.dtype)
    return jnp.where(jnp.isnan(level), level, 1 - n_below / levels.size)


def _levels_of_draws(key: Array, mixture: GaussianMixture, n_samples: int) -> Array:
    """Log densities of draws, ascending: (n_samples,)."""
    check_mixture(mixture)
    draws = mixture.sample(check_key(key), check_count("n_samples", n_samples, 1))
    return jnp.sort(mixture.log_prob(draws))


def _check_line(mixture: GaussianMixture) -> None:
    check_mixture(mixture)
    if mixture.n_features != 1:
        raise ValueError(
            f"one feature is needed, the mixture has {mixture.n_features}; see marginal"
        )


def _line_of(mixture: GaussianMixture) -> Line:
    scale = diagonal_of_factors(mixture.covariance, 1)[:, 0]
    means = mixture.means[:, 0]
    return mixture.weights, means, jnp.broadcast_to(scale, means.shape)


def _standardized(line: Line, x: Array) -> Array:
    """Points in standard deviations from each component's mean: (...) -> (..., K)."""
    _, means, scales = line
    x = x[..., None]
    return (x - align(means, x)) / align(scales, x)


@jax.jit
def _below(line: Line, x: Array) -> Array:
    return einsum("...k,k->...", ndtr(_standardized(line, x)), line[0])


@jax.custom_jvp
@jax.jit
def _quantile(line: Line, probability: Array) -> Array:
    weights, means, scales = line
    noise = ndtri(probability)[..., None]
    of_components = align(means, noise) + align(scales, noise) * noise
    alive = align(weights, noise) > 0
    low = jnp.min(jnp.where(alive, of_components, jnp.inf), axis=-1)
    high = jnp.max(jnp.where(alive, of_components, -jnp.inf), axis=-1)
    is_upper = probability > 0.5
    target = jnp.where(is_upper, 1 - probability, probability)
    sign = jnp.where(is_upper, -1, 1).astype(means.dtype)

    def halve(_: Array, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = _middle(low, high)
        # Each tail by its own size, as nothing else is left of small probabilities.
        z = sign[..., None] * _standardized(line, middle)
        tail = einsum("...k,k->...", ndtr(z), weights)
        is_below = (tail < target) ^ is_upper
        return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

    n_halvings = 2 * jnp.finfo(means.dtype).nmant + 10
    low, high = lax.fori_loop(0, n_halvings, halve, varying((low, high), line, probability))
    return _middle(low, high)


def _middle(low: Array, high: Array) -> Array:
    """Also of infinities that are the same."""
    return low + difference(high, low) / 2


@_quantile.defjvp
def _differentiate_quantile(
    primals: tuple[Line, Array], tangents: tuple[Line, Array]
) -> tuple[Array, Array]:
    line, probability = primals
    x = _quantile(line, probability)
    weights, _, scales = line
    densities = norm.pdf(_standardized(line, x))
    density = einsum("...k,k->...", densities, weights / scales)
    reached = density > 0
    at = jnp.where(reached, x, 0)
    moved = jax.jvp(lambda line: _below(line, at), (line,), (tangents[0],))[1]
    return x, jnp.where(reached, (tangents[1] - moved) / jnp.where(reached, density, 1), 0)
