"""What a measurement was made on, and where its report goes."""

import datetime
import json
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def threads() -> int:
    """How many threads this process may run at a time."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Python's version, and those of installed distributions."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in distributions
    }


def circumstances(*distributions: str) -> dict:
    """The head of a report: date, machine, and versions of what was compared."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "threads": threads(),
        "platform": platform.platform(),
        "versions": versions(distributions),
    }


def write_report(path: Path, report: dict) -> None:
    """A report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
