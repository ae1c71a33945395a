"""Tables in text: a row on each line, cells between commas, semicolons or tabs."""

import bz2
import codecs
import csv
import gzip
import io
import itertools
import lzma
import math
import re
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

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

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
DELIMITERS = (",", ";", "\t")
# Between delimiters; a quote may be the last thing of a line, and its field go on in the next.
QUOTED = re.compile(r'(?:^|(?<=[,;\t]))\s*"(?:[^"]|"")*(?:"|$)')
WITH_COMMA = re.compile(r"[+-]?\d*(,\d+)+(\.\d*)?")
HEAD_BYTES = 1024

# By what a file begins with.
DECOMPRESSORS: dict[bytes, Callable[[Any], Any]] = {
    rb"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    rb"BZh[1-9]1AY&SY": bz2.BZ2File,
    rb"\xfd7zXZ\0": lzma.LZMAFile,
}
FOREIGN = {
    rb"PAR1\x15": "is a Parquet file; it must be a file whose name ends in .parquet",
    rb"\x93NUMPY": "is a NumPy array; it must be a file whose name ends in .npy",
    rb"\x28\xb5\x2f\xfd": "is compressed by Zstandard; decompress it first, with zstd -d",
    rb"\xd0\xcf\x11\xe0": "is an Excel workbook; save its table as CSV",
    rb"\x89HDF": "is an HDF5 file; save its table as CSV, NPY or Parquet",
}
ZIP = rb"PK\x03\x04"
# The longer marks first: that of UTF-32 begins with that of UTF-16.
ENCODINGS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
NOT_TEXT = "is not text; arrays must be named .npy and Parquet files .parquet"


