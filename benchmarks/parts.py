"""Reports in parts, of which those named on the command line are measured anew."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from machine import RESULTS, circumstances, write_report


def measure(
    name: str, description: str, parts: dict[str, Callable[[bool], list | dict]], *compared: str
) -> dict | None:
    """The report after measuring some parts, or None where it was only seen that they run.

    Args:
        name: of the report's file.
        description: for the command line.
        parts: what measures each, told whether sizes shall be small.
        compared: distributions whose versions are recorded.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    options = parser.parse_args()
    path = RESULTS / f"{name}.json"
    report = {} if options.quick else read_report(path)
    for part in options.parts or parts:
        rows = parts[part](options.quick)
        report[part] = {**circumstances(*compared), "rows": rows}
        print(part, rows, flush=True)
        if not options.quick:
            write_report(path, report)
    return None if options.quick else report


def read_report(path: Path) -> dict:
    """A report that may have been written before."""
    return json.loads(path.read_text()) if path.exists() else {}
