"""A Krylov solver that is no differentiation rule itself, and so can be part of one."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxgmm.arrays.numerics import einsum, in_own_unit, varying

MAX_PRODUCTS = 500
N_DIRECTIONS = 30


class Solution(NamedTuple):
    """The solution of a linear system, and what it took.

    Attributes:
        vector: (P,).
        n_products: () int, how many products with the matrix that took.
        definite: () bool, whether the matrix was positive in all directions that were tried.
    """

    vector: Array
    n_products: Array
    definite: Array


class _State(NamedTuple):
    solution: Array
    residual: Array
    directions: Array
    images: Array
    n_products: Array
    definite: Array


def conjugate_residuals(
    matvec: Callable[[Array], Array],
    right_side: Array,
    tolerance: ArrayLike,
    only_definite: bool = False,
) -> Solution:
    """Solves a linear system by generalized conjugate residuals.

    Each residual becomes a direction whose image is orthogonal to those of the last `N_DIRECTIONS`,
    so that the residual never grows, and a singular system has a finite answer, too. Of a symmetric
    system these are conjugate residuals, whose directions rounding can't spoil. The solution is
    linear in the right side over the whole range of the dtype, of which squares have but half: so
    the system is solved in units of the right side's largest number.

    Args:
        matvec: (P,) -> (P,), linear.
        right_side: (P,).
        tolerance: () for the size of the residual, relative to that of the right side.
        only_definite: whether to end before the first direction in which the matrix isn't positive.

    Source: Eisenstat, Elman & Schultz 1983.
    """
    right_side, unit = in_own_unit(right_side)
    enough = tolerance * jnp.linalg.norm(right_side)

    def goes_on(state: _State) -> Array:
        size = jnp.linalg.norm(state.residual)
        unsolved = (size > enough) & jnp.isfinite(size) & (state.n_products < MAX_PRODUCTS)
        return unsolved & state.definite if only_definite else unsolved

    def advance(state: _State) -> _State:
        solution, residual, directions, images, n_products, definite = state
        image = matvec(residual)
        definite &= jnp.sum(image * residual) > 0
        overlap = einsum("sp,p->s", images, image)
        direction = residual - einsum("s,sp->p", overlap, directions)
        image = image - einsum("s,sp->p", overlap, images)
        size = jnp.linalg.norm(image)
        scale = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
        direction, image = scale * direction, scale * image
        length = jnp.sum(image * residual)
        if only_definite:
            length = jnp.where(definite, length, 0)
        slot = n_products % N_DIRECTIONS
        return _State(
            solution + length * direction,
            residual - length * image,
            directions.at[slot].set(direction),
            images.at[slot].set(image),
            n_products + 1,
            definite,
        )

    none = jnp.zeros((N_DIRECTIONS, right_side.size), right_side.dtype)
    zero = jnp.zeros_like(right_side)
    start = _State(zero, right_side, none, none, jnp.asarray(0), jnp.asarray(True))
    end = lax.while_loop(goes_on, advance, varying(start, tolerance))
    return Solution(unit * end.solution, end.n_products, end.definite)
