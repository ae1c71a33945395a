"""The objective around a mixture: its gradient, its curvature, and the way to its maximum.

The gradient of the objective is that of the expected log-likelihood of complete data, given the
statistics that the mixture's own responsibilities leave (Fisher's identity). So one pass over the
data gives a gradient, and the tangent of a pass the product of the curvature with a direction.

In the coordinates of `tangent.retraction` complete data have the information 1 per unit of weight,
and the data 1 less the fractions of missing information, which are the rates at which EM converges
(Dempster, Laird & Rubin 1977). So what a Krylov method makes of products alone are conjugate
directions that the information of complete data preconditions (Jamshidian & Jennrich 1993): for a
rate ρ it needs about √(1/(1 - ρ)) of them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from jaxgmm.arrays.krylov import conjugate_residuals
from jaxgmm.arrays.numerics import varying
from jaxgmm.mixtures.mixture import GaussianMixture, is_finite
from jaxgmm.solvers.tangent import Tangent, complete_information, retraction, score, zero_tangent
from jaxgmm.steps.problem import Problem, by_differences, ready_to_whiten
from jaxgmm.steps.statistics import SufficientStatistics

# Mixtures that Newton's method looks at, at most, and how precisely the first systems are solved.
NEWTON_STEPS, FORCING = 50, 0.1


class LocalModel(NamedTuple):
    """The objective around a mixture.

    Attributes:
        problem: the data.
        mixture: in their coordinates.
        statistics: of the data, under the mixture.
    """

    problem: Problem
    mixture: GaussianMixture
    statistics: SufficientStatistics

    @classmethod
    def of(cls, problem: Problem, mixture: GaussianMixture) -> "LocalModel":
        """Makes one precise pass over the data."""
        statistics = by_differences(problem).expected_statistics(ready_to_whiten(mixture))
        return cls(problem, mixture, statistics)

    def origin(self) -> tuple[Array, Callable[[Array], Tangent]]:
        """The mixture's coordinates, zeros (P,), and what makes a pytree of such a vector."""
        zero = zero_tangent(self.mixture, self.problem.structure.chart)
        return ravel_pytree(varying(zero, self))

    def mixture_at(self, step: Array) -> GaussianMixture:
        """The mixture a step (P,) away."""
        return retraction(self.mixture, self.origin()[1](step))

    def gradient(self) -> Array:
        """(P,) of the objective, per unit of weight."""
        return self._slope(self.statistics.about(self.mixture.means))

    def information(self) -> Callable[[Array], Array]:
        """Products with the negative curvature per unit of weight, (P,) -> (P,): a pass each.

        That of complete data is taken to be what it is at the maximum. So it is wrong by as much
        as the gradient is large, which Newton's method doesn't mind.
        """
        origin, unravel = self.origin()
        about_means = self.statistics.about(self.mixture.means)

        def statistics_at(step: Array) -> SufficientStatistics:
            mixture = ready_to_whiten(self.mixture_at(step))
            # About an origin that stays, only responsibilities have tangents, not differences.
            here = self.mixture.means
            forms = self.problem.forms(mixture, smallest_gain=None)
            statistics = self.problem.expected_statistics(mixture, forms, origin=here)
            return statistics.about(here)

        # Solvers, and what makes derivatives of them, trace it more than once.
        @jax.jit
        def product(direction: Array) -> Array:
            complete = complete_information(
                self.mixture, about_means, self.problem.regularization, unravel(direction)
            )
            missing = self._slope(jax.jvp(statistics_at, (origin,), (direction,))[1])
            return ravel_pytree(complete)[0] - missing

        return product

    def _slope(self, statistics: SufficientStatistics) -> Array:
        """(P,) of complete data with these statistics about the means, per unit of weight."""
        slope = score(
            self.mixture, statistics, self.problem.regularization, self.problem.structure.chart
        )
        return ravel_pytree(slope)[0] / jnp.sum(self.statistics.count)

    def gain_left(self) -> tuple[Array, Array]:
        """The gain of a Newton step per unit of weight: (); and () int, passes to know it.

        Infinite where the curvature is not that of a maximum.
        """
        gradient = self.gradient()
        found = conjugate_residuals(self.information(), gradient, FORCING / 10, only_definite=True)
        gain = jnp.sum(gradient * found.vector) / 2
        gain = jnp.where(found.definite & jnp.isfinite(gain), gain, jnp.inf)
        return gain, found.n_products

    def em_step(self) -> GaussianMixture:
        """The mixture that a step of EM leads to."""
        return self.problem.maximize(self.statistics, self.mixture)


