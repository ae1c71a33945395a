"""Columns of tables, whose numbers may be of several dtypes, and may be missing."""

import numbers
from decimal import Decimal
from typing import Any

import numpy as np

NUMERIC = "biuf"


def is_table(value: Any) -> bool:
    """Whether something has named columns, as data frames of pandas and polars do."""
    return hasattr(value, "columns") and hasattr(value, "dtypes") and hasattr(value, "to_numpy")


def is_column(value: Any) -> bool:
    """Whether something is a column, or an array of pandas that knows what is missing."""
    return hasattr(value, "isna") and hasattr(value, "dtype") and not is_table(value)


def table_as_numpy(name: str, table: Any) -> np.ndarray:
    """(N, D) numbers of all columns, in the widest of their dtypes; floats beside integers.

    Raises:
        TypeError: a column that doesn't hold numbers, or with a missing one; it is named.
    """
    if all(isinstance(dtype, np.dtype) for dtype in table.dtypes):
        array = np.asarray(table)
        if array.dtype.kind in NUMERIC:
            return array
    if hasattr(table, "items"):
        pairs = table.items()
    else:
        pairs = zip(table.columns, table.iter_columns(), strict=True)
    columns = [column_as_numpy(f"{name}, column {label!r},", column) for label, column in pairs]
    if not columns:
        return np.zeros(table.shape)
    return np.stack(columns, axis=1)


def column_as_numpy(name: str, column: Any) -> np.ndarray:
    """(N,) numbers of a column.

    Raises:
        TypeError: it doesn't hold numbers, or one is missing.
    """
    missing = np.asarray(column.isna()) if hasattr(column, "isna") else None
    # NaN among floats of NumPy is a number like any other, of which data in rows may have some.
    if missing is not None and missing.any() and not isinstance(column.dtype, np.dtype):
        raise TypeError(_about_missing(name, int(missing.argmax())))
    array = np.asarray(column)
    if array.dtype == object:
        array = numbers_of_objects(name, array)
    if array.dtype.kind not in NUMERIC:
        raise TypeError(
            f"{name} must hold numbers, got dtype {column.dtype}; convert it first, or leave it out"
        )
    return array


def numbers_of_objects(name: str, array: np.ndarray) -> np.ndarray:
    """Python's numbers, in the dtype that NumPy gives to them.

    Raises:
        TypeError: one isn't a number; its place is named.
    """
    for place, value in np.ndenumerate(array):
        if not place and not isinstance(value, (numbers.Real, Decimal)):
            raise TypeError(
                f"{name} must hold numbers, got {type(value).__name__}; make it an array first"
            )
        if value is None or type(value).__name__ in ("NAType", "NaTType"):
            raise TypeError(_about_missing(name, *place))
        is_scalar_array = hasattr(value, "dtype") and np.ndim(value) == 0
        if not isinstance(value, (numbers.Real, Decimal)) and not is_scalar_array:
            raise TypeError(
                f"{name} must hold numbers, got {value!r} at {_place(*place)}; convert it first, "
                "or leave the column out"
            )
    found = np.array(array.tolist())
    return found if found.dtype.kind in NUMERIC else array.astype(np.float64)


def _about_missing(name: str, *place: int) -> str:
    return (
        f"{name} must hold numbers, got missing values, the first at {_place(*place)}; drop such "
        "rows, or fill them"
    )


def _place(*indices: int) -> str:
    axes = ("row", "column") if len(indices) <= 2 else ("index",) * len(indices)
    return ", ".join(f"{axis} {index}" for axis, index in zip(axes, indices, strict=False))
