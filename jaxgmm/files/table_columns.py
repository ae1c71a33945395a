"""Choice of a table's columns: those named, those a model knows, or all but an index."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

LISTED = 20
# pandas writes an index without a name under no name or this one, and reads the former as the
# latter.
LEADING_INDEX = re.compile(r"(Unnamed: \d+(\.\d+)?)?")
INDEX_ANYWHERE = re.compile(r"__index_level_\d+__")
MADE_UP = re.compile(r"column (\d+)")


class TableError(ValueError):
    """A file that doesn't hold a table of finite numbers; the message says where it fails."""


class MissingValueError(TableError):
    """A cell that is empty, NA or the like."""


class NotANumberError(TableError):
    """A cell, or a whole column, that holds something else than numbers.

    Attributes:
        numeric: names of the columns that hold numbers there.
        remedy: what to do about numbers in another notation, if it is one.
    """

    def __init__(self, message: str, numeric: Sequence[str], remedy: str = "") -> None:
        super().__init__(message)
        self.numeric, self.remedy = [*numeric], remedy


class Header(NamedTuple):
    """The header of a table: what is known before its rows are read.

    Attributes:
        path: where it is.
        names: of its columns, made up where the file has none.
        has_names: whether the file has names.
        row_labels: positions of columns that number or label rows: the index of a data frame.
    """

    path: Path
    names: list[str]
    has_names: bool
    row_labels: list[int]


class Choice(NamedTuple):
    """A choice of columns, and of their order.

    Attributes:
        columns: names, or numbers from 0 where no column has such a name; None for all but an
            index.
        expected: names that a model has for its features. Columns with these names are used, in
            this order; columns of a table without names are those of the model as they stand.
        notify: is told, in a sentence, of what is left out that nobody asked to leave out.
    """

    columns: Sequence[str] | None = None
    expected: Sequence[str] | None = None
    notify: Callable[[str], None] = warnings.warn

    def of(self, header: Header) -> list[int]:
        """Positions of the columns; TableError if there is no such choice."""
        if self.expected is None:
            return self._chosen(header)
        if header.has_names:
            return self._matching(header, self.expected)
        return self._standing(header, self.expected)

    def _chosen(self, header: Header) -> list[int]:
        """The columns asked for, or all but an index."""
        if self.columns is not None:
            return _positions(header, self.columns)
        kept = [i for i in range(len(header.names)) if i not in header.row_labels]
        left_out = listed([header.names[i] for i in header.row_labels], repr)
        if left_out and not kept:
            raise TableError(f"{header.path} has no columns but an index of rows, {left_out}")
        if left_out:
            self.notify(
                f"{header.path}: left out {left_out}, an index of the rows; to use it, name it "
                "in --columns"
            )
        return kept

    def _matching(self, header: Header, expected: Sequence[str]) -> list[int]:
        """The columns with the model's names, of which blanks at the ends don't count."""
        everything = range(len(header.names))
        among = everything if self.columns is None else _positions(header, self.columns)
        if self.columns is not None and _made_up(expected) is not None:
            return [*among]
        expected = [name.strip() for name in expected]
        place = {header.names[i].strip(): i for i in among}
        counts = Counter(header.names[i].strip() for i in among)
        missing = [name for name in expected if name not in place]
        if missing:
            raise TableError(
                f"{header.path} has no column {listed(missing, repr)}, which the model was fitted "
                f"to; {'its' if self.columns is None else 'the chosen'} columns are "
                f"{listed([*place])}"
            )
        for name in expected:
            if counts[name] > 1:
                raise TableError(f"{header.path} has {counts[name]} columns named {name!r}")
        if self.columns is not None and len(place) > len(expected):
            unknown = sorted({*place} - {*expected})
            raise TableError(
                f"the model was not fitted to {listed(unknown, repr)} of {header.path}, but to "
                f"{listed(expected)}"
            )
        return [place[name] for name in expected]

    def _standing(self, header: Header, expected: Sequence[str]) -> list[int]:
        """The columns of a table without names."""
        numbers = _made_up(expected)
        in_order = [*range(len(expected))]
        if self.columns is not None or numbers is None or numbers == in_order:
            return self._chosen(header)
        if len(header.names) == len(expected):
            raise TableError(
                f"{header.path} has no names, and the model was fitted to columns "
                f"{listed([*map(str, numbers)])} of a table; say with --columns where they are, "
                f"--columns {listed([*map(str, in_order)], separator=',')} if they stand in the "
                "model's order"
            )
        return _positions(header, [*map(str, numbers)])


def _positions(header: Header, columns: Sequence[str]) -> list[int]:
    """The positions of columns that are given by name or number."""
    names = header.names
    counts = Counter(names)
    place = {name: i for i, name in enumerate(names)}
    found = []
    for column in columns:
        is_number = column.isascii() and column.isdigit() and int(column) < len(names)
        if column not in place and not is_number:
            known = names if header.has_names else [str(i) for i in range(len(names))]
            raise TableError(
                f"{header.path} has no column {column!r}; its columns are {listed(known)}"
            )
        if counts[column] > 1:
            raise TableError(f"{header.path} has {counts[column]} columns named {column!r}")
        found.append(place[column] if column in place else int(column))
    if not found or len(set(found)) < len(found):
        raise TableError(f"expected different columns, got {', '.join(columns) or 'none'}")
    return found


def numbered(n_columns: int) -> list[str]:
    """Names of columns that have none."""
    return [f"column {i}" for i in range(n_columns)]


def _made_up(names: Sequence[str]) -> list[int] | None:
    """The numbers of columns without names, as `numbered` calls them; None if they have names."""
    found = [MADE_UP.fullmatch(name) for name in names]
    return None if None in found else [int(match[1]) for match in found if match]


def listed(names: Sequence[str], show: Callable[[str], str] = str, *, separator: str = ", ") -> str:
    """The first of many names."""
    return separator.join(map(show, names[:LISTED])) + f"{separator}..." * (len(names) > LISTED)


def index_columns(names: Sequence[str]) -> list[int]:
    """Positions of columns that pandas and R write without a name, or call an index."""
    leading = next(
        (i for i, name in enumerate(names) if not LEADING_INDEX.fullmatch(name)), len(names)
    )
    return [i for i, name in enumerate(names) if i < leading or INDEX_ANYWHERE.fullmatch(name)]
