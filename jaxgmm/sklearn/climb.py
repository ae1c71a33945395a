"""EM as scikit-learn runs it, in one program: its stopping rule, and variances that are added.

The E-step is that of the mixture as it is, and the M-step adds the same variance to all features of
all components. It ends where the log-likelihood of a row changes by less than a tolerance.
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.covariances.structures import Structure
from jaxgmm.covariances.traced import AnyStructure
from jaxgmm.execution.programs import Program
from jaxgmm.execution.tasks import one_by_one
from jaxgmm.mixtures.mixture import GaussianMixture, is_finite
from jaxgmm.steps.accumulation import accumulate_soft
from jaxgmm.steps.maximization import maximize, means_of
from jaxgmm.steps.problem import Problem, problem_of, ready_to_whiten
from jaxgmm.steps.products import products_in_pass
from jaxgmm.steps.rows import weights_in_own_unit


class Start(NamedTuple):
    """Where a climb begins: what is given goes before what responsibilities say.

    Attributes:
        responsibilities: (N, K), or None where all else is given.
        weights: (K,) mixing weights, or None.
        means: (K, D), or None.
        covariances: as `GaussianMixture.create` takes them, or None.
    """

    responsibilities: Any
    weights: Any
    means: Any
    covariances: Any


class Climb(NamedTuple):
    """What a climb has found.

    Attributes:
        weights: (K,) mixing weights.
        means: (K, D).
        covariances: as they are written down for the type; (K, D, D) where that is data.
        lower_bounds: (max_iter,) mean log-likelihood of a row before each step.
        n_iter: () steps.
        change: () of the last of these.
        finite: () bool, whether all numbers are; of the last that were, if not.
    """

    weights: Any
    means: Any
    covariances: Any
    lower_bounds: Any
    n_iter: Any
    change: Any
    finite: Any


@partial(
    Program,
    static_argnames="capacity",
    pass_size=lambda x, weights, log_prior, start, active, *_, **__: products_in_pass(
        x, active.size
    ),
)
def climb(
    x: Array,
    weights: Array,
    log_prior: Array | None,
    start: Start,
    active: Array,
    reg_covar: Array,
    tol: Array,
    before: Array,
    max_iter: Array,
    structure: AnyStructure,
    capacity: int,
) -> Climb:
    """EM from a start.

    Args:
        x: (N, D).
        weights: (N,).
        log_prior: see `em`.
        start: where to begin.
        active: (K,) bool, which components there are.
        reg_covar: () added to the variances.
        tol: () change of the mean log-likelihood of a row that ends the climb.
        before: () the mean log-likelihood of a row that the first change is from.
        max_iter: () steps, at most the capacity.
        structure: the covariance type.
        capacity: of the list of lower bounds.
    """
    weights, _ = weights_in_own_unit(weights)
    plain = problem_of(x, weights, 0.0, active.size, structure, log_prior)
    plain = plain._replace(regularization=jnp.zeros_like(plain.regularization))
    scale = plain.rows.standardization.scale
    added = plain._replace(regularization=reg_covar / scale**2)

    def step(state: Any) -> Any:
        mixture, bounds, bound, _, n_iter, _ = state
        whitening = ready_to_whiten(mixture)
        forms = plain.forms(whitening, jnp.where((n_iter > 0) & (tol > 0), tol, jnp.inf))
        if forms is None:
            statistics = plain.expected_statistics(whitening)
        else:
            statistics = one_by_one(Problem.expected_statistics)(plain, whitening, forms)
        new = added.maximize(statistics, mixture)
        found = statistics.log_likelihood / plain.weight
        finite = jnp.isfinite(found) & is_finite(new)
        mixture = jax.tree.map(partial(jnp.where, finite), new, mixture)
        return mixture, bounds.at[n_iter].set(found), found, found - bound, n_iter + 1, finite

    def goes_on(state: Any) -> Array:
        *_, change, n_iter, finite = state
        return (n_iter < max_iter) & ~(jnp.abs(change) < tol) & finite

    first = plain.start_at(_started(added, start, active))
    unknown = jnp.asarray(jnp.inf, x.dtype)
    state = (first, jnp.zeros(capacity, x.dtype), before, unknown, jnp.asarray(0), is_finite(first))
    mixture, bounds, _, change, n_iter, finite = lax.while_loop(goes_on, step, state)
    found = plain.rows.standardization.inverse_transform(mixture)
    n_features = found.n_features
    if isinstance(structure, Structure):
        covariances = structure.variances(found.covariance, n_features)
    else:
        covariances = found.covariance.dense(n_features)
    return Climb(found.weights, found.means, covariances, bounds, n_iter, change, finite)


def _started(problem: Problem, start: Start, active: Array) -> GaussianMixture:
    """The first mixture, in the data's units."""
    rows, structure = problem.rows, problem.structure
    if start.responsibilities is None:
        assert start.means is not None and start.covariances is not None
        assert isinstance(structure, Structure)
        covariance = structure.store(start.covariances)
        mixture = GaussianMixture(jnp.zeros(active.size, rows.x.dtype), start.means, covariance)
    else:
        shares = start.responsibilities

        def given(numbers: Array, _: Array) -> Array:
            return shares[numbers]

        zero = jnp.zeros((active.size, rows.x.shape[1]), rows.x.dtype)
        origin = means_of(accumulate_soft(rows, given, zero, full_second_moment=False))
        statistics = accumulate_soft(rows, given, origin, structure.full_second_moment)
        mixture = maximize(structure, statistics, None, problem.regularization)
        mixture = rows.standardization.inverse_transform(mixture)
        if start.means is not None:
            mixture = replace(mixture, means=start.means)
        if start.covariances is not None:
            assert isinstance(structure, Structure)
            mixture = replace(mixture, covariance=structure.store(start.covariances))
    if start.weights is not None:
        mixture = replace(mixture, log_weights=jnp.log(start.weights))
    return replace(mixture, log_weights=jnp.where(active, mixture.log_weights, -jnp.inf))
