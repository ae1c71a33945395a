"""Draws from a mixture, and how they move with its parameters."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import ndtr
from jax.scipy.stats import norm

from jaxgmm.covariance import Covariance, Diagonal, Full, Spherical
from jaxgmm.numerics import chunk_size, log_softmax

Parameters = tuple[Array, Array, Covariance]


@partial(jax.jit, static_argnames="n")
def draw(parameters: Parameters, key: Array, n: int) -> tuple[Array, Array]:
    """Rows and the components that they are from: (n, D), (n,) int.

    Args:
        parameters: log-weights (K,), means (K, D) and covariance.
        key: a JAX PRNG key.
        n: how many.
    """
    log_weights, means, covariance = parameters
    key_of_labels, key_of_noise = jax.random.split(key)
    labels = jax.random.categorical(key_of_labels, log_weights, shape=(n,))
    noise = jax.random.normal(key_of_noise, (n, means.shape[1]), means.dtype)

    def row(label_and_noise: tuple[Array, Array]) -> Array:
        label, noise = label_and_noise
        own = jax.tree.map(lambda leaf: leaf[label % leaf.shape[0]][None], covariance)
        return means[label] + own.unwhiten(noise[None])[0]

    if n == 0:
        return noise, labels
    return lax.map(row, (labels, noise), batch_size=chunk_size(n, noise.shape[1] ** 2)), labels


@jax.custom_jvp
def carried_along(parameters: Parameters, x: Array) -> Array:
    """Draws (n, D), which move with all parameters as their distribution does.

    A draw keeps its place among all draws: the probability of a smaller first feature, and those of
    smaller further ones, given the ones before. That determines how it moves, with the weights,
    too, though no draw ever changes its component.

    Source: Figurnov, Mohamed & Mnih 2018 (implicit reparameterization).
    """
    return x


@carried_along.defjvp
def _differentiate_carried_along(
    primals: tuple[Parameters, Array], tangents: tuple[Parameters, Array]
) -> tuple[Array, Array]:
    parameters, x = primals

    def velocity(row: Array) -> Array:
        moved = jax.jvp(lambda moving: place(moving, row), (parameters,), (tangents[0],))[1]
        slopes = jax.jacfwd(lambda row: place(parameters, row))(row)
        return -solve_triangular(slopes, moved, lower=True)

    return x, jax.vmap(velocity)(x) + tangents[1]


def place(parameters: Parameters, row: Array) -> Array:
    """P(x_d ≤ row_d | the features before it), of each feature d: (D,) -> (D,)."""
    log_weights, means, covariance = parameters
    z = covariance.whiten((row[None] - means)[None])[0]
    match covariance:
        case Full(scale_tril):
            scales = jnp.diagonal(scale_tril, axis1=1, axis2=2)
        case Diagonal(scale):
            scales = scale
        case Spherical(scale):
            scales = scale[:, None]
    log_density = norm.logpdf(z) - jnp.log(scales)
    before = jnp.cumsum(log_density, axis=1) - log_density
    responsibilities = jnp.exp(log_softmax((log_weights[:, None] + before).T))
    return jnp.sum(responsibilities * ndtr(z).T, axis=1)
