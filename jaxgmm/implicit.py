"""Derivatives of a fixed point, from the map that it is a fixed point of.

Where θ = M(θ, p), a change of p moves θ by (I - ∂M/∂θ)⁻¹ ∂M/∂p. For EM the eigenvalues of ∂M/∂θ
are the fractions of missing information, in [0, 1) at a strict maximum (Dempster, Laird & Rubin
1977), so that the system is regular, and a Krylov method solves it by products with ∂M/∂θ alone,
each a pass over the data. The weights of a mixture leave no gauge direction: M gives them
normalized, whatever goes in.

A loop that has stopped a gain R short of the maximum is about √(2R) away from the fixed point, and
so would be its derivatives. A few Newton steps with the same solver close that gap, for the
derivatives only.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

from jaxgmm.numerics import difference, einsum

T = TypeVar("T")

NEWTON_STEPS = 2
MAX_PRODUCTS = 500
N_DIRECTIONS = 30


def tangent_of_fixed_point(
    step: Callable[[T], T], point: T, tangent_of_step: Callable[[T], T]
) -> T:
    """The tangent of a fixed point of `step`.

    Args:
        step: the map θ ↦ M(θ, p), with p given.
        point: θ, near a fixed point.
        tangent_of_step: θ ↦ ∂M/∂p ṗ at θ.

    Returns:
        θ̇ = (I - ∂M/∂θ)⁻¹ ∂M/∂p ṗ.
    """
    point = newton(step, point)
    return solve(step, point, tangent_of_step(point))


def newton(step: Callable[[T], T], point: T) -> T:
    """Newton steps for θ = M(θ), as long as they come nearer."""

    def residual(point: T) -> T:
        return jax.tree.map(difference, step(point), point)

    def advance(_: int, carry: tuple[T, T]) -> tuple[T, T]:
        point, before = carry
        new = jax.tree.map(jnp.add, point, solve(step, point, before))
        after = residual(new)
        nearer = _size(after) < _size(before)
        return jax.tree.map(partial(jnp.where, nearer), (new, after), carry)

    return lax.fori_loop(0, NEWTON_STEPS, advance, (point, residual(point)))[0]


def solve(step: Callable[[T], T], point: T, right_side: T) -> T:
    """(I - ∂M/∂θ)⁻¹ b at a point, differentiable and transposable."""
    flat_point, unravel = ravel_pytree(point)

    def flat_step(flat: Array) -> Array:
        return ravel_pytree(step(unravel(flat)))[0]

    def matvec(vector: Array) -> Array:
        return vector - jax.jvp(flat_step, (flat_point,), (vector,))[1]

    flat = lax.custom_linear_solve(
        matvec,
        ravel_pytree(right_side)[0],
        conjugate_residuals,
        transpose_solve=conjugate_residuals,
    )
    return unravel(flat)


def conjugate_residuals(matvec: Callable[[Array], Array], right_side: Array) -> Array:
    """Solves a nonsymmetric linear system by generalized conjugate residuals.

    Each residual becomes a direction whose image is orthogonal to those of the last `N_DIRECTIONS`,
    so that the residual never grows, and a singular system has a finite answer, too. The solvers of
    `jax.scipy.sparse.linalg` are themselves differentiation rules and don't nest inside one.

    Args:
        matvec: (P,) -> (P,), linear.
        right_side: (P,).

    Source: Eisenstat, Elman & Schultz 1983.
    """
    tolerance = 32 * float(jnp.finfo(right_side.dtype).eps) * jnp.linalg.norm(right_side)

    def goes_on(state: Any) -> Array:
        size = jnp.linalg.norm(state[1])
        return (size > tolerance) & jnp.isfinite(size) & (state[-1] < MAX_PRODUCTS)

    def advance(state: Any) -> Any:
        solution, residual, directions, images, n_products = state
        image = matvec(residual)
        overlap = einsum("sp,p->s", images, image)
        direction = residual - einsum("s,sp->p", overlap, directions)
        image = image - einsum("s,sp->p", overlap, images)
        size = jnp.linalg.norm(image)
        scale = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
        direction, image = scale * direction, scale * image
        length = jnp.sum(image * residual)
        slot = n_products % N_DIRECTIONS
        return (
            solution + length * direction,
            residual - length * image,
            directions.at[slot].set(direction),
            images.at[slot].set(image),
            n_products + 1,
        )

    none = jnp.zeros((N_DIRECTIONS, right_side.size), right_side.dtype)
    start = (jnp.zeros_like(right_side), right_side, none, none, jnp.asarray(0))
    return lax.while_loop(goes_on, advance, start)[0]


def _size(tree: Any) -> Array:
    return jnp.linalg.norm(ravel_pytree(tree)[0])
