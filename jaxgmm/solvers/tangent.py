"""Steps around a mixture, in which the information of complete data is the identity."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax import Array

from jaxgmm.arrays.numerics import log_softmax
from jaxgmm.covariances.charts import Chart, FreeNumbers
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.regularization import with_clouds
from jaxgmm.steps.statistics import SufficientStatistics


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Tangent:
    """A step from a mixture to another.

    Attributes:
        logits: (K - 1,) at right angles to the roots of the weights.
        means: (K, D) in standard deviations.
        covariance: of the chart.
        chart: of the covariance type. Static.
    """

    logits: Array
    means: Array
    covariance: FreeNumbers
    chart: Chart = field(metadata={"static": True})


def zero_tangent(mixture: GaussianMixture, chart: Chart) -> Tangent:
    """The step that leads nowhere."""
    logits, means = jnp.zeros_like(mixture.log_weights[1:]), jnp.zeros_like(mixture.means)
    shapes = jax.eval_shape(chart.numbers, mixture.covariance)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return Tangent(logits, means, zeros, chart)


def retraction(mixture: GaussianMixture, step: Tangent) -> GaussianMixture:
    """The mixture that is a step away from another, in coordinates of whitened components.

    Where the mixture maximizes the expected log-likelihood of complete data (rows of which the
    component is known, too) their information about the step is the identity, per unit of weight.
    So a step of length 1/√N is about one standard error, and what EM does is a step along the
    gradient. Components without weight stay where they are. What components of their own share
    with others is an exception to both, see `complete_information`.

    Args:
        mixture: K components.
        step: `Tangent` of its shapes, see `zero_tangent`.
    """
    per_root, reflect, unit = _metric(mixture)
    log_weights = log_softmax(
        mixture.log_weights + per_root * reflect(jnp.pad(step.logits, (0, 1)))
    )
    means = mixture.means + mixture.covariance.unwhiten((per_root[:, None] * step.means)[None])[0]
    covariance = step.chart.retract(mixture.covariance, unit, step.covariance, mixture.n_features)
    return GaussianMixture(log_weights, means, covariance)


def score(
    mixture: GaussianMixture, statistics: SufficientStatistics, regularization: Array, chart: Chart
) -> Tangent:
    """The gradient with respect to a step `retraction` a mixture, where that is zero.

    Args:
        mixture: K components.
        statistics: of complete data, about its means; second moments of all components, or their
            sum where they share a covariance.
        regularization: (D,) variances that each row brings along.
        chart: of the covariance type.

    Returns:
        That of their log-likelihood; linear in the statistics.
    """
    per_root, reflect, unit = _metric(mixture)
    excess = per_root * (statistics.count - mixture.weights * jnp.sum(statistics.count))
    shift = mixture.covariance.whiten(statistics.first[None])[0]
    square, count = _squares(statistics, regularization, unit.size)
    of_covariance = chart.score(mixture.covariance, unit, square, count)
    return Tangent(reflect(excess)[:-1], per_root[:, None] * shift, of_covariance, chart)


def complete_information(
    mixture: GaussianMixture,
    statistics: SufficientStatistics,
    regularization: Array,
    step: Tangent,
) -> Tangent:
    """The product of a step with the information of complete data, per unit of weight.

    Of weights and means it is taken to be what it is at the maximum, the identity, and so it is of
    covariances whose chart knows no other.

    Args:
        mixture: K components.
        statistics: see `score`.
        regularization: (D,) variances that each row brings along.
        step: `Tangent` of its shapes.
    """
    if step.chart.information is None:
        return step
    _, _, unit = _metric(mixture)
    square, _ = _squares(statistics, regularization, unit.size)
    square = square / jnp.sum(statistics.count)
    return replace(
        step,
        covariance=step.chart.information(mixture.covariance, unit, square, step.covariance),
    )


def _squares(
    statistics: SufficientStatistics, regularization: Array, n_stored: int
) -> tuple[Array, Array]:
    """Sums of squares with those of the regularization, and counts, of each stored covariance."""
    count, square = statistics.count, statistics.second
    if square.shape[0] != n_stored:
        square = jnp.sum(square, axis=0, keepdims=True)
    square = with_clouds(square, count, regularization)
    return square, count if n_stored == count.size else jnp.sum(count, keepdims=True)


def _metric(mixture: GaussianMixture) -> tuple[Array, Callable[[Array], Array], Array]:
    """The metric that turns steps around a mixture into changes of its parameters.

    Returns:
        1/√w_k: (K,), or 0; a reflection of (K,) that puts the last axis along the √w_k, to which
        the changes of weights are at right angles; and what scales are multiplied by: (K,), or (1,)
        where they are shared.
    """
    root = jnp.sqrt(mixture.weights)
    per_root = jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), 0)
    normal = root.at[-1].add(1)

    def reflect(vector: Array) -> Array:
        return vector - normal * (2 * jnp.sum(normal * vector) / jnp.sum(normal**2))

    owned = jax.tree.leaves(mixture.covariance)[0].shape[0] == root.size
    return per_root, reflect, per_root if owned else jnp.ones_like(root[:1])
