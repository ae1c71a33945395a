"""What is printed: tables in text and HTML, and lists of numbers in a few digits."""

from collections.abc import Sequence
from html import escape

Cells = Sequence[Sequence[str]]


def text_table(cells: Cells) -> list[str]:
    """Lines with each column flush right, as wide as it has to be."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


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
