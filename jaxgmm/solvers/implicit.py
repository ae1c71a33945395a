"""Derivatives of a fit, from the maximum that it has found.

At a maximum θ of F(θ, p) the gradient is zero, and stays so: a change of p moves θ by
-(∂²F/∂θ²)⁻¹ ∂²F/∂θ∂p. That takes one linear system, solved by products with the curvature, each a
pass over the data, whatever the number of steps that the fit took.

A fit that has stopped a gain R per unit of weight short of the maximum is about √(2R) away from it,
and so would be its derivatives. So where derivatives are wanted, Newton steps with the same solver
first close that gap.
"""

from functools import partial
from typing import Any

import jax
from jax import Array, lax

from jaxgmm.arrays import shards
from jaxgmm.arrays.krylov import conjugate_residuals
from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.solvers.newton import LocalModel, newton, precise
from jaxgmm.solvers.settings import Settings
from jaxgmm.steps.problem import Problem, by_differences


def as_maximum(problem: Problem, mixture: GaussianMixture, settings: Settings) -> GaussianMixture:
    """The mixture, whose derivatives are those of the maximum next to it."""
    return _as_maximum(problem, mixture, settings, shards.row_axes())


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _as_maximum(
    problem: Problem, mixture: GaussianMixture, settings: Settings, axes: tuple[str, ...]
) -> GaussianMixture:
    return mixture


@_as_maximum.defjvp
@shards.rule_over_rows
def _differentiate_as_maximum(
    settings: Settings, axes: tuple[str, ...], primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[GaussianMixture, GaussianMixture]:
    problem, mixture = primals
    given, moving = (by_differences(problem),), (by_differences(tangents[0]),)

    if settings.adjoint == "one_step":
        here = lax.stop_gradient(mixture)

        def next_mixture(problem: Problem) -> GaussianMixture:
            return LocalModel.of(problem, here).em_step()

        return mixture, jax.jvp(next_mixture, given, moving)[1]

    maximizer = newton(*lax.stop_gradient((problem, mixture))).mixture
    # Derivatives of these derivatives pass through the same rule.
    maximizer = as_maximum(problem, maximizer, settings)

    def score(problem: Problem) -> tuple[Array, LocalModel]:
        model = LocalModel.of(problem, maximizer)
        return model.gradient(), model

    _, score_moved, model = jax.jvp(score, given, moving, has_aux=True)
    by_products = model._replace(problem=problem).information()

    def solve(_: Any, right_side: Array) -> Array:
        return conjugate_residuals(by_products, right_side, precise(right_side.dtype)).vector

    # Derivatives of the solution go through the form by differences; without an extent both are.
    system = by_products
    if problem.extent is not None:
        system = model._replace(problem=given[0]).information()
    step = shards.alike(lax.custom_linear_solve(system, score_moved, solve, symmetric=True))
    origin, _ = model.origin()
    tangent = jax.jvp(model.mixture_at, (origin,), (step,))[1]
    return maximizer, tangent
