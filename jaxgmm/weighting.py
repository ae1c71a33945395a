"""Sample weights in a unit of their own, so that sums of them neither overflow nor vanish.

What is computed from weights is linear in them, or doesn't depend on their unit. So programs
compute with weights of which the largest is between 1 and 4, and what is linear is given in the
unit that the weights came in. The unit is a power of two, by which nothing is rounded, and a
constant to differentiation: whatever it is, the product of both is the same.
"""

from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from jaxgmm.results import FitResult


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
