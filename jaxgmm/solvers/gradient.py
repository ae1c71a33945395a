"""Maximum likelihood by any optimizer that follows gradients, beside EM."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays import shards
from jaxgmm.arrays.numerics import varying
from jaxgmm.arrays.padding import with_padding
from jaxgmm.arrays.validation import as_log_prior, check_count, check_fit_arguments, check_key
from jaxgmm.covariances.storage import precision, precision_diagonal
from jaxgmm.covariances.structures import Structure, structure_named
from jaxgmm.execution.programs import PlatformProgram, rows_from
from jaxgmm.mixtures.densities import log_normalizer
from jaxgmm.mixtures.mixture import GaussianMixture, is_finite
from jaxgmm.solvers.convergence import Progress
from jaxgmm.solvers.implicit import as_maximum
from jaxgmm.solvers.loop import Trace, result_of
from jaxgmm.solvers.newton import LocalModel
from jaxgmm.solvers.results import FitResult, in_unit_of_weights, with_places
from jaxgmm.solvers.settings import Limits, Settings, check_limits, check_reg_covar, check_settings
from jaxgmm.solvers.tangent import Tangent, retraction, zero_tangent
from jaxgmm.steps.problem import Problem, problem_of, ready_to_whiten
from jaxgmm.steps.regularization import with_clouds
from jaxgmm.steps.rows import Rows, weights_in_own_unit
from jaxgmm.steps.statistics import SufficientStatistics

# Iterations between two looks at what is left to gain, at least.
PATIENCE = 10
# The rate of Adam, where rows are drawn and no optimizer is given.
LEARNING_RATE = 0.02


class Descent(NamedTuple):
    """Descent by an optimizer: what its loop carries.

    Attributes:
        step: coordinates around the start.
        state: of the optimizer.
        n_iter: () int, updates done.
        value: () objective before the last update, per unit of weight.
        finite: () bool, whether all numbers were.
        history: objectives.
        remaining: () gain still to come, when it was last looked at.
        look: () int, iteration before which it isn't looked at again.
    """

    step: Tangent
    state: Any
    n_iter: Array
    value: Array
    finite: Array
    history: Array
    remaining: Array
    look: Array

    @classmethod
    def begin(
        cls, optimizer: optax.GradientTransformation, zero: Tangent, settings: Settings
    ) -> "Descent":
        """Nothing done yet."""
        dtype = jax.tree.leaves(zero)[0].dtype
        return cls(
            step=zero,
            state=optimizer.init(zero),
            n_iter=jnp.asarray(0, jnp.int32),
            value=jnp.asarray(-jnp.inf, dtype),
            finite=jnp.asarray(True),
            history=jnp.zeros(settings.capacity if settings.history else 0, dtype),
            remaining=jnp.asarray(jnp.inf, dtype),
            look=jnp.asarray(1, jnp.int32),
        )


def fit_gradient(
    mixture: GaussianMixture,
    x: ArrayLike,
    optimizer: optax.GradientTransformation | None = None,
    *,
    weights: ArrayLike | None = None,
    log_prior: ArrayLike | None = None,
    key: Array | None = None,
    batch_rows: int = 1024,
    covariance_type: str | None = None,
    max_iter: int = 1000,
    tol: ArrayLike = 1e-7,
    reg_covar: ArrayLike | None = None,
    history: bool = True,
) -> FitResult:
    """Maximum likelihood by gradients, from a given start.

    The same objective as that of `em`, and the same promise: it has converged where the gain still
    to come is below `tol`, here as a Newton step foretells it. Parameters are the unconstrained
    coordinates of components that the start whitens: there a gradient is the step of EM. Pure:
    works under `jax.jit`, `jax.vmap` and `jax.grad`, as `em` does.

    Args:
        mixture: the start, K components.
        x: (N, D), whose rows may be spread over devices, see `em`.
        optimizer: any of optax; by default L-BFGS with a line search, or Adam with a rate of 0.02
            where rows are drawn. Static: what is compiled for one object isn't for another.
        weights: (N,) sample weights; 0 removes a row, which may then hold anything.
        log_prior: see `em`.
        key: a JAX PRNG key; with it each gradient is that of rows drawn at random, and only after
            the last update, of which `max_iter` are made, all rows say how much is left to gain.
        batch_rows: how many rows are drawn, with replacement; where rows are spread each device
            goes through so many, of which its own count. Static.
        covariance_type: of the fit; by default what the start's storage says.
        max_iter: at most so many updates. Not traced.
        tol: see `em`.
        reg_covar: see `em`.
        history: whether to record the objective after each update, of drawn rows an estimate.
            Static.

    Returns:
        A `FitResult`, whose `n_iter` counts updates; a line search takes passes of its own.

    Raises:
        TypeError: x is not numeric, no key, or no optimizer of optax.
        ValueError: as for `em`.

    Example:
        >>> import jax, jaxgmm as jg
        >>> x = jax.random.normal(jax.random.key(0), (200, 1)).at[::2].add(6)
        >>> start = jg.GaussianMixture.create([0.5, 0.5], [[0.0], [4.0]], [[1.0], [1.0]], "diag")
        >>> jg.fit_gradient(start, x).check().mixture.weights.round(2).tolist()
        [0.5, 0.5]
    """
    mixture, x, weights = check_fit_arguments(mixture, x, weights)
    structure = structure_named(covariance_type or mixture.covariance_type)
    settings = check_settings(max_iter, None, "implicit", history)
    key = None if key is None else check_key(key)
    optimizer = _default_optimizer(key is None) if optimizer is None else optimizer
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            f"optimizer must be one of optax, for instance optax.adam(0.01), got {optimizer!r}"
        )
    batch_rows = check_count("batch_rows", batch_rows, 1)
    log_prior = as_log_prior(log_prior, x, mixture.n_components, weights)
    x, weights, log_prior = with_padding(x, weights, (mixture, tol, reg_covar, key), log_prior)
    numbers = (check_limits(tol, max_iter, x), check_reg_covar(reg_covar, x))
    data = (mixture, x, weights, log_prior, key, *numbers, structure)
    result = _fit_gradient(*data, optimizer=optimizer, batch_rows=batch_rows, settings=settings)
    return with_places(result, max_iter)


@cache
def _default_optimizer(of_all_rows: bool) -> optax.GradientTransformation:
    """Always the same object, as each compiles a program of its own."""
    return optax.lbfgs() if of_all_rows else optax.adam(LEARNING_RATE)


@partial(
    PlatformProgram,
    static_argnames=("optimizer", "batch_rows", "settings"),
    layout=rows_from(1, 3),
)
def _fit_gradient(
    mixture: GaussianMixture,
    x: Array,
    weights: Array,
    log_prior: Array | None,
    key: Array | None,
    limits: Limits,
    reg_covar: Array,
    structure: Structure,
    optimizer: optax.GradientTransformation,
    batch_rows: int,
    settings: Settings,
) -> FitResult:
    weights, unit = weights_in_own_unit(weights)
    problem = problem_of(x, weights, reg_covar, mixture.n_components, structure, log_prior)
    fixed, begin = lax.stop_gradient((problem, problem.start_at(mixture)))
    end = _descend(fixed, begin, key, limits, optimizer, batch_rows, settings)
    found = retraction(begin, end.step)
    remaining = end.remaining
    if key is not None:
        remaining, _ = LocalModel.of(fixed, found).gain_left()
    found = as_maximum(problem, found, settings)
    trace = Trace(
        n_iter=end.n_iter,
        finite=end.finite,
        objective=end.value,
        progress=Progress.known(found.log_weights, remaining, limits.tol),
        history=end.history,
        accelerator=None,
    )
    active = jnp.ones(mixture.n_components, bool)
    return in_unit_of_weights(result_of(problem, found, trace, active, settings), unit)


def _descend(
    problem: Problem,
    start: GaussianMixture,
    key: Array | None,
    limits: Limits,
    optimizer: optax.GradientTransformation,
    batch_rows: int,
    settings: Settings,
) -> Descent:
    """Updates until there is nothing left to gain."""
    dtype = start.means.dtype
    present = jnp.argsort(problem.rows.weights <= 0, stable=True)

    def advance(descent: Descent) -> Descent:
        number = descent.n_iter
        seen = problem
        if key is not None:
            seen = _drawn(problem, present, jax.random.fold_in(key, number), batch_rows)
        objective = partial(objective_around, seen, start)
        value, new, state = _updated(optimizer, objective, descent, searches)
        found = retraction(start, new)
        finite = jnp.isfinite(value) & is_finite(found)
        new, state = jax.tree.map(
            partial(jnp.where, finite), (new, state), (descent.step, descent.state)
        )
        history = descent.history
        if history.size:
            history = history.at[number - 1].set(value * problem.weight)
        remaining, look = descent.remaining, descent.look
        if key is None:
            gained = value - descent.value
            noise = float(jnp.finfo(dtype).eps) * jnp.abs(value)
            remaining, look = lax.cond(
                (gained <= jnp.maximum(limits.tol, noise)) & (number >= look),
                lambda: varying(_looked(problem, found, number), new),
                lambda: varying((remaining, look), new),
            )
        return Descent(new, state, number + 1, value, finite, history, remaining, look)

    def goes_on(descent: Descent) -> Array:
        left = descent.remaining >= limits.tol
        return left & descent.finite & (descent.n_iter < limits.max_iter)

    first = Descent.begin(optimizer, zero_tangent(start, problem.structure.chart), settings)
    # A line search ends with the value and the gradient that the next update begins with.
    kept = (optax.tree_utils.tree_get(first.state, name) for name in ("value", "grad"))
    searches = key is None and None not in kept
    return lax.while_loop(goes_on, advance, varying(first, problem, key, limits))


def _updated(
    optimizer: optax.GradientTransformation,
    objective: Callable[[Tangent], Array],
    descent: Descent,
    searches: bool,
) -> tuple[Array, Tangent, Any]:
    """The objective before an update, and step and state after it."""

    def loss(step: Tangent) -> Array:
        return -objective(step)

    step, state = descent.step, descent.state
    if searches:
        value, slope = optax.value_and_grad_from_state(loss)(step, state=state)
    else:
        value, slope = jax.value_and_grad(loss)(step)
    update = optax.with_extra_args_support(optimizer).update
    # Optimizers mix dtypes, which a caller may have forbidden.
    with jax.numpy_dtype_promotion("standard"):
        change, state = update(slope, state, step, value=value, grad=slope, value_fn=loss)
        return -value, optax.apply_updates(step, change), state


def objective_around(problem: Problem, start: GaussianMixture, step: Tangent) -> Array:
    """The objective per unit of weight, a step away from a mixture: (), with its gradient.

    Value and gradient are from one pass over the data, see `newton.py`.
    """
    mixture = retraction(start, step)
    # So exact that gradient and value go together.
    whitening = ready_to_whiten(mixture)
    forms = problem.forms(whitening, smallest_gain=None)
    statistics = lax.stop_gradient(problem.expected_statistics(whitening, forms))
    expected = expected_log_density(mixture, statistics, problem.regularization)
    total = statistics.log_likelihood + expected - lax.stop_gradient(expected)
    return total / problem.weight


def expected_log_density(
    mixture: GaussianMixture, statistics: SufficientStatistics, regularization: Array
) -> Array:
    """The log-likelihood of complete data, given their statistics: ().

    Args:
        mixture: K components; the determinant of the standardization is not counted.
        statistics: with second moments of all components, or their sum where all have the same
            covariance.
        regularization: (D,) variances that each row brings along.
    """
    count, first = statistics.count, statistics.first
    second = with_clouds(statistics.second, count, regularization)
    n_features = mixture.n_features
    shift = mixture.means - statistics.origin
    diagonal = precision_diagonal(mixture.covariance, n_features)
    if second.ndim == 3:
        precisions = precision(mixture.covariance, n_features)
        image = jnp.sum(precisions * shift[:, None, :], axis=2)
    else:
        precisions, image = diagonal, diagonal * shift
    squares = jnp.sum(precisions * second) + jnp.sum((count[:, None] * shift - 2 * first) * image)
    alive = count > 0
    logits = jnp.where(alive, mixture.log_weights, 0) - log_normalizer(
        mixture.covariance, n_features
    )
    return jnp.sum(count * logits) - squares / 2


def _looked(problem: Problem, mixture: GaussianMixture, number: Array) -> tuple[Array, Array]:
    """The gain still to come, and when to look again: after as many passes as this took."""
    view = LocalModel.of(problem, mixture)
    remaining, n_products = view.gain_left()
    later = number + jnp.maximum(n_products, PATIENCE)
    return remaining, later.astype(number.dtype)


def _drawn(problem: Problem, present: Array, key: Array, n_rows: int) -> Problem:
    """The problem of some rows, drawn at random.

    Args:
        problem: of all rows.
        present: (N,) their numbers, of those that have a weight first.
        key: a JAX PRNG key.
        n_rows: how many.
    """
    rows = problem.rows
    n_present = jnp.sum(rows.weights > 0)
    places = jax.random.randint(key, (n_rows,), 0, shards.total(n_present))
    # Of those that all devices draw, each has the ones that are among its own.
    places -= shards.before(n_present)
    is_own = (places >= 0) & (places < n_present)
    numbers = present[jnp.where(is_own, places, 0)]
    weights = jnp.where(is_own, rows.weights[numbers], 0)
    log_prior = None if rows.log_prior is None else rows.log_prior[numbers]
    drawn = Rows(rows.standardization, rows.x[numbers], weights, log_prior)
    return problem._replace(rows=drawn, extent=None, weight=drawn.total_weight())
