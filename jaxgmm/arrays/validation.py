"""The host edge: wrong input is refused here, before anything is compiled.

Values are looked at only where they are known; under a transformation only shapes and dtypes are.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxgmm.arrays.conversion import as_float_array, in_common_dtype
from jaxgmm.arrays.host import is_concrete, is_small, unit_weights
from jaxgmm.arrays.placement import at_index, beside, check_points, check_whole_rows


def as_query(mixture: Any, x: ArrayLike) -> tuple[Any, Array]:
    """A mixture and points to ask it about, in the wider of their dtypes.

    Raises:
        ValueError: x is not (..., D).
    """
    x = as_float_array("x", x)
    check_mixture(mixture)
    if x.ndim == 0 or x.shape[-1] != mixture.n_features:
        raise ValueError(
            f"x must be (..., {mixture.n_features}) for a mixture of {mixture.n_features} "
            f"features, got shape {x.shape}"
        )
    check_points("x", x, mixture.n_components * mixture.n_features)
    return in_common_dtype(mixture, x)


def check_mixture(mixture: Any) -> None:
    """Checks that it is one mixture.

    Raises:
        TypeError: no mixture at all.
        ValueError: a batch of them.
    """
    if not (hasattr(mixture, "log_weights") and hasattr(mixture, "means")):
        hint = "; its mixture is result.mixture" if hasattr(mixture, "mixture") else ""
        raise TypeError(f"a GaussianMixture is expected, got {type(mixture).__name__}{hint}")
    if mixture.means.ndim != 2 or mixture.log_weights.shape != mixture.means.shape[:1]:
        raise ValueError(
            "one mixture is expected, with log_weights (K,) and means (K, D), got "
            f"{mixture.log_weights.shape} and {mixture.means.shape}; for a batch use jax.vmap, or "
            "mixture[b]"
        )


def check_data(x: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array | None]:
    """Data and sample weights as arrays of one dtype.

    Args:
        x: (N, D).
        weights: (N,), or None.

    Raises:
        TypeError: not numeric.
        ValueError: wrong shapes; no rows; or, where values are known, NaN or infinity in a row
            whose weight isn't 0, weights that are negative, not finite or all zero.
    """
    check_whole_rows("x", x)
    x = as_float_array("x", x)
    if x.ndim != 2:
        hint = (
            "; a single feature is x[:, None], a single sample x[None, :]"
            if x.ndim == 1
            else "; for a batch of data sets use jax.vmap"
        )
        raise ValueError(f"x must be (N, D), got shape {x.shape}{hint}")
    if 0 in x.shape:
        raise ValueError(f"x must hold at least one row and one feature, got shape {x.shape}")
    if weights is not None:
        weights = as_float_array("weights", weights)
        if weights.shape != x.shape[:1]:
            raise ValueError(
                f"weights must be ({x.shape[0]},), one for each row of x, got shape {weights.shape}"
            )
        x, weights = in_common_dtype(x, beside(x, weights))
    # Known values may be checked inside somebody's trace, where operations would be traced too.
    with jax.ensure_compile_time_eval():
        if weights is not None and is_concrete(weights):
            _check_weight_values(weights)
        if is_concrete(x) and (weights is None or is_concrete(weights)):
            _check_finite(x, weights)
    return x, weights


def _check_weight_values(weights: Array) -> None:
    weights = _on_host_if_small(weights)
    bad = np.asarray(~((weights >= 0) & (weights < np.inf)))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"weights must be finite and not negative, got {at_index(weights, row)} at row {row}"
        )
    tiny = float(jnp.finfo(weights.dtype).tiny)
    if not bool((weights >= tiny).any()):
        raise ValueError(
            "weights are all zero: at least one row must have a positive weight, and not below "
            f"{tiny:.2g}, which {weights.dtype} computes with as with zero"
        )


def _on_host_if_small(array: Array) -> Any:
    """A small array as NumPy's, which compiles no program for its shape."""
    return np.asarray(array) if is_small(array) else array


def _fine(x: Any, weights: Any) -> Any:
    """Mask of the numbers that are finite, or in rows without weight: (N, D) bool."""
    fine = abs(x) < np.inf
    return fine if weights is None else fine | (weights == 0)[:, None]


@jax.jit
def _all_fine(x: Array, weights: Array | None) -> Array:
    """Whether all numbers are fine, in one pass without arrays like x: () bool."""
    return jnp.all(_fine(x, weights))


def _check_finite(x: Array, weights: Array | None) -> None:
    if is_small(x):
        x, weights = jax.tree.map(np.asarray, (x, weights))
        fine = _fine(x, weights)
        if fine.all():
            return
    elif bool(_all_fine(x, weights)):
        return
    else:
        fine = _fine(x, weights)
    row, column = np.argwhere(~np.asarray(fine))[0]
    value = np.asarray(at_index(x, row))[column]
    raise ValueError(
        f"x holds {value} at row {row}, column {column}; drop such rows or give them weight 0"
    )


def check_fit_arguments(
    mixture: Any, x: ArrayLike, weights: ArrayLike | None
) -> tuple[Any, Array, Array]:
    """Mixture, data and weights that fit together, in one dtype; without weights, ones."""
    check_mixture(mixture)
    x, weights = check_data(x, weights)
    if x.shape[1] != mixture.n_features:
        raise ValueError(
            f"x must be (N, {mixture.n_features}) for a mixture of {mixture.n_features} features, "
            f"got shape {x.shape}"
        )
    weights = unit_weights(x) if weights is None else weights
    return in_common_dtype(mixture, x, weights)