def read_text(
    path: Path, choice: Choice, block_rows: int, allow_missing: bool
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Parts of a table in text, the first without rows; see `tables.read_blocks`."""
    try:
        with _opened(path) as file:
            yield from _parse(path, file, choice, block_rows, allow_missing)
    except UnicodeDecodeError as error:
        raise TableError(f"{path} {_undecoded(error)}") from None
    except csv.Error as error:
        raise TableError(f"{path} can't be read as CSV: {error}") from None
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise TableError(f"{path} can't be decompressed: {error}") from None


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """A file as text, decompressed; its first bytes say how, since a pipe has no other name."""
    with ExitStack() as stack:
        file: Any = stack.enter_context(open(path, "rb"))
        head = file.peek(HEAD_BYTES)
        for signature, complaint in FOREIGN.items():
            if re.match(signature, head):
                raise TableError(f"{path} {complaint}")
        for signature, decompressor in DECOMPRESSORS.items():
            if re.match(signature, head):
                file = stack.enter_context(decompressor(file))
        if re.match(ZIP, head):
            file = stack.enter_context(_unzipped(path, stack, file))
        encoding = _encoding(path, file.peek(HEAD_BYTES)[:HEAD_BYTES])
        yield stack.enter_context(io.TextIOWrapper(file, encoding, newline=""))


def _unzipped(path: Path, stack: ExitStack, file: IO[bytes]) -> IO[bytes]:
    """The one file in an archive."""
    seekable = file if file.seekable() else io.BytesIO(file.read())
    archive = stack.enter_context(zipfile.ZipFile(seekable))
    members = [
        member
        for member in archive.infolist()
        if not member.is_dir() and not member.filename.startswith("__MACOSX/")
    ]
    names = [member.filename for member in members]
    if "[Content_Types].xml" in names:
        raise TableError(f"{path} is an Excel workbook; save its table as CSV")
    if names and all(name.endswith(".npy") for name in names):
        raise TableError(f"{path} is an archive of arrays; save one of them with numpy.save")
    if len(names) != 1 or members[0].flag_bits & 1:
        what = f"{len(names)} files" if len(names) != 1 else "an encrypted file"
        raise TableError(f"{path} is an archive of {what}; unpack it first")
    return archive.open(members[0])


def _encoding(path: Path, head: bytes) -> str:
    """The encoding of a text that begins so."""
    for mark, encoding in ENCODINGS.items():
        if head.startswith(mark):
            return encoding
    for encoding, zeros, others in (
        ("utf-16-le", head[1::2], head[::2]),
        ("utf-16-be", head[::2], head[1::2]),
    ):
        if zeros and not any(zeros) and all(others):
            return encoding
    if head.count(0) > len(head) // 8:
        raise TableError(f"{path} {NOT_TEXT}")
    return "utf-8"


def _undecoded(error: UnicodeDecodeError) -> str:
    """The complaint about text that can't be decoded."""
    if 0 in error.object[:HEAD_BYTES] and error.encoding == "utf-8":
        return NOT_TEXT
    if error.encoding != "utf-8":
        return f"is not {error.encoding.upper()}, though it begins so: {error.reason}"
    return (
        f"is not UTF-8 (it holds the byte {error.object[error.start]:#x}, perhaps of Latin-1 or "
        f"Windows-1252); save it as UTF-8, for example with iconv -f WINDOWS-1252 -t UTF-8"
    )


def _parse(
    path: Path, file: TextIO, choice: Choice, block_rows: int, allow_missing: bool
) -> Iterator[tuple[list[str], np.ndarray]]:
    header, lines = _header(path, file, [name.strip() for name in choice.expected or ()])
    chosen = choice.of(header)
    names = [header.names[i] for i in chosen]
    yield names, np.empty((0, len(names)))
    while True:
        values = array("d")
        for n_line, row in itertools.islice(lines, block_rows):
            values.extend(_numbers(f"{path}, line {n_line}", header, row, chosen, allow_missing))
        if not values:
            return
        yield names, np.array(values).reshape(-1, len(chosen))


def _header(
    path: Path, file: TextIO, expected: list[str]
) -> tuple[Header, Iterator[tuple[int, list[str]]]]:
    """The header that the first line is, and the rows with their lines' numbers.

    The line is a header if it holds all expected names, be they numbers, or else a cell that is no
    number.
    """
    n_before, start = next(((n, line) for n, line in enumerate(file) if line.strip()), (0, ""))
    if not start:
        raise TableError(f"{path} is empty")
    delimiter = None
    if start.strip().lower() in [f"sep={mark}" for mark in DELIMITERS] + ["sep="]:
        # Excel's first line, which says what stands between cells.
        delimiter = start.strip("\r\n")[4:5] or "\t"
        n_before, start = n_before + 1, next(file, "")
    second = list(itertools.islice(file, 1))
    latest = ""

    def raw_lines() -> Iterator[str]:
        nonlocal latest
        for line in itertools.chain([start], second, file):
            latest = line
            yield line

    reader = csv.reader(
        raw_lines(),
        delimiter=delimiter or _delimiter(start, *second),
        skipinitialspace=True,
        strict=True,
    )
    # A row of one cell may be empty, in quotes; an empty line is no row.
    lines: Iterator[tuple[int, list[str]]] = (
        (n_before + reader.line_num, row) for row in reader if len(row) > 1 or latest.strip()
    )
    n_line, first = next(lines, (n_before + 1, [""]))
    cells = [cell.strip() for cell in first]
    made_up = numbered(len(first))
    # The names of a frame without names are numbers, with nothing above its index. Without an index
    # two of them might as well be data.
    counted = [*map(str, range(len(cells)))]
    is_frame = (len(cells) > 1 and cells == ["", *counted[:-1]]) or (
        len(cells) > 2 and cells == counted
    )
    is_known = bool(expected) and {*expected} <= {*cells}
    if not (is_frame or is_known) and all(map(_is_number_or_missing, cells)):
        return Header(path, made_up, False, []), itertools.chain([(n_line, first)], lines)
    if cells[0] not in expected:
        cells[0] = cells[0].removeprefix("#").strip()
    names = [cell or name for cell, name in zip(cells, made_up, strict=True)]
    return Header(path, names, True, index_columns(cells)), lines


def _delimiter(first: str, second: str = "") -> str:
    """The delimiter of cells: as often in both lines, and more often than others."""
    unquoted = [QUOTED.sub("", line) for line in (first, second)]

    def score(delimiter: str) -> tuple[bool, int]:
        count, count_below = (line.count(delimiter) for line in unquoted)
        return count == count_below > 0, count

    return max(DELIMITERS, key=score)


def _numbers(
    where: str, header: Header, row: list[str], chosen: list[int], allow_missing: bool
) -> list[float]:
    """The chosen cells of one row; NaN for missing ones."""
    if len(row) != len(header.names):
        count = f"{len(row)} cell{'s' * (len(row) != 1)}"
        raise TableError(f"{where}: the row has {count}, expected {len(header.names)}")
    cells = [row[i] for i in chosen]
    try:
        numbers = [*map(float, cells)]
        if all(map(math.isfinite, numbers)) and _is_plain("".join(cells)):
            return numbers
    except ValueError:
        pass
    return [_number(where, header, row, i, allow_missing) for i in chosen]


def _number(where: str, header: Header, row: list[str], i: int, allow_missing: bool) -> float:
    """The value of one cell."""
    cell = row[i].strip()
    where = f"{where}, column {header.names[i]!r}"
    if _is_missing(cell):
        if allow_missing:
            return math.nan
        raise MissingValueError(f"{where}: the value is missing ({cell!r})")
    if not _is_number(cell):
        numeric = [name for name, other in zip(header.names, row, strict=True) if _is_number(other)]
        raise NotANumberError(f"{where}: {cell[:40]!r} is not a number", numeric, _remedy(cell))
    if not math.isfinite(float(cell)):
        raise TableError(f"{where}: {cell[:40]!r} is not finite")
    return float(cell)


def _remedy(cell: str) -> str:
    if WITH_COMMA.fullmatch(cell):
        return "write numbers without commas, and with a point before decimals"
    if len(cell.split()) > 1 and all(map(_is_number, cell.split())):
        return "separate cells by commas, semicolons or tabs"
    return ""


def _is_plain(text: str) -> bool:
    """Whether Python reads no more as numbers than people do: not 1_000, nor digits of others."""
    return text.isascii() and "_" not in text


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return _is_plain(cell.strip())


def _is_missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


def _is_number_or_missing(cell: str) -> bool:
    return _is_number(cell) or _is_missing(cell)