class Ascent(NamedTuple):
    """A trust region of Newton steps: what `newton` carries.

    Attributes:
        mixture: the highest so far.
        statistics: of the data, under it.
        size: () of the gradient there.
        tried: the mixture to be looked at next.
        n_tried: () int, how many were.
        radius: () length that a step may have.
        newton_decrement: () gain of the last step that was computed, in halves of the square of the
            gradient; infinite where the curvature wasn't that of a maximum.
        arrived: () bool, whether there is nothing left to gain.
    """

    mixture: GaussianMixture
    statistics: SufficientStatistics
    size: Array
    tried: GaussianMixture
    n_tried: Array
    radius: Array
    newton_decrement: Array
    arrived: Array

    @classmethod
    def begin(cls, problem: Problem, mixture: GaussianMixture) -> "Ascent":
        """Nothing known yet, and the mixture to be looked at."""
        dtype = mixture.means.dtype
        shapes = jax.eval_shape(lambda: LocalModel.of(problem, mixture).statistics)
        infinite = jnp.asarray(jnp.inf, dtype)
        return cls(
            mixture=mixture,
            statistics=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
            size=infinite,
            tried=mixture,
            n_tried=jnp.asarray(0, jnp.int32),
            radius=jnp.asarray(1, dtype),
            newton_decrement=infinite,
            arrived=jnp.asarray(False),
        )

    def gain_left(self) -> Array:
        """The gain of the objective that is left, per unit of weight: ()."""
        return self.newton_decrement * self.size**2 / 2

    def accept_or_reject(self, there: LocalModel) -> "Ascent":
        """Moves to the tried mixture if that is better, or else shrinks the radius."""
        dtype = there.mixture.means.dtype
        size = jnp.linalg.norm(there.gradient())
        before, after = self.statistics.log_likelihood, there.statistics.log_likelihood
        first = self.n_tried == 0
        rounding = 8 * float(jnp.finfo(dtype).eps) * jnp.abs(before)
        level = first | (after >= before - rounding)
        # Where the objective can't tell a gain from rounding the gradient has to shrink.
        at_rest = self.gain_left() * there.problem.weight <= rounding
        good = is_finite(self.tried) & level & (~at_rest | (size < self.size))
        is_near = good & (self.newton_decrement * size <= precise(dtype))
        mixture, statistics, size_here = jax.tree.map(
            partial(jnp.where, good),
            (there.mixture, there.statistics, size),
            (self.mixture, self.statistics, self.size),
        )
        return self._replace(
            mixture=mixture,
            statistics=statistics,
            size=size_here,
            radius=jnp.where(first, 1, jnp.where(good, 2, 0.25)) * self.radius,
            arrived=is_near | (at_rest & (size > self.size / 2)) | (size == 0),
        )

    def propose(self, problem: Problem) -> "Ascent":
        """Chooses what to try next, within the radius."""
        here = LocalModel(problem, self.mixture, self.statistics)
        gradient, size = here.gradient(), self.size
        enough = precise(gradient.dtype)
        # Newton's method wants no more than the square of the distance, and not after the end.
        wanted = jnp.maximum(size, enough / jnp.where(size > 0, size, 1))
        tolerance = jnp.where(self.arrived, 1, jnp.clip(wanted, enough, FORCING))
        product = here.information()
        found = conjugate_residuals(product, gradient, tolerance, only_definite=True)
        # Without a step that the curvature limits the gradient says where to go.
        step = jnp.where(jnp.any(found.vector != 0), found.vector, gradient)
        length = jnp.linalg.norm(step)
        square = jnp.sum(gradient**2)
        gain = jnp.sum(gradient * step) / jnp.where(square > 0, square, 1)
        to_radius = self.radius / jnp.where(length > 0, length, 1)
        scale = jnp.where(found.definite, jnp.minimum(1, to_radius), to_radius)
        newton_decrement = jnp.where(found.definite, gain, jnp.inf)
        return self._replace(
            tried=here.mixture_at(scale * step),
            n_tried=self.n_tried + 1,
            newton_decrement=jnp.where(self.arrived, self.newton_decrement, newton_decrement),
        )


def newton(
    problem: Problem,
    mixture: GaussianMixture,
    most: ArrayLike = NEWTON_STEPS,
) -> Ascent:
    """The maximum next to a mixture, by Newton steps.

    They go no farther than a radius allows, which grows or shrinks with every step that is good or
    isn't; and just as far where the curvature isn't that of a maximum.

    Args:
        problem: the data.
        mixture: the start, in their coordinates.
        most: () int, how many mixtures are looked at, at most.
    """

    def goes_on(ascent: Ascent) -> Array:
        return ~ascent.arrived & (ascent.n_tried < most)

    def advance(ascent: Ascent) -> Ascent:
        there = LocalModel.of(problem, ascent.tried)
        return ascent.accept_or_reject(there).propose(problem)

    first = varying(Ascent.begin(problem, mixture), problem, most)
    return lax.while_loop(goes_on, advance, first)


def precise(dtype: jnp.dtype) -> float:
    """What is left of a gradient, in standard deviations of a row, or of a linear system, when it
    counts as solved: all but some roundings."""
    return float(jnp.finfo(dtype).eps) ** 0.7
