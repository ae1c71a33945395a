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
BLOCK_ROWS = 65_536
NEEDS_PYARROW = "Parquet files need pyarrow: pip install pyarrow"

Table = tuple[list[str], np.ndarray]


class TableError(ValueError):
    """A file that doesn't hold a table of finite numbers; the message says where it fails."""


def read_table(path: str | os.PathLike[str], columns: Sequence[str] | None = None) -> Table:
    """The names and the values of a table's columns.

    Args:
        path: the file, see `read_blocks`.
        columns: which columns, see `read_blocks`.

    Returns:
        D names, and the values (N, D) float64, all finite.

    Raises:
        TableError: as in `read_blocks`.
    """
    names, blocks = read_blocks(path, columns, BLOCK_ROWS)
    return names, np.concatenate(list(blocks))


def read_blocks(
    path: str | os.PathLike[str], columns: Sequence[str] | None, block_rows: int
) -> tuple[list[str], Iterator[np.ndarray]]:
    """The names of a table's columns, and their values a block of rows after the other.

    The name's ending decides: `.npy` is NumPy's format (an array with one axis is one column),
    `.parquet` and `.pq` are Parquet, and everything else is text with a row on each line, cells
    between commas, semicolons or tabs, and a header if the first line holds a cell that is not a
    number. Empty lines are skipped.

    Args:
        path: the file.
        columns: which columns, in this order, by name; where the file has no names, by number
            from 0. None for all. Columns that are left out may hold anything.
        block_rows: most rows of a block.

    Returns:
        D names, and an iterator of values (n, D) float64, all finite, which reads no further than
        it is asked to.

    Raises:
        TableError: there is no such file or column; or, from the iterator, a row is too short or
            too long, a cell is missing, not finite or not a number, or there are no rows.
    """
    parts = _parts(Path(path), columns, block_rows)
    names, _ = next(parts)
    return names, (rows for _, rows in parts)


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


def _parts(path: Path, columns: Sequence[str] | None, block_rows: int) -> Iterator[Table]:
    """The table in parts; the first has no rows, and comes before any is read."""
    readers = {".npy": _read_npy, ".parquet": _read_parquet, ".pq": _read_parquet}
    read = readers.get(path.suffix.lower(), _read_text)
    is_empty = True
    try:
        if path.is_dir():
            raise TableError(f"{path} is a directory, expected a file")
        for names, rows in read(path, columns, block_rows):
            is_empty = is_empty and rows.size == 0
            yield names, rows
    except FileNotFoundError:
        raise TableError(f"{path}: no such file") from None
    except OSError as error:
        raise TableError(f"{path} can't be read: {error.strerror or error}") from None
    if is_empty:
        raise TableError(f"{path} holds no rows of data")


def _read_text(path: Path, columns: Sequence[str] | None, block_rows: int) -> Iterator[Table]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _parse_text(path, file, columns, block_rows)
    except UnicodeDecodeError:
        raise TableError(
            f"{path} is not text; arrays must be named .npy and Parquet files .parquet"
        ) from None
    except csv.Error as error:
        raise TableError(f"{path} can't be read as CSV: {error}") from None


def _parse_text(
    path: Path, file: TextIO, columns: Sequence[str] | None, block_rows: int
) -> Iterator[Table]:
    everything, has_header, lines = _header(path, file)
    chosen = _positions(path, everything, columns, has_header)
    names = [everything[i] for i in chosen]
    yield names, _no_rows(names)
    while True:
        values = array("d")
        for n_line, row in itertools.islice(lines, block_rows):
            values.extend(_numbers(f"{path}, line {n_line}", everything, row, chosen))
        if not values:
            return
        yield names, np.array(values).reshape(-1, len(chosen))


def _header(path: Path, file: TextIO) -> tuple[list[str], bool, Iterator[tuple[int, list[str]]]]:
    """Names of all columns, whether the file has them, and the rows with their lines' numbers."""
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
    names = numbered(len(first))
    if all(_is_number(cell) or _is_missing(cell) for cell in first):
        return names, False, itertools.chain([(n_line, first)], lines)
    names = [cell.strip() or name for cell, name in zip(first, names, strict=True)]
    return names, True, lines


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


def _read_npy(path: Path, columns: Sequence[str] | None, block_rows: int) -> Iterator[Table]:
    try:
        values = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OverflowError) as error:
        raise TableError(f"{path} can't be read as an NPY file: {error}") from None
    if values.dtype.kind not in "biuf":
        raise TableError(f"{path} must hold real numbers, it holds {values.dtype}")
    if values.ndim not in (1, 2):
        raise TableError(f"{path} must hold rows and columns, it holds shape {values.shape}")
    table = values[:, None] if values.ndim == 1 else values
    everything = numbered(table.shape[1])
    chosen = _positions(path, everything, columns, False)
    names = [everything[i] for i in chosen]
    yield names, _no_rows(names)
    for start in range(0, len(table), block_rows):
        rows = np.asarray(table[start : start + block_rows])[:, chosen].astype(np.float64)
        _check_finite(path, names, rows, start)
        yield names, rows


def _read_parquet(path: Path, columns: Sequence[str] | None, block_rows: int) -> Iterator[Table]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TableError(f"{path}: {NEEDS_PYARROW}") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            everything = file.schema_arrow.names
            chosen = _positions(path, everything, columns, True)
            names = [everything[i] for i in chosen]
            for i in chosen:
                _check_type(path, file.schema_arrow.field(i))
            yield names, _no_rows(names)
            start = 0
            for batch in file.iter_batches(block_rows, columns=None if columns is None else names):
                parts = batch.columns if columns is None else [batch.column(name) for name in names]
                rows = _parquet_rows(path, names, parts, start)
                yield names, rows
                start += len(rows)
    except pyarrow.ArrowException as error:
        raise TableError(f"{path} can't be read as Parquet: {error}") from None


def _check_type(path: Path, field: Any) -> None:
    from pyarrow import types

    kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    if not any(is_kind(field.type) for is_kind in kinds):
        raise TableError(f"{path}, column {field.name!r}: {field.type} is not a type of number")


def _parquet_rows(path: Path, names: list[str], parts: list[Any], start: int) -> np.ndarray:
    """The values of a batch (n, D), which begins with row `start`."""
    from pyarrow import float64

    values = []
    for name, part in zip(names, parts, strict=True):
        if part.null_count:
            row = start + int(np.argmax(part.is_null().to_numpy(zero_copy_only=False)))
            raise TableError(f"{path}, row {row} (from 0), column {name!r}: the value is missing")
        values.append(part.cast(float64(), safe=False).to_numpy(zero_copy_only=False))
    rows = np.stack(values, axis=-1)
    _check_finite(path, names, rows, start)
    return rows


def _check_finite(path: Path, names: list[str], rows: np.ndarray, start: int) -> None:
    finite = np.isfinite(rows)
    if not finite.all():
        row, i = np.argwhere(~finite)[0]
        where = f"{path}, row {start + row} (from 0), column {names[i]!r}"
        raise TableError(f"{where}: {rows[row, i]}")


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


def numbered(n_columns: int) -> list[str]:
    """Names of columns that have none."""
    return [f"column {i}" for i in range(n_columns)]


def _no_rows(names: list[str]) -> np.ndarray:
    return np.empty((0, len(names)))
