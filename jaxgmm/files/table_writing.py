"""Tables of numbers into files, a block of rows after the other: CSV, NPY and Parquet."""

import csv
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from jaxgmm.files.storage import written_atomically
from jaxgmm.files.table_columns import TableError
from jaxgmm.files.tables import NEEDS_PYARROW

Block = Sequence[np.ndarray]
Writer = Callable[[BinaryIO, Sequence[str], Iterator[Block]], None]


def write_blocks(
    path: str | os.PathLike[str], names: Sequence[str], blocks: Iterable[Block]
) -> None:
    """Writes a table, of which only a block is held in memory at a time.

    The file appears whole or not at all: it is written under another name in the same folder and
    then renamed. `read_blocks` gives the same numbers, exactly.

    Args:
        path: where to, in the format that its ending says; an existing file is replaced.
        names: of the columns, different ones. NPY has no place for them; there a single column
            becomes an array with one axis, and others have the widest of their dtypes.
        blocks: one at least, each an array (n,) for each column. Their dtypes are those of the
            first block. Masked arrays have cells without a value, which are empty in CSV, null in
            Parquet, and NaN in NPY, where masked integers are therefore float64.

    Raises:
        TableError: the ending says no format, or pyarrow is missing.
        OSError: the place can't be written.
    """
    write = writer_for(path)
    with written_atomically(Path(path)) as file:
        write(file, names, iter(blocks))


def writer_for(path: str | os.PathLike[str]) -> Writer:
    """The writer of the format that a file name's ending says; TableError lists those there are."""
    ending = Path(path).suffix.lower()
    if ending not in WRITERS:
        raise TableError(f"a table's name must end in {', '.join(WRITERS)}; got {path}")
    if WRITERS[ending] is _write_parquet:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise TableError(f"{path}: {NEEDS_PYARROW}") from None
    return WRITERS[ending]


def write_text(file: TextIO, names: Sequence[str], blocks: Iterable[Block]) -> None:
    """CSV with a header, and numbers with all their digits; nothing if the first block fails.

    Args:
        file: open for writing.
        names: of the columns.
        blocks: as in `write_blocks`.
    """
    blocks = iter(blocks)
    first = next(blocks)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(names)
    for block in itertools.chain([first], blocks):
        writer.writerows(zip(*(column.tolist() for column in block), strict=True))


def _write_csv(file: BinaryIO, names: Sequence[str], blocks: Iterator[Block]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    write_text(text, names, blocks)
    text.detach()


def _write_npy(file: BinaryIO, names: Sequence[str], blocks: Iterator[Block]) -> None:
    first = next(blocks)
    dtype = np.result_type(*first)
    if dtype.kind != "f" and any(isinstance(column, np.ma.MaskedArray) for column in first):
        dtype = np.dtype(np.float64)
    fill_value = np.nan if dtype.kind == "f" else 0
    n_rows = 0
    _write_npy_header(file, dtype, (n_rows, len(names)))
    for block in itertools.chain([first], blocks):
        rows = np.ma.stack(block, axis=-1).astype(dtype)
        file.write(np.ma.filled(rows, fill_value).tobytes())
        n_rows += len(block[0])
    file.seek(0)
    _write_npy_header(file, dtype, (n_rows, len(names)))


def _write_npy_header(file: BinaryIO, dtype: np.dtype, shape: tuple[int, int]) -> None:
    """NumPy leaves room for the first axis to grow, so that the header's length is the same."""
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape[:1] if shape[1] == 1 else shape,
    }
    np.lib.format.write_array_header_1_0(file, header)


def _write_parquet(file: BinaryIO, names: Sequence[str], blocks: Iterator[Block]) -> None:
    import pyarrow
    import pyarrow.parquet

    tables = (pyarrow.table([*block], names=[*names]) for block in blocks)
    first = next(tables)
    with pyarrow.parquet.ParquetWriter(file, first.schema) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)


WRITERS: dict[str, Writer] = {
    ".csv": _write_csv,
    ".npy": _write_npy,
    ".parquet": _write_parquet,
    ".pq": _write_parquet,
}
