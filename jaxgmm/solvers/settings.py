"""The choices that a fit is given, checked."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.validation import check_choice, check_count, check_flag, check_number
from jaxgmm.solvers.acceleration import METHODS

ADJOINTS = ("implicit", "one_step", "unroll")


class Settings(NamedTuple):
    """The static choices of a fit: each combination compiles once."""

    max_iter: int
    adjoint: str
    history: bool
    accelerate: str | None
    polish: bool = False


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
    return Settings(
        max_iter=check_count("max_iter", max_iter, 0),
        adjoint=check_choice("adjoint", adjoint, ADJOINTS),
        history=check_flag("history", history),
        accelerate=accelerate,
        polish=polish,
    )


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
