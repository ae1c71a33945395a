"""Tables of numbers from files: CSV, NPY and Parquet, with every defect named by its place."""

import csv
import itertools
import math
import os
from array import array
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TextIO

import numpy as np

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
DELIMITERS = (",", ";", "\t")
LISTED = 20

Table = tuple[list[str], np.ndarray]


class TableError(ValueError):
    """A file that doesn't hold a table of finite numbers; the message says where it fails."""


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Table:
    """The names and the values of a table's columns.

    The name's ending decides: `.npy` is NumPy's format (an array with one axis is one column),
    `.parquet` and `.pq` are Parquet, and everything else is text with a row on each line, cells
    between commas, semicolons or tabs, and a header if the first line holds a cell that is not a
    number. Empty lines are skipped.

    Args:
        path: the file.
        columns: which columns, in this order, by name; where the file has no names, by number
            from 0. All by default. Columns that are left out may hold anything.

    Returns:
        D names, and the values (N, D) float64, all finite.

    Raises:
        TableError: there is no such file or column, a row is too short or too long, or a cell is
            missing, not finite or not a number.
    """
    path = Path(path)
    readers = {".npy": _read_npy, ".parquet": _read_parquet, ".pq": _read_parquet}
    try:
        if path.is_dir():
            raise TableError(f"{path} is a directory, expected a file")
        names, rows = readers.get(path.suffix.lower(), _read_text)(path, columns)
    except FileNotFoundError:
        raise TableError(f"{path}: no such file") from None
    except OSError as error:
        raise TableError(f"{path} can't be read: {error.strerror or error}") from None
    if rows.size == 0:
        raise TableError(f"{path} holds no rows of data")
    return names, rows


def old_faithful(columns: Sequence[str] | None = None) -> Table:
    """The Old Faithful geyser: length of eruptions and waiting time to the next, in minutes.

    Args:
        columns: as in `read_table`.

    Returns:
        Names, and values (272, 2).

    Example:
        >>> from jaxgmm.tables import old_faithful
        >>> names, rows = old_faithful()
        >>> names, rows.shape
        (['eruptions', 'waiting'], (272, 2))

    Source: Azzalini & Bowman 1990, in the version that comes with R.
    """
    file = resources.files("jaxgmm") / "datasets" / "old_faithful.csv"
    with resources.as_file(file) as path:
        return read_table(path, columns)


def _read_text(path: Path, columns: Sequence[str] | None) -> Table:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _parse_text(path, file, columns)
    except UnicodeDecodeError:
        raise TableError(
            f"{path} is not text; arrays must be named .npy and Parquet files .parquet"
        ) from None
    except csv.Error as error:
        raise TableError(f"{path} can't be read as CSV: {error}") from None


def _parse_text(path: Path, file: TextIO, columns: Sequence[str] | None) -> Table:
    n_empty, start = next(((n, line) for n, line in enumerate(file) if line.strip()), (0, ""))
    if not start:
        raise TableError(f"{path} is empty")
    reader = csv.reader(
        itertools.chain([start], file),
        delimiter=max(DELIMITERS, key=start.count),
        skipinitialspace=True,
        strict=True,
    )
    lines: Iterator[tuple[int, list[str]]] = (
        (n_empty + reader.line_num, row) for row in reader if len(row) > 1 or "".join(row).strip()
    )
    n_line, first = next(lines, (n_empty + 1, [""]))
    has_header = not all(_is_number(cell) or _is_missing(cell) for cell in first)
    names = _numbered(len(first))
    if has_header:
        names = [cell.strip() or name for cell, name in zip(first, names, strict=True)]
    else:
        lines = itertools.chain([(n_line, first)], lines)
    chosen = _positions(path, names, columns, has_header)
    values = array("d")
    for n_line, row in lines:
        values.extend(_numbers(f"{path}, line {n_line}", names, row, chosen))
    return [names[i] for i in chosen], np.array(values).reshape(-1, len(chosen))


def _numbers(where: str, names: list[str], row: list[str], chosen: list[int]) -> list[float]:
    """The chosen cells of one row."""
    if len(row) != len(names):
        cells = f"{len(row)} cell{'s' * (len(row) != 1)}"
        raise TableError(f"{where}: the row has {cells}, expected {len(names)}")
    try:
        numbers = [float(row[i]) for i in chosen]
        if all(map(math.isfinite, numbers)):
            return numbers
    except ValueError:
        pass
    bad = next(i for i in chosen if not _is_number(row[i]) or not math.isfinite(float(row[i])))
    raise TableError(f"{where}, column {names[bad]!r}: {_complaint(row[bad])}")


def _read_npy(path: Path, columns: Sequence[str] | None) -> Table:
    try:
        with open(path, "rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:
        raise TableError(f"{path} can't be read as an NPY file: {error}") from None
    if values.dtype.kind not in "biuf":
        raise TableError(f"{path} must hold real numbers, it holds {values.dtype}")
    if values.ndim not in (1, 2):
        raise TableError(f"{path} must hold rows and columns, it holds shape {values.shape}")
    values = values.reshape(len(values), -1) if values.size else values.reshape(0, 1)
    names = _numbered(values.shape[1])
    chosen = _positions(path, names, columns, False)
    return _finite(path, [names[i] for i in chosen], values[:, chosen].astype(np.float64))


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TableError(f"{path}: Parquet files need pyarrow: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            everything = file.schema_arrow.names
            names = [everything[i] for i in _positions(path, everything, columns, True)]
            table = file.read(columns=None if columns is None else names)
    except pyarrow.ArrowException as error:
        raise TableError(f"{path} can't be read as Parquet: {error}") from None
    parts = table.columns if columns is None else [table.column(name) for name in names]
    values = [_parquet_column(path, *part) for part in zip(names, parts, strict=True)]
    return _finite(path, names, np.stack(values, axis=-1))


def _parquet_column(path: Path, name: str, column: Any) -> np.ndarray:
    from pyarrow import float64, types

    kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise TableError(f"{path}, column {name!r}: {column.type} is not a type of number")
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise TableError(f"{path}, row {row} (from 0), column {name!r}: the value is missing")
    return column.cast(float64(), safe=False).to_numpy()


def _finite(path: Path, names: list[str], rows: np.ndarray) -> Table:
    finite = np.isfinite(rows)
    if not finite.all():
        row, i = np.argwhere(~finite)[0]
        raise TableError(f"{path}, row {row} (from 0), column {names[i]!r}: {rows[row, i]}")
    return names, rows


def _positions(
    path: Path, names: list[str], columns: Sequence[str] | None, has_names: bool
) -> list[int]:
    """Where the columns stand in the file."""
    if columns is None:
        return list(range(len(names)))
    known = names if has_names else [str(i) for i in range(len(names))]
    for column in columns:
        if column not in known:
            listed = ", ".join(known[:LISTED]) + (", ..." if len(known) > LISTED else "")
            raise TableError(f"{path} has no column {column!r}; its columns are {listed}")
        if known.count(column) > 1:
            raise TableError(f"{path} has {known.count(column)} columns named {column!r}")
    if len(columns) == 0 or len(set(columns)) < len(columns):
        raise TableError(f"expected different columns, got {', '.join(columns) or 'none'}")
    return [known.index(column) for column in columns]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


def _complaint(cell: str) -> str:
    if _is_missing(cell):
        return f"the value is missing ({cell.strip()!r})"
    what = "is not finite" if _is_number(cell) else "is not a number"
    return f"{cell.strip()[:40]!r} {what}"


def _numbered(n_columns: int) -> list[str]:
    return [f"column {i}" for i in range(n_columns)]
