"""Tables in Markdown of what the speed benchmark found.

    python benchmarks/speed_tables.py [report.json]

prints them anew from a report.
"""

import json
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import numpy as np
from machine import RESULTS

OURS = "jaxgmm"


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def shape(row: dict) -> str:
    """N × D, K."""
    return f"{row['n']:,} × {row['d']}, {row['k']}"


def ratio(row: dict, library: str) -> float | None:
    """How many times as long as jaxgmm a library takes."""
    cell, ours = row["libraries"].get(library, {}), row["libraries"][OURS]
    if "seconds" not in cell or "seconds" not in ours:
        return None
    return cell["seconds"] / ours["seconds"]


def number(value: float) -> str:
    """Three significant digits without an exponent."""
    return (
        f"{value:.{max(0, 2 - int(np.floor(np.log10(value))))}f}" if value > 0 else f"{value:.3g}"
    )


def time_cell(row: dict, library: str) -> str:
    """Milliseconds, the spread, and the ratio to jaxgmm."""
    cell = row["libraries"].get(library, {})
    if "seconds" not in cell:
        return ""
    median, low, high = (
        number(1e3 * cell[key]) for key in ("seconds", "seconds_min", "seconds_max")
    )
    times = ratio(row, library)
    suffix = "" if library == OURS or times is None else f", {number(times)}×"
    return f"{median} ({low}–{high}){suffix}"


def field_cell(key: str, form: Callable[[float], str]) -> Callable[[dict, str], str]:
    """Shows one field of a cell."""

    def show(row: dict, library: str) -> str:
        cell = row["libraries"].get(library, {})
        if key not in cell:
            return ""
        return "not finite" if cell[key] is None else form(cell[key])

    return show


def heading(row: dict) -> str:
    """Covariance type, dtype, and what the clusters are like."""
    return ", ".join(row[key] for key in ("covariance_type", "dtype", "kind") if key in row)


def side_by_side(rows: list[dict]) -> str:
    """jaxgmm's milliseconds for each kind of clusters, and the multiples that two others take."""
    kinds = list(dict.fromkeys(row.get("kind", "round") for row in rows))
    places = list(dict.fromkeys((row["covariance_type"], row["dtype"], shape(row)) for row in rows))
    found = {
        (row["covariance_type"], row["dtype"], shape(row), row.get("kind", "round")): row
        for row in rows
    }
    cells = []
    for place in places:
        line = [", ".join(place)]
        of_place = [found.get((*place, name)) for name in kinds]
        for row in of_place:
            ours = row["libraries"][OURS] if row else {}
            if "seconds" not in ours:
                line.append("")
                continue
            ratios = (ratio(row, peer) for peer in ("oneDAL", "scikit-learn"))
            times = ", ".join("" if times is None else f"{number(times)}×" for times in ratios)
            line.append(f"{number(1e3 * ours['seconds'])} ({times})")
        cells.append(line)
    return table(["N × D, K", *kinds], cells)


def over_kinds(rows: list[dict]) -> str:
    """By kind of clusters: jaxgmm's longest time in multiples of that for round ones of the same
    shape, and the geometric mean and the least of the multiples of it that two others take."""

    def place(row: dict) -> tuple[str, str, str]:
        return row["covariance_type"], row["dtype"], shape(row)

    def own(row: dict) -> float:
        return row["libraries"][OURS].get("seconds", np.nan)

    def kind(row: dict) -> str:
        return row.get("kind", "round")

    round_ones = {place(row): own(row) for row in rows if kind(row) == "round"}
    kinds = dict.fromkeys(map(kind, rows))
    pairs = [("round", "correlated")] if {"round", "correlated"} <= kinds.keys() else []
    cells = []
    for chosen in [*((name,) for name in kinds), *pairs]:
        group = [row for row in rows if kind(row) in chosen]
        times = (own(row) / round_ones.get(place(row), np.nan) for row in group)
        longest = max((value for value in times if value > 0), default=None)
        line = [", ".join(chosen), "" if longest is None else f"{number(longest)}×"]
        for peer in ("oneDAL", "scikit-learn"):
            ratios = [value for row in group if (value := ratio(row, peer)) is not None]
            least = f", {number(min(ratios))}×" if ratios else ""
            line.append(geometric_mean(group, peer) + least)
        cells.append(line)
    return table(["kind", "longest to round", "oneDAL", "scikit-learn"], cells)


def present(rows: list[dict]) -> list[str]:
    """Libraries that any row has something about, jaxgmm first."""
    return list(dict.fromkeys(library for row in rows for library in row["libraries"]))