def as_responsibilities(
    responsibilities: ArrayLike,
    x: Array,
    n_components: int | None = None,
    *,
    weights: Array | None,
) -> Array:
    """Responsibilities (N, K) as an array of floats; those of rows without weight may be anything.

    Raises:
        TypeError: not numeric.
        ValueError: of another shape; where values are known, negative or not finite.
    """
    check_whole_rows("responsibilities", responsibilities)
    array = as_float_array("responsibilities", responsibilities)
    expected = (x.shape[0], "K" if n_components is None else n_components)
    good = array.ndim == 2 and array.shape[0] == x.shape[0] and array.shape[1] > 0
    if not good or n_components not in (None, array.shape[1]):
        raise ValueError(f"responsibilities must be {expected}, got shape {array.shape}")
    array, weights = beside(x, array), None if weights is None else beside(x, weights)
    with jax.ensure_compile_time_eval():
        if is_concrete(array) and (weights is None or is_concrete(weights)):
            fine = jnp.isfinite(array) & (array >= 0)
            fine |= False if weights is None else (weights == 0)[:, None]
            if not bool(jnp.all(fine)):
                raise ValueError("responsibilities must be finite and not negative")
    return array


def check_known(name: str, values: Any, instead: str = "") -> None:
    """TypeError unless the values of a tree are known, which a function looks at.

    Args:
        name: of the function.
        values: any tree.
        instead: what can be traced, after a semicolon.
    """
    if not is_concrete(*jax.tree.leaves(values)):
        raise TypeError(
            f"{name} looks at values, which are unknown inside of jax.jit, jax.vmap and jax.grad: "
            f"call it outside, on their results{instead}"
        )


def check_static(name: str, value: Any) -> None:
    """TypeError if a value is traced that a program is compiled for."""
    if not is_concrete(value):
        raise TypeError(
            f"{name} is traced, and must be known when a program is compiled: make it static, by "
            "static_argnames of jax.jit, or functools.partial"
        )


def check_flag(name: str, value: Any) -> bool:
    """`value` as a bool.

    Raises:
        TypeError: traced.
    """
    check_static(name, value)
    return bool(value)


def check_count(name: str, value: Any, smallest: int) -> int:
    """`value` as an int.

    Raises:
        TypeError: traced.
        ValueError: not an integer, or below `smallest`.
    """
    check_static(name, value)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < smallest:
        raise ValueError(f"{name} must be an integer of at least {smallest}, got {value!r}")
    return int(value)


def check_n_components(value: Any, n_rows: int) -> int:
    """The number of components, known not to exceed the number of rows."""
    n_components = check_count("n_components", value, 1)
    # What isn't an int is a symbol of an export, which is not to be compared.
    if isinstance(n_rows, int) and n_components > n_rows:
        raise ValueError(
            f"n_components={n_components} needs at least as many rows, x has {n_rows}; use fewer "
            "components"
        )
    return n_components


def check_number(name: str, value: Any) -> Any:
    """A scalar that may be traced; ValueError if it is known to be negative or not finite."""
    if is_concrete(value):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name} must be a number, got {value!r}") from None
        if isinstance(value, bool) or not math.isfinite(number) or number < 0:
            raise ValueError(f"{name} must be finite and at least 0, got {value!r}")
    elif value.shape != ():
        raise ValueError(f"{name} must be a scalar, got shape {value.shape}")
    return value


def check_probability(name: str, value: ArrayLike) -> Array:
    """`value` as an array of floats; ValueError where it is known not to lie between 0 and 1."""
    array = as_float_array(name, value)
    if is_concrete(value):
        known = np.asarray(value, np.float64)
        if not np.all((known >= 0) & (known <= 1)):
            raise ValueError(f"{name} must lie between 0 and 1, got {value!r}")
    return array


def check_choice(name: str, value: Any, choices: Any) -> str:
    """A name out of a list; ValueError lists the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    return value


def check_key(key: Any) -> Array:
    """One JAX PRNG key, typed or of the older uint32 kind.

    Raises:
        TypeError: something else.
        ValueError: a batch of keys.
    """
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    legacy = isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.ndim >= 1
    if not (typed or legacy):
        raise TypeError(
            f"key must be a JAX PRNG key such as jax.random.key(0), got {type(key).__name__}"
        )
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"key must be a single key, got shape {key.shape}; use jax.vmap for many")
    return key


def as_log_prior(
    log_prior: ArrayLike | None, x: Array, n_components: int, weights: Array | None
) -> Array | None:
    """What is added to the logits, (N, K), in the dtype of the data (N, D); None stays None.

    Raises:
        TypeError: not numeric.
        ValueError: of another shape; where values are known, NaN, infinity, or a row with a weight
            for which no component is possible.
    """
    if log_prior is None:
        return None
    check_whole_rows("log_prior", log_prior)
    array = as_float_array("log_prior", log_prior).astype(x.dtype)
    if array.shape != (x.shape[0], n_components):
        raise ValueError(f"log_prior must be {(x.shape[0], n_components)}, got {array.shape}")
    array, weights = beside(x, array), None if weights is None else beside(x, weights)
    with jax.ensure_compile_time_eval():
        if is_concrete(array) and (weights is None or is_concrete(weights)):
            highest = jnp.max(array, axis=1)
            fine = jnp.isfinite(highest) & ~jnp.any(jnp.isnan(array), axis=1)
            fine |= False if weights is None else weights == 0
            if not bool(jnp.all(fine)):
                row = int(np.argmin(np.asarray(fine)))
                raise ValueError(
                    f"log_prior must leave each row a component, and be less than infinity: row "
                    f"{row} is {np.asarray(at_index(array, row))}"
                )
    return array
