"""Who goes where at least cost: one to one, or in parts."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from jaxgmm.arrays import shards
from jaxgmm.arrays.numerics import varying_axes


def assignment(costs: Array) -> Array:
    """The column of each row, each column once, for which the sum of costs is least.

    Args:
        costs: (K, K); those that are infinite, or so large that sums would be, count the same.

    Returns:
        (K,) int.
    """
    axes = tuple(sorted(varying_axes(costs)))
    if axes:
        # The loops of the algorithm would have to say what varies over the devices of `shard_map`.
        with shards.rows_over(axes):
            return shards.own_of(lax.map(assignment, shards.gathered(costs[None])))
    most = float(jnp.finfo(costs.dtype).max) ** 0.5
    costs = jnp.where(costs < most, costs, most)
    # The algorithm mixes dtypes, which a caller may have forbidden.
    with jax.numpy_dtype_promotion("standard"):
        rows, columns = optax.assignment.hungarian_algorithm(costs)
    return columns[jnp.argsort(rows)]


@jax.custom_jvp
def transport_cost(source: Array, target: Array, costs: Array) -> Array:
    """The least cost of carrying one distribution to another, a linear program: ().

    Args:
        source: (K₁,) weights.
        target: (K₂,) weights.
        costs: (K₁, K₂) of carrying a weight of 1.
    """
    plan, _, _ = _optimal(source, target, costs)
    return jnp.sum(plan * costs)


@transport_cost.defjvp
def _differentiate_transport_cost(
    primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    source, target, costs = primals
    plan, of_source, of_target = _optimal(source, target, costs)
    of_source_moved, of_target_moved, costs_moved = tangents
    tangent = jnp.sum(plan * costs_moved)
    tangent += jnp.sum(of_source * of_source_moved) + jnp.sum(of_target * of_target_moved)
    return jnp.sum(plan * costs), tangent


def _optimal(source: Array, target: Array, costs: Array) -> tuple[Array, Array, Array]:
    """The plan (K₁, K₂), and what another unit of weight costs: (K₁,), (K₂,)."""
    shapes = [jax.ShapeDtypeStruct(array.shape, costs.dtype) for array in (costs, source, target)]
    given = lax.stop_gradient((source, target, costs))
    return jax.pure_callback(_solve, shapes, *given, vmap_method="sequential")


def _solve(source: Any, target: Any, costs: Any) -> list[np.ndarray]:
    from scipy.optimize import linprog
    from scipy.sparse import csr_array, eye_array, kron, vstack

    costs = np.asarray(costs)
    n_sources, n_targets = costs.shape
    parts = [np.asarray(weights, np.float64) for weights in (source, target)]
    nothing = [np.full(array.shape, np.nan, costs.dtype) for array in (costs, *parts)]
    if not all(np.isfinite(array).all() for array in (costs, *parts)):
        return nothing
    leaves = kron(eye_array(n_sources), csr_array(np.ones((1, n_targets))))
    arrives = kron(csr_array(np.ones((1, n_sources))), eye_array(n_targets))
    # In units of the costs, so that the solver's tolerances mean the same for all.
    unit = float(np.abs(costs).max()) or 1.0
    found = linprog(
        costs.ravel() / unit,
        A_eq=vstack([leaves, arrives]),
        b_eq=np.concatenate([weights / weights.sum() for weights in parts]),
        method="highs-ds",
    )
    if found.x is None:
        return nothing
    prices = unit * found.eqlin.marginals
    solution = (found.x.reshape(costs.shape), prices[:n_sources], prices[n_sources:])
    return [array.astype(costs.dtype) for array in solution]
