"""Cholesky factors of sums of squares that are never formed, by Householder reflections.

Not by `jnp.linalg.qr`, which on a CPU is LAPACK: a call for a large batch spreads over the pool of
threads that it runs in itself, and waits. Two such calls side by side may do so for ever.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.arrays.matrices import inverse_of_lower
from jaxgmm.arrays.numerics import FEW, align, contract

# So many rows are reflected one after the other before the rows below follow, by products.
PANEL = 16


@jax.custom_jvp
@jax.jit
def factor_of_root(root: Array) -> Array:
    """The Cholesky factor of root rootᵀ, never squared: (..., M, N) -> (..., M, M), for M ≤ N.

    Orthogonal transformations of the columns change nothing of root rootᵀ. Those of b rows in a row
    are (I - v₁v₁ᵀ) ⋯ (I - v_b v_bᵀ) = I - Vᵀ T V, with the v as rows of V, where T⁻¹ is I plus what
    V Vᵀ has above its diagonal. Scaling a row of the root scales that of the factor, and no more.

    Source: Schreiber & Van Loan 1989; Puglisi 1992 for T.
    """
    n_rows = root.shape[-2]
    if n_rows <= PANEL:
        reflected, _ = _reflect(root, 0)
    else:

        def next_panel(number: Array, root: Array) -> Array:
            # The last one starts early enough to be whole: of what is done signs change at most.
            first = jnp.minimum(number * PANEL, n_rows - PANEL)
            _, v = _reflect(lax.dynamic_slice_in_dim(root, first, PANEL, axis=-2), first)
            below = jnp.tril(contract("...in,...jn->...ij", v, v), -1)
            inverse = inverse_of_lower(below + align(jnp.eye(PANEL, dtype=root.dtype), below))
            shares = contract("...mn,...jn->...mj", root, v)
            shares = contract("...mi,...ji->...mj", shares, inverse)
            return root - contract("...mj,...jn->...mn", shares, v)

        reflected = lax.fori_loop(0, -(-n_rows // PANEL), next_panel, root)
    factor = jnp.tril(reflected[..., :n_rows])
    sign = jnp.where(jnp.diagonal(factor, axis1=-2, axis2=-1) < 0, -1, 1).astype(root.dtype)
    return sign[..., None, :] * factor


def _reflect(rows: Array, first: Array | int) -> tuple[Array, Array]:
    """Rows (..., b, N) that reflections make lower triangular, and these: (..., b, N) of length √2.

    Args:
        rows: of a root.
        first: the number of the first one in the whole root.
    """
    n_rows, n_columns = rows.shape[-2:]
    columns = align(jnp.arange(n_columns), rows[..., 0, :])

    def next_row(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, reflections = carry
        place = first + number
        row = lax.dynamic_index_in_dim(rows, number, axis=-2, keepdims=False)
        tail = jnp.where(columns >= place, row, 0)
        # In units of the largest, so that no square over- or underflows.
        largest = jnp.max(jnp.abs(tail), axis=-1, keepdims=True)
        tail = tail / jnp.where(largest > 0, largest, 1)
        # Without barriers XLA would make these anew for each number that they are used for.
        tail = lax.optimization_barrier(tail)
        norm = jnp.sqrt(jnp.sum(tail**2, axis=-1, keepdims=True))
        pivot = lax.dynamic_index_in_dim(tail, place, axis=-1)
        # The one of both directions in which nothing cancels.
        v = tail + jnp.where(columns == place, jnp.where(pivot < 0, -norm, norm), 0)
        half_square = norm * (norm + jnp.abs(pivot))
        v = v / jnp.sqrt(jnp.where(half_square == 0, 1, half_square))
        v = lax.optimization_barrier(v)
        along = contract("...mn,...n->...m", rows, v)
        rows = rows - along[..., None] * v[..., None, :]
        return rows, lax.dynamic_update_index_in_dim(reflections, v, number, axis=-2)

    # Each of the reflections takes the place of a row.
    start = (rows, rows)
    return lax.fori_loop(0, n_rows, next_row, start, unroll=n_rows <= FEW)


@factor_of_root.defjvp
def _differentiate_factor_of_root(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """dL = L Φ(P + Pᵀ), with P = L⁻¹ dR (L⁻¹ R)ᵀ and Φ for the lower half with half the diagonal.

    As dL Lᵀ + L dLᵀ = dR Rᵀ + R dRᵀ, and L⁻¹ R has orthonormal rows.
    """
    (root,), (moved,) = primals, tangents
    factor = factor_of_root(root)
    inverse = inverse_of_lower(factor)
    rows = contract("...ij,...jn->...in", inverse, root)
    across = contract("...in,...jn->...ij", contract("...ij,...jn->...in", inverse, moved), rows)
    lower = jnp.tril(across + jnp.swapaxes(across, -1, -2))
    half = align(1 - jnp.eye(root.shape[-2], dtype=root.dtype) / 2, lower) * lower
    return factor, contract("...ij,...jk->...ik", factor, half)
