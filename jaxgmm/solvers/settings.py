"""The choices that a fit is given, checked."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.host import from_host, is_concrete
from jaxgmm.arrays.padding import bucket_size
from jaxgmm.arrays.validation import check_choice, check_count, check_flag, check_number
from jaxgmm.solvers.acceleration import METHODS

ADJOINTS = ("implicit", "one_step", "unroll")


class Settings(NamedTuple):
    """The static choices of a fit: each combination compiles once.

    Attributes:
        capacity: places for objectives, 0 where these aren't recorded; steps, where they are
            unrolled.
        adjoint: one of `ADJOINTS`.
        history: whether objectives are recorded.
        accelerate: one of `METHODS`, or None.
        polish: whether to end with Newton steps.
    """

    capacity: int
    adjoint: str
    history: bool
    accelerate: str | None
    polish: bool = False


class Limits(NamedTuple):
    """Where a fit ends: numbers, which compile nothing anew.

    Attributes:
        tol: () gain per unit of weight that may remain.
        max_iter: () int, number of steps.
    """

    tol: Array
    max_iter: Array


def check_settings(
    max_iter: int,
    accelerate: str | None,
    adjoint: str,
    history: bool,
    polish: bool = False,
) -> Settings:
    """The static choices, known to be good."""
    polish = check_flag("polish", polish)
    if accelerate is not None:
        check_choice("accelerate", accelerate, METHODS)
    if adjoint == "unroll" and (accelerate is not None or polish):
        raise ValueError("adjoint='unroll' goes back through plain steps: no accelerate, no polish")
    max_iter = check_count("max_iter", max_iter, 0)
    history = check_flag("history", history)
    capacity = places_for(max_iter) if history else 0
    return Settings(
        capacity=max_iter if adjoint == "unroll" else capacity,
        adjoint=check_choice("adjoint", adjoint, ADJOINTS),
        history=history,
        accelerate=accelerate,
        polish=polish,
    )


def places_for(max_iter: int) -> int:
    """Places for so many objectives, or some more, so that few sizes are compiled."""
    return 10 ** len(str(max(max_iter, 2) - 1)) if max_iter <= 10**4 else bucket_size(max_iter)


def check_limits(tol: ArrayLike, max_iter: int, x: Array) -> Limits:
    """Where a fit ends, known to be good."""
    count = min(check_count("max_iter", max_iter, 0), np.iinfo(np.int32).max)
    return Limits(check_tol(tol, x), from_host(np.asarray(count, np.int32)))


def check_tol(tol: ArrayLike, x: Array) -> Array:
    """A tolerance, known to be good; one that is traced and isn't is like 0: nothing is below."""
    return jnp.asarray(check_number("tol", tol), x.dtype)


def check_reg_covar(reg_covar: ArrayLike | None, x: Array) -> Array:
    """λ, or its default; one that is traced and turns out to be negative is NaN, as is the fit."""
    given = check_number(
        "reg_covar", default_reg_covar(x.dtype) if reg_covar is None else reg_covar
    )
    given = jnp.asarray(given, x.dtype)
    return given if is_concrete(given) else jnp.where(given >= 0, given, jnp.nan)


def default_reg_covar(dtype: jnp.dtype) -> float:
    """A thousandth of the variance of a cluster that is a thousand (float32) or a million (float64)
    times narrower than the data."""
    return 1e-15 if dtype == jnp.float64 else 1e-9
