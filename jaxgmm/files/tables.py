"""Tables of numbers from files: CSV, NPY and Parquet, with every defect named by its place."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxgmm.files.table_columns import (
    Choice,
    Header,
    MissingValueError,
    NotANumberError,
    TableError,
    index_columns,
    numbered,
)
from jaxgmm.files.text_tables import read_text

BLOCK_ROWS = 65_536
NEEDS_PYARROW = "Parquet files need pyarrow: pip install pyarrow"

Table = tuple[list[str], np.ndarray]


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    allow_missing: bool = False,
    notify: Callable[[str], None] = warnings.warn,
) -> Table:
    """The names and the values of a table's columns.

    Args:
        path: the file, see `read_blocks`.
        columns: which columns, see `read_blocks`.
        allow_missing: see `read_blocks`.
        notify: see `read_blocks`.

    Returns:
        D names, and the values (N, D) float64, all finite, or NaN where missing ones are allowed.

    Raises:
        TableError: as in `read_blocks`.
    """
    names, blocks = read_blocks(
        path, columns, BLOCK_ROWS, allow_missing=allow_missing, notify=notify
    )
    return names, np.concatenate(list(blocks))


def read_blocks(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None,
    block_rows: int,
    *,
    expected: Sequence[str] | None = None,
    allow_missing: bool = False,
    notify: Callable[[str], None] = warnings.warn,
) -> tuple[list[str], Iterator[np.ndarray]]:
    """The names of a table's columns, and their values a block of rows after the other.

    The name's ending decides: `.npy` is NumPy's format (an array with one axis is one column),
    `.parquet` and `.pq` are Parquet, and everything else is text with a row on each line, cells
    between commas, semicolons or tabs, and a header if the first line holds a cell that is not a
    number. Empty lines are skipped. Text is UTF-8, or UTF-16 or UTF-32 with their mark, and may be
    compressed by gzip, bzip2 or xz, or be the one file of a zip archive.

    Args:
        path: the file.
        columns: which columns, in this order, by name, or by number from 0 if there is no such
            name. None for all but the index of a data frame, that is, what pandas says it is, or
            first columns without a name beside others with names. Columns that are left out may
            hold anything.
        block_rows: most rows of a block.
        expected: names of features; columns with these names are used, in this order, and further
            ones ignored. Columns of a table without names are used as they stand.
        allow_missing: whether missing values are NaN, rather than refused.
        notify: is told, in a sentence, that an index was left out.

    Returns:
        D names, and an iterator of values (n, D) float64, all finite or NaN, which reads no further
        than it is asked to.

    Raises:
        TableError: there is no such file or column; or, from the iterator, a row is too short or
            too long, a cell is missing, not finite or not a number, or there are no rows.
    """
    parts = _parts(Path(path), Choice(columns, expected, notify), block_rows, allow_missing)
    names, _ = next(parts)
    return names, (rows for _, rows in parts)


def old_faithful(columns: Sequence[str] | None = None) -> Table:
    """The Old Faithful geyser: length of eruptions and waiting time to the next, in minutes.

    Args:
        columns: as in `read_table`.

    Returns:
        Names, and values (272, 2).

    Example:
        >>> from jaxgmm.files.tables import old_faithful
        >>> names, rows = old_faithful()
        >>> names, rows.shape
        (['eruptions', 'waiting'], (272, 2))

    Source: Azzalini & Bowman 1990, in the version that comes with R.
    """
    file = resources.files("jaxgmm") / "datasets" / "old_faithful.csv"
    with resources.as_file(file) as path:
        return read_table(path, columns)


def _parts(path: Path, choice: Choice, block_rows: int, allow_missing: bool) -> Iterator[Table]:
    """The table in parts; the first has no rows, and comes before any is read."""
    readers = {".npy": _read_npy, ".parquet": _read_parquet, ".pq": _read_parquet}
    read = readers.get(path.suffix.lower(), read_text)
    is_empty = True
    try:
        if path.is_dir():
            raise TableError(f"{path} is a directory, expected a file")
        for names, rows in read(path, choice, block_rows, allow_missing):
            is_empty = is_empty and rows.size == 0
            yield names, rows
    except FileNotFoundError:
        raise TableError(f"{path}: no such file") from None
    except OSError as error:
        raise TableError(f"{path} can't be read: {error.strerror or error}") from None
    if is_empty:
        raise TableError(f"{path} holds no rows of data")


def _read_npy(path: Path, choice: Choice, block_rows: int, allow_missing: bool) -> Iterator[Table]:
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
    chosen = choice.of(Header(path, everything, False, []))
    names = [everything[i] for i in chosen]
    yield names, _no_rows(names)
    for start in range(0, len(table), block_rows):
        rows = np.asarray(table[start : start + block_rows])[:, chosen].astype(np.float64)
        _check_finite(path, names, rows, start, allow_missing)
        yield names, rows


def _read_parquet(
    path: Path, choice: Choice, block_rows: int, allow_missing: bool
) -> Iterator[Table]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TableError(f"{path}: {NEEDS_PYARROW}") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            everything = list(schema.names)
            chosen = choice.of(Header(path, everything, True, _index_of(schema)))
            names = [everything[i] for i in chosen]
            _check_types(path, schema, chosen)
            yield names, _no_rows(names)
            start = 0
            # Names that several columns have can't be asked for.
            distinct = len(set(everything)) == len(everything)
            for batch in file.iter_batches(block_rows, columns=names if distinct else None):
                parts = [batch.column(everything[i] if distinct else i) for i in chosen]
                rows = _parquet_rows(path, names, parts, start, allow_missing)
                yield names, rows
                start += len(rows)
    except pyarrow.ArrowException as error:
        raise TableError(f"{path} can't be read as Parquet: {error}") from None


def _index_of(schema: Any) -> list[int]:
    """Positions of the columns that pandas has written as an index."""
    try:
        described = (schema.pandas_metadata or {}).get("index_columns", [])
        own = [name for name in described if isinstance(name, str)]
    except (ValueError, AttributeError, TypeError):
        own = []
    named = [i for i, name in enumerate(schema.names) if name in own]
    return sorted({*named, *index_columns(schema.names)})


def _check_types(path: Path, schema: Any, chosen: list[int]) -> None:
    from pyarrow import types

    kinds = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    numeric = [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]
    for field in map(schema.field, chosen):
        if not any(is_kind(field.type) for is_kind in kinds):
            raise NotANumberError(
                f"{path}, column {field.name!r}: {field.type} is not a type of number", numeric
            )


def _parquet_rows(
    path: Path, names: list[str], parts: list[Any], start: int, allow_missing: bool
) -> np.ndarray:
    """The values of a batch (n, D), which begins with row `start`."""
    from pyarrow import float64

    values = []
    for name, part in zip(names, parts, strict=True):
        if part.null_count and not allow_missing:
            row = start + int(np.argmax(part.is_null().to_numpy(zero_copy_only=False)))
            raise MissingValueError(
                f"{path}, row {row} (from 0), column {name!r}: the value is missing"
            )
        values.append(part.cast(float64(), safe=False).to_numpy(zero_copy_only=False))
    rows = np.stack(values, axis=-1)
    _check_finite(path, names, rows, start, allow_missing)
    return rows


def _check_finite(
    path: Path, names: list[str], rows: np.ndarray, start: int, allow_missing: bool
) -> None:
    """TableError for infinity, and for NaN where no values may be missing."""
    bad = np.isinf(rows) if allow_missing else ~np.isfinite(rows)
    if bad.any():
        row, i = np.argwhere(bad)[0]
        error = MissingValueError if np.isnan(rows[row, i]) else TableError
        where = f"{path}, row {start + row} (from 0), column {names[i]!r}"
        raise error(f"{where}: {rows[row, i]}")


def _no_rows(names: list[str]) -> np.ndarray:
    return np.empty((0, len(names)))
