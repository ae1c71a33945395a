"""The pass over the data: everything that reads all rows at once reads them here."""

import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.densities import near_and_far
from jaxgmm.frame import Frame
from jaxgmm.mixture import GaussianMixture
from jaxgmm.numerics import chunk_size, einsum, log_softmax, logsumexp, sum_over_chunks
from jaxgmm.statistics import SufficientStatistics


def sum_moments(
    z: Array, responsibilities: Array, origin: Array, full_second_moment: bool
) -> tuple[Array, Array, Array]:
    """Count, first and second moments about the origin.

    Args:
        z: (N, D).
        responsibilities: (N, K), times the rows' weights.
        origin: (K, D).
        full_second_moment: whether (K, D, D) second moments are wanted, or their diagonals.

    Returns:
        (K,), (K, D), and (K, D, D) or (K, D).
    """
    difference = z[:, None, :] - origin[None]
    weighted = responsibilities[:, :, None] * difference
    square = "nki,nkj->kij" if full_second_moment else "nki,nki->ki"
    return (
        jnp.sum(responsibilities, axis=0),
        jnp.sum(weighted, axis=0),
        einsum(square, weighted, difference),
    )


def expect(
    frame: Frame,
    mixture: GaussianMixture,
    x: Array,
    weights: Array,
    log_prior: Array | None,
    full_second_moment: bool,
) -> SufficientStatistics:
    """The E-step: statistics of x under the responsibilities of a mixture.

    Args:
        frame: coordinates of the mixture and of the statistics.
        mixture: K components over z.
        x: (N, D) in the data's units.
        weights: (N,).
        log_prior: (N, K) added to the logits, or None.
        full_second_moment: see `sum_moments`.
    """
    n_rows = x.shape[0]
    size = chunk_size(n_rows, mixture.n_components * mixture.n_features)

    def summand(start: Array, fresh: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        w = jnp.where(fresh, lax.dynamic_slice_in_dim(weights, start, size), 0)
        z = frame.read(lax.dynamic_slice_in_dim(x, start, size), w)
        near, far = near_and_far(mixture.covariance, mixture.means, z)
        prior = mixture.log_weights[None]
        if log_prior is not None:
            prior = prior + lax.dynamic_slice_in_dim(log_prior, start, size)
        log_prob = jnp.where(w > 0, logsumexp(near + prior), 0)
        responsibilities = w[:, None] * jnp.exp(log_softmax(far + prior))
        moments = sum_moments(z, responsibilities, mixture.means, full_second_moment)
        return jnp.sum(w * log_prob), moments

    log_likelihood, (count, first, second) = sum_over_chunks(summand, n_rows, size)
    return SufficientStatistics(
        log_likelihood=log_likelihood - jnp.sum(weights) * frame.log_volume(),
        count=count,
        first=first,
        second=second,
        origin=mixture.means,
    )


def collect(
    frame: Frame,
    x: Array,
    responsibilities: Array,
    weights: Array,
    origin: Array,
    full_second_moment: bool,
) -> SufficientStatistics:
    """Statistics of x under given responsibilities; the log-likelihood is 0.

    Args:
        frame: coordinates of the origin and of the statistics.
        x: (N, D) in the data's units.
        responsibilities: (N, K).
        weights: (N,).
        origin: (K, D) over z.
        full_second_moment: see `sum_moments`.
    """
    n_rows = x.shape[0]
    size = chunk_size(n_rows, origin.size)

    def summand(start: Array, fresh: Array) -> tuple[Array, Array, Array]:
        w = jnp.where(fresh, lax.dynamic_slice_in_dim(weights, start, size), 0)
        z = frame.read(lax.dynamic_slice_in_dim(x, start, size), w)
        given = lax.dynamic_slice_in_dim(responsibilities, start, size)
        weighted = jnp.where(w[:, None] != 0, w[:, None] * given, 0)
        return sum_moments(z, weighted, origin, full_second_moment)

    count, first, second = sum_over_chunks(summand, n_rows, size)
    return SufficientStatistics(
        log_likelihood=jnp.zeros_like(count[0]),
        count=count,
        first=first,
        second=second,
        origin=origin,
    )


def total_log_prob(frame: Frame, mixture: GaussianMixture, x: Array, weights: Array) -> Array:
    """Σ w_n log p(x_n), of x rather than z: ().

    Args:
        frame: coordinates of the mixture.
        mixture: K components over z.
        x: (N, D) in the data's units.
        weights: (N,).
    """
    n_rows = x.shape[0]
    size = chunk_size(n_rows, mixture.n_components * mixture.n_features)

    def summand(start: Array, fresh: Array) -> Array:
        w = jnp.where(fresh, lax.dynamic_slice_in_dim(weights, start, size), 0)
        z = frame.read(lax.dynamic_slice_in_dim(x, start, size), w)
        near, _ = near_and_far(mixture.covariance, mixture.means, z)
        log_prob = logsumexp(near + mixture.log_weights[None])
        return jnp.sum(jnp.where(w > 0, w * log_prob, 0))

    total = sum_over_chunks(summand, n_rows, size)
    return total - jnp.sum(weights) * frame.log_volume()