def times(rows: list[dict]) -> list[str]:
    """A table of times for each covariance type and dtype, with the geometric means below."""
    parts = []
    for name, rows_of_kind in groupby(rows, heading):
        group = list(rows_of_kind)
        libraries = [
            library
            for library in present(group)
            if any("seconds" in row["libraries"].get(library, {}) for row in group)
        ]
        cells = [
            [shape(row), *(time_cell(row, library) for library in libraries), rate_cell(row)]
            for row in group
        ]
        means = [geometric_mean(group, library) for library in libraries]
        cells.append(["geometric mean of ratios", *means, ""])
        parts += [f"**{name}**", table(["N × D, K", *libraries, "rate"], cells)]
    return parts


def geometric_mean(rows: list[dict], library: str) -> str:
    """Of a library's times over jaxgmm's, where both have one."""
    ratios = [value for row in rows if (value := ratio(row, library)) is not None]
    if library == OURS or not ratios:
        return ""
    missing = f" ({len(ratios)} of {len(rows)})" if len(ratios) < len(rows) else ""
    return f"{number(float(np.exp(np.mean(np.log(ratios)))))}×{missing}"


def rate_cell(row: dict) -> str:
    """GFlop/s that jaxgmm reaches and that a matrix product does."""
    roofline = row["roofline"]
    if "fraction" not in roofline:
        return ""
    reached, peak = roofline["flop_per_second"] / 1e9, roofline["product_flop_per_second"] / 1e9
    return f"{number(reached)} / {number(peak)} = {100 * roofline['fraction']:.0f} %"


def of_every_row(rows: list[dict], show: Callable[[dict, str], str], *more: str) -> str:
    """One table over all rows: what `show` says of each library, and further columns."""
    libraries = present(rows)
    columns = {"data, MB": lambda row: f"{row['data_bytes'] / 1e6:.1f}"}
    cells = [
        [
            f"{heading(row)}, {shape(row)}",
            *(columns[name](row) for name in more),
            *(show(row, library) for library in libraries),
        ]
        for row in rows
    ]
    return table(["", *more, *libraries], cells)


def empty_cells(rows: list[dict]) -> list[str]:
    """Why cells are empty, each reason once."""
    places: dict[str, list[str]] = {}
    for row in rows:
        for library, cell in row["libraries"].items():
            if "reason" in cell:
                where = f"{heading(row)}, {shape(row)}"
                places.setdefault(f"{library}: {cell['reason']}", []).append(where)
    whole = len(rows)
    return [
        f"* {reason}" + ("" if len(where) == whole else f" ({'; '.join(where)})")
        for reason, where in places.items()
    ]


def preamble(report: dict) -> str:
    """On what, with what."""
    versions = dict(report["versions"])
    for row in report["rows"]:
        for cell in row["libraries"].values():
            for name, version in cell.get("versions", {}).items():
                versions.setdefault(name, version)
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{report['date']}, {report['processor']}, {report['threads']} threads. {listed}."


def markdown(report: dict) -> str:
    """The whole document."""
    rows = report["rows"]
    difference = field_cell("relative_difference", lambda value: f"{value:.0e}")
    first = field_cell("first_call_overhead_seconds", lambda value: f"{value:.2f}")
    peak = field_cell("peak_bytes", lambda value: f"{value / 1e6:.0f}")
    parts = [
        "<!-- Written by benchmarks/speed.py. -->",
        preamble(report),
        f"Milliseconds for one iteration of EM: median (least–most) of {report['repeats']} turns,"
        " and the multiple of jaxgmm's time. Rate: GFlop/s of jaxgmm's step, counting only its two"
        " matrix products, and of a large matrix product in the same turns.",
        "jaxgmm by kind of clusters, and the multiples of it that oneDAL and scikit-learn take:",
        side_by_side(rows),
        "Over all types, dtypes and shapes, by kind: jaxgmm's longest time in multiples of that of"
        " round clusters, and the geometric mean of the multiples that others take, and the least:",
        over_kinds(rows),
        *times(rows),
        "Relative difference of the log-likelihood from that of float64 EM, after"
        f" {report['iterations_compared']} iterations:",
        of_every_row(rows, difference),
        "Seconds that the first call takes more than the second, mostly compilation:",
        of_every_row(rows, first),
        "Peak resident memory of the process, in MB, everything included:",
        of_every_row(rows, peak, "data, MB"),
    ]
    reasons = empty_cells(rows)
    if reasons:
        parts += ["Empty cells:", "\n".join(reasons)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS / "speed.json"
    print(markdown(json.loads(path.read_text())), end="")
