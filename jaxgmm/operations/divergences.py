"""Numbers about densities: entropies, divergences and distances.

Where a mixture's logarithm has no integral in closed form there are bounds, which cost K² numbers,
and averages over draws, with their standard errors.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays.numerics import (
    at_least,
    at_most,
    log_softmax,
    logsumexp,
    square_root,
    varying,
    weighted_sum,
)
from jaxgmm.arrays.validation import check_count, check_key, check_mixture
from jaxgmm.mixtures.densities import log_normalizer
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.operations.pairs import (
    bhattacharyya_distances,
    check_pair,
    kl_divergences,
    log_overlaps,
    squared_wasserstein_distances,
)
from jaxgmm.operations.transport import assignment, transport_cost

# Alternating minimizations for the tightest upper bound on a divergence.
BOUND_STEPS = 100


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Estimate:
    """A number that can't be computed exactly, in nats.

    Attributes:
        value: () the average over draws, or the bound that it exceeds; without a key an
            approximation between the bounds.
        standard_error: () of that average; infinite for an approximation, 0 where it is exact.
        lower: () bound.
        upper: () bound.
    """

    value: Array
    standard_error: Array
    lower: Array
    upper: Array


def entropy(
    mixture: GaussianMixture, *, key: Array | None = None, n_samples: int = 10_000
) -> Estimate:
    """The differential entropy -∫ p log p, with bounds.

    The bounds are made of the entropies of the components and of distances between them: they meet
    where components are far apart, and where all are the same.

    Args:
        mixture: K components.
        key: a JAX PRNG key, for an average over draws; without it the value is the middle of the
            bounds.
        n_samples: how many draws. Static.

    Returns:
        An `Estimate`; of a single component it is exact.

    Raises:
        TypeError: no key.
        ValueError: a batch, or a bad count.

    Example:
        >>> import jaxgmm as jg
        >>> normal = jg.GaussianMixture.create([1.0], [[0.0]], [1.0], "spherical")
        >>> round(float(jg.entropy(normal).value), 4)
        1.4189

    Source: Kolchinsky & Tracey 2017.
    """
    check_mixture(mixture)
    lower, upper = _entropy_bounds(mixture)
    if key is None or mixture.n_components == 1:
        return _between(lower, upper, (lower + upper) / 2)
    draws = mixture.sample(
        check_key(key), check_count("n_samples", n_samples, 2), differentiable_weights=True
    )
    return _average(-mixture.log_prob(draws), lower, upper)


def component_entropies(mixture: GaussianMixture) -> Array:
    """The differential entropy of each component, (K,) in nats.

    Raises:
        ValueError: a batch.
    """
    check_mixture(mixture)
    each = log_normalizer(mixture.covariance, mixture.n_features) + mixture.n_features / 2
    return jnp.broadcast_to(each, mixture.log_weights.shape)


def kl_divergence(
    p: GaussianMixture, q: GaussianMixture, *, key: Array | None = None, n_samples: int = 10_000
) -> Estimate:
    """The Kullback-Leibler divergence ∫ p log(p / q), with bounds.

    Args:
        p: K₁ components.
        q: K₂ components over the same features.
        key: a JAX PRNG key, for an average over draws from p; without it the value is the
            variational approximation.
        n_samples: how many draws. Static.

    Returns:
        An `Estimate`; of two single components it is exact. The upper bound is the least of the
        variational and the matched bound, and of one that the bounds on the entropy leave; the
        lower bound is never below 0.

    Raises:
        TypeError: no key.
        ValueError: batches, different numbers of features, or a bad count.

    Source: Hershey & Olsen 2007; Durrieu, Thiran & Kelly 2012.
    """
    p, q = check_pair(p, q)
    lower, upper, approximation = _kl_bounds(p, q)
    if p.n_components == q.n_components == 1:
        exact = at_least(approximation, 0)
        return _between(exact, exact, exact)
    if key is None:
        return _between(lower, upper, at_most(at_least(approximation, lower), upper))
    draws = p.sample(
        check_key(key), check_count("n_samples", n_samples, 2), differentiable_weights=True
    )
    return _average(p.log_prob(draws) - q.log_prob(draws), lower, upper)


def l2_distance(p: GaussianMixture, q: GaussianMixture) -> Array:
    """√∫ (p - q)², in closed form: ().

    Distances far below the size of the densities are lost to rounding.

    Raises:
        ValueError: batches, or different numbers of features.
    """
    p, q = check_pair(p, q)
    of_both, of_p, of_q = _log_products(p, q)
    top = lax.stop_gradient(jnp.maximum(of_p, of_q))
    square = jnp.exp(of_p - top) + jnp.exp(of_q - top) - 2 * jnp.exp(of_both - top)
    return jnp.exp(top / 2) * square_root(square)


def cauchy_schwarz_divergence(p: GaussianMixture, q: GaussianMixture) -> Array:
    """-log(∫ p q / √(∫ p² ∫ q²)), in closed form: (), 0 for the same density.

    Raises:
        ValueError: batches, or different numbers of features.

    Source: Jenssen et al. 2006; Kampa, Hasanbelliu & Principe 2011.
    """
    p, q = check_pair(p, q)
    of_both, of_p, of_q = _log_products(p, q)
    return at_least((of_p + of_q) / 2 - of_both, 0)


def overlap(mixture: GaussianMixture) -> Array:
    """Bhattacharyya's coefficients ∫ √(f_a f_b) of all pairs of components: (K, K), 1 for twins.

    Raises:
        ValueError: a batch.
    """
    check_mixture(mixture)
    return jnp.exp(-bhattacharyya_distances(mixture, mixture))


def wasserstein_distance(p: GaussianMixture, q: GaussianMixture) -> Array:
    """The mixture-Wasserstein distance MW₂: (), in the data's units.

    The least root mean square distance by which whole components have to be carried to make q of
    p; an upper bound on the Wasserstein distance between them. Differentiable once in means,
    covariances and weights.

    Raises:
        ValueError: batches, or different numbers of features.

    Source: Delon & Desolneux 2020.
    """
    p, q = check_pair(p, q)
    return square_root(transport_cost(p.weights, q.weights, squared_wasserstein_distances(p, q)))


def _between(lower: Array, upper: Array, value: Array) -> Estimate:
    error = jnp.where(lower == upper, 0, jnp.inf).astype(value.dtype)
    return Estimate(value, error, lower, upper)


def _average(values: Array, lower: Array, upper: Array) -> Estimate:
    mean = jnp.mean(values)
    moving = jnp.where(jnp.isfinite(mean), mean, 0)
    error = jnp.std(values, ddof=1) / values.size**0.5
    # What is beyond a bound is noise; the derivative of the average isn't, on average.
    kept = at_most(at_least(mean, lower), upper)
    within, fixed, error = lax.stop_gradient((kept, moving, error))
    error = jnp.where(jnp.isnan(error), jnp.inf, error)
    return Estimate(within + (moving - fixed), error, lower, upper)


@jax.jit
def _log_products(p: GaussianMixture, q: GaussianMixture) -> tuple[Array, Array, Array]:
    """Logarithms of ∫ p q, ∫ p² and ∫ q²."""

    def log_product(p: GaussianMixture, q: GaussianMixture) -> Array:
        log_weights = p.log_weights[:, None] + q.log_weights[None]
        return logsumexp((log_weights + log_overlaps(p, q)).ravel())

    return log_product(p, q), log_product(p, p), log_product(q, q)


def _average_of_logs(p: GaussianMixture, log_terms: Array) -> Array:
    """Σ_a w_a log Σ_b exp(log_terms_ab), of the components that have a weight: ()."""
    return weighted_sum(p.weights, logsumexp(log_terms))


@jax.jit
def _entropy_bounds(p: GaussianMixture) -> tuple[Array, Array]:
    within = weighted_sum(p.weights, component_entropies(p))
    low, high = _entropies_of_labels(p)
    return within + low, within + high


def _entropies_of_labels(p: GaussianMixture) -> tuple[Array, Array]:
    """Bounds on what a mixture's entropy has in excess of its components': (), ()."""
    distances = bhattacharyya_distances(p, p)
    low = -_average_of_logs(p, p.log_weights[None] - distances)
    return low, -_average_of_logs(p, p.log_weights[None] - kl_divergences(p, p))


@jax.jit
def _kl_bounds(p: GaussianMixture, q: GaussianMixture) -> tuple[Array, Array, Array]:
    """Lower and upper bound, and the variational approximation."""
    within = weighted_sum(p.weights, component_entropies(p))
    divergences = kl_divergences(p, q)
    # Of the cross entropy -∫ p log q, by Jensen's inequality one way and the other.
    most = -_average_of_logs(p, q.log_weights[None] - divergences)
    least = -_average_of_logs(p, q.log_weights[None] + log_overlaps(p, q)) - within
    low, high = _entropies_of_labels(p)
    upper = at_least(at_most(most - low, _variational_bound(p, q, divergences)), 0)
    lower = at_most(at_least(least - high, 0), upper)
    return lower, upper, most - high


def _variational_bound(p: GaussianMixture, q: GaussianMixture, divergences: Array) -> Array:
    """An upper bound on the divergence of p from q, given those of their components: ().

    With any shares s_ab of each b, Σ_a s_ab = 1, it is Σ_a π_a log(π_a / Σ_b ω_b s_ab e^-D_ab). The
    best shares are where alternating minimization leads; one for each pair of an assignment and 0
    for all others make it the matched bound.
    """

    def bound(log_shares: Array) -> Array:
        log_terms = q.log_weights[None] + log_shares - divergences
        own = jnp.where(p.weights > 0, p.log_weights, 0)
        return weighted_sum(p.weights, own - logsumexp(log_terms))

    def next_shares(_: Array, log_shares: Array) -> Array:
        shares_of_a = log_softmax(q.log_weights[None] + log_shares - divergences)
        return log_softmax(p.log_weights[:, None] + shares_of_a, axis=0)

    shape = divergences.shape
    log_shares = varying(jnp.broadcast_to(p.log_weights[:, None], shape), q, divergences)
    log_shares = lax.stop_gradient(lax.fori_loop(0, BOUND_STEPS, next_shares, log_shares))
    best = bound(log_shares)
    if shape[0] != shape[1]:
        return best
    ratios = jnp.where(p.weights > 0, p.log_weights, 0)[:, None] - q.log_weights[None]
    alive = p.weights[:, None] > 0
    costs = jnp.where(alive, p.weights[:, None] * (divergences + ratios), 0)
    partners = assignment(lax.stop_gradient(costs))
    matched = jnp.where(jnp.arange(shape[1])[None] == partners[:, None], 0, -jnp.inf)
    # Who has a partner without weight makes the bound infinite.
    possible = jnp.all((p.weights == 0) | (q.weights[partners] > 0))
    shares = jnp.where(possible, matched.astype(divergences.dtype), log_shares)
    return at_most(best, bound(shares))
