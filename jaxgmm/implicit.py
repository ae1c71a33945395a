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
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree

T = TypeVar("T")

NEWTON_STEPS = 2
MAX_PRODUCTS = 500


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
    point = lax.fori_loop(0, NEWTON_STEPS, lambda _, point: newton_step(step, point), point)
    return solve(step, point, tangent_of_step(point))


def newton_step(step: Callable[[T], T], point: T) -> T:
    """One Newton step for θ = M(θ), or `point` itself where that would not be nearer."""

    def residual(point: T) -> T:
        return jax.tree.map(_difference, step(point), point)

    before = residual(point)
    new = jax.tree.map(jnp.add, point, solve(step, point, before))
    nearer = _size(residual(new)) < _size(before)
    return jax.tree.map(lambda new, old: jnp.where(nearer, new, old), new, point)


def solve(step: Callable[[T], T], point: T, right_side: T) -> T:
    """(I - ∂M/∂θ)⁻¹ b at a point, differentiable and transposable."""
    flat_point, unravel = ravel_pytree(point)

    def flat_step(flat: Array) -> Array:
        return ravel_pytree(step(unravel(flat)))[0]

    def matvec(vector: Array) -> Array:
        return vector - jax.jvp(flat_step, (flat_point,), (vector,))[1]

    flat = lax.custom_linear_solve(
        matvec, ravel_pytree(right_side)[0], bicgstab, transpose_solve=bicgstab
    )
    return unravel(flat)


def bicgstab(matvec: Callable[[Array], Array], right_side: Array) -> Array:
    """Solves a nonsymmetric linear system (van der Vorst 1992).

    A plain loop: the solvers of `jax.scipy.sparse.linalg` are themselves differentiation rules, and
    don't nest inside one. The iterate with the smallest residual is returned, after at most
    `MAX_PRODUCTS` products, so that a singular system has a finite answer.

    Args:
        matvec: (P,) -> (P,), linear.
        right_side: (P,).
    """
    tolerance = 32 * float(jnp.finfo(right_side.dtype).eps) * jnp.linalg.norm(right_side)

    def goes_on(state: Any) -> Array:
        residual, n_products = state[1], state[-1]
        size = jnp.linalg.norm(residual)
        return (size > tolerance) & jnp.isfinite(size) & (n_products < MAX_PRODUCTS)

    def advance(state: Any) -> Any:
        x, r, p, rho, best, best_size, n_products = state
        ap = matvec(p)
        alpha = _ratio(rho, shadow @ ap)
        s = r - alpha * ap
        as_ = matvec(s)
        omega = _ratio(as_ @ s, as_ @ as_)
        x = x + alpha * p + omega * s
        r = s - omega * as_
        new_rho = shadow @ r
        p = r + _ratio(new_rho, rho) * _ratio(alpha, omega) * (p - omega * ap)
        size = jnp.linalg.norm(r)
        better = size < best_size
        best = jnp.where(better, x, best)
        return x, r, p, new_rho, best, jnp.where(better, size, best_size), n_products + 2

    shadow = right_side
    zero = jnp.zeros_like(right_side)
    size = jnp.linalg.norm(right_side)
    start = (zero, right_side, right_side, shadow @ right_side, zero, size, jnp.asarray(0))
    return lax.while_loop(goes_on, advance, start)[4]


def _ratio(numerator: Array, denominator: Array) -> Array:
    """A quotient that is 0 where the method breaks down."""
    return jnp.where(denominator == 0, 0, numerator / jnp.where(denominator == 0, 1, denominator))


def _difference(new: Array, old: Array) -> Array:
    """new - old, and 0 where both are the same infinity."""
    return jnp.where(new == old, 0, new - jnp.where(new == old, 0, old))


def _size(tree: Any) -> Array:
    return jnp.linalg.norm(ravel_pytree(tree)[0])
