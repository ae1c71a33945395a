"""Fewer steps to the same maximum: extrapolated mixtures between steps of EM.

EM creeps along the directions in which components overlap. Its last steps say where it is heading:
SQUAREM (Varadhan & Roland 2008) takes a long step along the last two, Anderson's method (Walker &
Ni 2011; for EM: Henderson & Varadhan 2019) combines the last few so that their residuals cancel.
Each turn of the loop evaluates the EM map once, at a mixture that is either the step from the last
one, or an extrapolation. What an extrapolation is worth is known one turn later, when its objective
is: if that is lower than what the plain step guarantees, the plain step is taken after all.

Extrapolated steps don't tell how fast EM converges, which the stopping rule has to know. So once
gains are small the loop goes on with plain steps; if these don't confirm that nothing is left, it
accelerates again.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from jaxgmm.arrays.matrices import cholesky, inverse_of_lower
from jaxgmm.arrays.numerics import difference, einsum, log_softmax
from jaxgmm.covariances.charts import Chart
from jaxgmm.covariances.storage import variances
from jaxgmm.mixtures.mixture import GaussianMixture, is_finite
from jaxgmm.solvers.convergence import CONFIRMATIONS, Progress, Step

# Steps that Anderson's method combines.
DEPTH = 5
# Extrapolations are at first at most so long, compared to a step, and then as long as they are
# good: the limit doubles when it is reached, and halves with every step that isn't extrapolated
# because a mixture was rejected or convergence is checked.
FIRST_LIMIT, ADAPTATION = 4.0, 2.0
# Plain steps that may confirm convergence: some for the rate to show, and the confirmations.
PATIENCE = 2 * CONFIRMATIONS
# A gain so small, of the tolerance, is always checked: it may be as small as rounding lets it be.
LOWEST_THRESHOLD = 1e-3


class Point(NamedTuple):
    """A mixture as numbers that may be extrapolated: what is added to them stays a mixture.

    Attributes:
        log_weights: (K,).
        means: (K, D).
        covariance: numbers of the chart.
    """

    log_weights: Array
    means: Array
    covariance: Any


def point_of(chart: Chart, mixture: GaussianMixture) -> Point:
    """The numbers of a mixture."""
    return Point(mixture.log_weights, mixture.means, chart.numbers(mixture.covariance))


def mixture_at(chart: Chart, point: Point) -> GaussianMixture:
    """The mixture that has these numbers; weights are made to sum to 1."""
    covariance = chart.covariance(point.covariance)
    return GaussianMixture(log_softmax(point.log_weights), point.means, covariance)


def metric(chart: Chart, mixture: GaussianMixture) -> Point:
    """What small changes of numbers have to be multiplied by, so that the sum of their squares is
    of the size of the Kullback-Leibler divergence between the mixtures."""
    share = jnp.sqrt(mixture.weights)
    per_unit = 1 / jnp.sqrt(variances(mixture.covariance, mixture.n_features))
    owned = jax.tree.leaves(mixture.covariance)[0].shape[0] == share.size
    of_covariance = chart.metric(mixture.covariance, share if owned else jnp.ones_like(share[:1]))
    return Point(share, share[:, None] * per_unit, of_covariance)


class Squarem(NamedTuple):
    """SQUAREM with the third step length of its authors, |r| / |v|.

    Attributes:
        halfway: () bool, whether the first of a pair of steps has been made.
        base: (P,) where the pair began.
        residual: (P,) of the first step.
        limit: () on the step length, adapted to what was accepted before.
    """

    halfway: Array
    base: Array
    residual: Array
    limit: Array

    @classmethod
    def begin(cls, vector: Array) -> "Squarem":
        """Nothing is remembered."""
        limit = jnp.full_like(vector[0], FIRST_LIMIT)
        return cls(jnp.asarray(False), vector, jnp.zeros_like(vector), limit)

    def extrapolate(
        self, point: Array, residual: Array, scales: Array
    ) -> tuple["Squarem", Array, Array]:
        """After a step: what is remembered, where to go, and whether that is an extrapolation.

        Args:
            point: (P,) coordinates of the mixture that went in.
            residual: (P,) of the one that came out, less the point.
            scales: (P,) of a metric.
        """
        # Near a maximum a step multiplies the residual r by a matrix M, so that r' - r = (M - 1) r.
        # If that is -r / α, the rest of a geometric series is α r: Aitken's Δ², for each direction
        # its own α. With one for all, |r| / |r' - r|, the point x + 2 α r + α² (r' - r) has the
        # share (1 - α (1 - M))² of the error of x; α = 1 is the two plain steps.
        curvature = residual - self.residual
        size = jnp.linalg.norm(scales * curvature)
        ratio = jnp.linalg.norm(scales * self.residual) / jnp.where(size > 0, size, 1)
        length = jnp.clip(ratio, 1, self.limit)
        limit = jnp.where(self.halfway & (ratio >= self.limit), ADAPTATION, 1) * self.limit
        far = self.base + 2 * length * self.residual + length**2 * curvature
        target = jnp.where(self.halfway, far, point + residual)
        return Squarem(~self.halfway, point, residual, limit), target, self.halfway

    def restarted(self) -> "Squarem":
        """The memory with nothing in it, and a lower limit."""
        lower = jnp.maximum(self.limit / ADAPTATION, ADAPTATION)
        return self._replace(halfway=jnp.asarray(False), limit=lower)


class Anderson(NamedTuple):
    """Anderson's method: the combination of the last steps whose residual is smallest.

    It would as soon find a saddle as a maximum. So where it points backward it is reversed.

    Attributes:
        n_steps: () int, how many have been made.
        point: (P,) of the last step.
        residual: (P,) likewise.
        points: (DEPTH, P) differences of successive points.
        residuals: (DEPTH, P) of their residuals.
        limit: () on the length of an extrapolation, in residuals, as in `Squarem`.
    """

    n_steps: Array
    point: Array
    residual: Array
    points: Array
    residuals: Array
    limit: Array

    @classmethod
    def begin(cls, vector: Array) -> "Anderson":
        """Nothing is remembered."""
        zero = jnp.zeros_like(vector)
        many = jnp.zeros((DEPTH, vector.size), vector.dtype)
        limit = jnp.full_like(vector[0], FIRST_LIMIT)
        return cls(jnp.asarray(0, jnp.int32), zero, zero, many, many, limit)

    def extrapolate(
        self, point: Array, residual: Array, scales: Array
    ) -> tuple["Anderson", Array, Array]:
        """See `Squarem.extrapolate`."""
        # Were the map affine, a combination x - Σ s_i Δx_i of points would have the residual
        # r - Σ s_i Δr_i. The shares that make it smallest are a least squares problem, and the
        # target is that point plus its residual: x + r - Σ s_i (Δx_i + Δr_i).
        first = self.n_steps == 0
        slot = (self.n_steps - 1) % DEPTH
        step = difference(point, self.point)
        points = self.points.at[slot].set(jnp.where(first, 0, step))
        residuals = self.residuals.at[slot].set(jnp.where(first, 0, residual - self.residual))
        share = _least_squares(scales[None] * residuals, scales * residual)
        further = -einsum("i,ip->p", share, points + residuals)
        size = jnp.linalg.norm(scales * residual)
        length = jnp.linalg.norm(scales * further) / jnp.where(size > 0, size, 1)
        forward = jnp.sum(scales**2 * further * residual) >= 0
        shorter = jnp.minimum(1, self.limit / jnp.where(length > 0, length, 1))
        target = point + residual + jnp.where(forward, shorter, -shorter) * further
        limit = jnp.where(length >= self.limit, ADAPTATION, 1) * self.limit
        new = Anderson(self.n_steps + 1, point, residual, points, residuals, limit)
        return new, target, ~first

    def restarted(self) -> "Anderson":
        """See `Squarem.restarted`."""
        lower = jnp.maximum(self.limit / ADAPTATION, 1)
        return Anderson.begin(self.point)._replace(limit=lower)


def _least_squares(rows: Array, target: Array) -> Array:
    """The combination of rows (S, P) that is nearest to a target (P,): (S,).

    Rows are nearly parallel; what rounding can't tell from zero is not amplified.
    """
    size = jnp.linalg.norm(rows, axis=1)
    size = jnp.where(size > 0, size, 1)
    rows = rows / size[:, None]
    ridge = float(jnp.finfo(rows.dtype).eps) ** 0.5 * jnp.eye(rows.shape[0], dtype=rows.dtype)
    inverse = inverse_of_lower(cholesky(einsum("ip,jp->ij", rows, rows) + ridge))
    return einsum("ji,jk,kp,p->i", inverse, inverse, rows, target) / size


METHODS: dict[str, Any] = {"squarem": Squarem, "anderson": Anderson}


class Accelerator(NamedTuple):
    """Safeguarded acceleration: what a loop remembers of it.

    Attributes:
        memory: of a method.
        safe: the plain step from the last mixture that was accepted.
        objective: () of that mixture.
        floor: () what the objective of `safe` is at least.
        is_plain: () bool, whether the mixture to be tried next is `safe`.
        progress: of the stopping rule; its gain is that of the step to `safe`.
        plain_steps: () int, how many plain steps were made to see whether the loop has converged;
            -1 while it accelerates.
        threshold: () gain below which plain steps are made.
    """

    memory: Any
    safe: GaussianMixture
    objective: Array
    floor: Array
    is_plain: Array
    progress: Progress
    plain_steps: Array
    threshold: Array

    @classmethod
    def begin(cls, chart: Chart, start: GaussianMixture, method: Any, tol: Array) -> "Accelerator":
        """Before the first step; `method` is one of `METHODS`."""
        lowest = jnp.asarray(-jnp.inf, tol.dtype)
        return cls(
            memory=method.begin(ravel_pytree(point_of(chart, start))[0]),
            safe=start,
            objective=lowest,
            floor=lowest,
            is_plain=jnp.asarray(True),
            progress=Progress.begin(start.log_weights),
            plain_steps=jnp.asarray(-1, jnp.int32),
            threshold=tol,
        )

    def accepts(self, objective: Array, gain: Array) -> Array:
        """Whether a step from an extrapolated mixture may count: () bool.

        Where the objective is known no better than to rounding, the gain has to have shrunk.
        """
        noise = 8 * float(jnp.finfo(objective.dtype).eps) * jnp.abs(objective)
        higher = objective >= self.floor + noise
        level = (objective >= self.floor - noise) & (gain <= self.progress.gain)
        return self.is_plain | higher | level

    def update(
        self,
        chart: Chart,
        tried: GaussianMixture,
        step: Step,
        finite: Array,
        weight: Array,
        tol: Array,
    ) -> tuple[GaussianMixture, "Accelerator"]:
        """After a step: the mixture to be tried next, and what is remembered.

        Args:
            chart: of the covariance type.
            tried: the mixture that was to be tried.
            step: from there.
            finite: () bool, whether its numbers are.
            weight: () of all rows.
            tol: () gain per unit of weight that may remain.
        """
        accepted = finite & self.accepts(step.objective, step.gain.total())
        progress = self.progress_after(accepted, step, tol)
        plain_steps, threshold = self.check(accepted, step, progress, tol)
        safe = jax.tree.map(partial(jnp.where, accepted), step.mixture, self.safe)

        point, unravel = ravel_pytree(point_of(chart, tried))
        image, _ = ravel_pytree(point_of(chart, step.mixture))
        residual = difference(image, point)
        scales, _ = ravel_pytree(metric(chart, tried))
        memory, target, far = self.memory.extrapolate(point, residual, scales)
        candidate = mixture_at(chart, unravel(target))
        accelerates = accepted & (plain_steps < 0)
        goes_far = accelerates & far & is_finite(candidate)
        following = jax.tree.map(partial(jnp.where, goes_far), candidate, safe)
        return following, Accelerator(
            memory=jax.tree.map(partial(jnp.where, accelerates), memory, self.memory.restarted()),
            safe=safe,
            objective=jnp.where(accepted, step.objective, self.objective),
            floor=jnp.where(accepted, step.objective + weight * step.gain.total(), self.floor),
            is_plain=~goes_far,
            progress=progress,
            plain_steps=plain_steps,
            threshold=threshold,
        )

    def check(
        self, accepted: Array, step: Step, progress: Progress, tol: Array
    ) -> tuple[Array, Array]:
        """Whether to make plain steps from now on, as `plain_steps`, and the next `threshold`."""
        checking = self.plain_steps >= 0
        gain = step.gain.total()
        begins = ~checking & accepted & (gain < self.threshold)
        given_up = checking & (self.plain_steps >= PATIENCE) & (progress.confirmed == 0)
        goes_on = begins | (checking & ~given_up)
        # With the rate that was seen, the gain at which little enough remains.
        known = jnp.isfinite(progress.remaining) & (progress.remaining > 0)
        enough = jnp.where(known, tol / jnp.where(known, progress.remaining, 1) / 2, 1)
        lower = jnp.maximum(jnp.minimum(enough, 0.1) * gain, LOWEST_THRESHOLD * tol)
        lower = jnp.maximum(lower, 2 * step.gain.noise())
        threshold = jnp.where(given_up, lower, self.threshold)
        return jnp.where(goes_on, self.plain_steps + 1, -1), threshold

    def progress_after(self, accepted: Array, step: Step, tol: Array) -> Progress:
        """The progress, of which only plain steps in a row tell anything but the gain."""
        known = self.progress.update(step.gain, tol)
        unknown = Progress.begin(step.mixture.log_weights)._replace(
            of_each=jnp.where(accepted, step.gain.of_each, self.progress.of_each),
            gain=jnp.where(accepted, step.gain.total(), self.progress.gain),
        )
        return jax.tree.map(partial(jnp.where, self.plain_steps >= 0), known, unknown)
