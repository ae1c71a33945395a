"""Sample weights in a unit of their own, so that sums of them neither overflow nor vanish.

What is computed from weights is linear in them, or doesn't depend on their unit. So programs
compute with weights of which the largest is between 1 and 4, and what is linear is given in the
unit that the weights came in. The unit is a power of two, by which nothing is rounded, and a
constant to differentiation: whatever it is, the product of both is the same.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxgmm.results import FitResult


@jax.jit
def in_own_unit(weights: Array) -> tuple[Array, Array]:
    """Weights divided by their unit, and the unit.

    Args:
        weights: (..., N); with the unit 1 if they are all zero, or not finite.

    Returns:
        (..., N), and (...) powers of two.
    """
    largest = jnp.max(jnp.abs(lax.stop_gradient(weights)), axis=-1)
    # All bits of infinity are those of the exponent, and a number with no others a power of two.
    bits = jnp.dtype(f"int{8 * weights.dtype.itemsize}")
    exponent = lax.bitcast_convert_type(jnp.full_like(largest, jnp.inf), bits)
    power = lax.bitcast_convert_type(
        lax.bitcast_convert_type(largest, bits) & exponent, largest.dtype
    )
    unit = jnp.where((power > 0) & (power < jnp.inf), power, 1)
    # XLA multiplies by the inverse, which must not be subnormal.
    unit = jnp.minimum(unit, 1 / float(jnp.finfo(weights.dtype).tiny))
    return weights / unit[..., None], unit


def in_unit_of_weights(result: FitResult, unit: Array) -> FitResult:
    """A fit to weights of which so many are one, as one to the weights themselves.

    Args:
        result: one, or several that lead with the same axes.
        unit: () or of these axes, see `in_own_unit`.
    """
    unit = jnp.broadcast_to(unit, result.objective.shape)
    history = result.history
    return replace(
        result,
        log_likelihood=unit * result.log_likelihood,
        objective=unit * result.objective,
        history=None if history is None else unit[..., None] * history,
    )
