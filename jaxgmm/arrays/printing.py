"""What is printed: tables in text and HTML, and lists of numbers in a few digits."""

import itertools
from collections.abc import Sequence
from html import escape

Cells = Sequence[Sequence[str]]


def text_table(cells: Cells, even: bool = False) -> list[str]:
    """Lines with the first column flush left and the others flush right.

    Args:
        cells: rows, which may end early. One of a single cell is a heading, as long as it may be.
        even: whether all columns but the first are as wide as the widest.
    """
    columns = itertools.zip_longest(*(row for row in cells if len(row) > 1), fillvalue="")
    first, *rest = [max(map(len, column)) for column in columns] or [0]
    widths = [max(rest, default=0)] * len(rest) if even else rest

    def line(row: Sequence[str]) -> str:
        others = zip(row[1:], widths, strict=False)
        parts = [row[0].ljust(first), *(cell.rjust(width) for cell, width in others)]
        return "  ".join(parts).rstrip()

    return [line(row) if row else "" for row in cells]


def html_table(title: str, cells: Cells, marked: int | None = None) -> str:
    """A table for a notebook, under a title, with a header and perhaps a row that is marked.

    Args:
        title: in words.
        cells: the header, and rows.
        marked: the number of a row, counted without the header.
    """

    def row(number: int, kind: str, values: Sequence[str]) -> str:
        bold = ' style="font-weight: bold"' if number == marked else ""
        return f"<tr{bold}>{''.join(f'<{kind}>{escape(value)}</{kind}>' for value in values)}</tr>"

    header, *body = cells
    rows = "".join(row(i, "td", values) for i, values in enumerate(body))
    head = row(-1, "th", header)
    return f"<p>{escape(title)}</p><table><thead>{head}</thead><tbody>{rows}</tbody></table>"


def some_numbers(values: Sequence[float], most: int) -> str:
    """The first of some numbers, in four digits each."""
    shown = [f"{value:.4g}" for value in values[:most]]
    return ", ".join(shown + ["…"] * (len(values) > most))
