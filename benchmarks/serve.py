"""The process in which a library works.

`workers.py` starts `python serve.py LIBRARY` with an interpreter that has the library, writes
commands to it and reads answers, each JSON on a line.
"""

import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
from machine import versions
from peers import LIBRARIES, Problem, Unsupported


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss begins with that of the process which started this one.
        lines = status.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def load(library: str, path: str) -> tuple[object, dict]:
    """An adapter for the problem in a file."""
    with np.load(path) as file:
        problem = Problem(*(file[field] for field in Problem._fields[:-1]), str(file["type"]))
    adapter = LIBRARIES[library](problem)
    return adapter, {"versions": versions(adapter.distributions), "loaded_bytes": peak_memory()}


def timed_run(adapter, n_iter: int) -> dict:
    """Seconds that a run took, and how many iterations it made."""
    begin = time.perf_counter()
    done = adapter.run(n_iter)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "n_iter": done}


def save(adapter, path: str) -> dict:
    """Writes the parameters of the last run to a file; the peak memory up to here."""
    peak = peak_memory()
    fields = zip(("weights", "means", "covariances"), adapter.parameters(), strict=False)
    np.savez(path, **{name: np.asarray(array) for name, array in fields})
    return {"peak_bytes": peak}


def serve(library: str, requests, answers) -> None:
    """Obeys commands, `["load", path]`, `["run", n]` and `["save", path]`, until there are none."""
    adapter = None
    for line in requests:
        command, argument = json.loads(line)
        try:
            if command == "load":
                adapter, answer = load(library, argument)
            else:
                answer = {"run": timed_run, "save": save}[command](adapter, argument)
        except Exception as error:
            traceback.print_exc()
            name = "" if isinstance(error, Unsupported) else f"{type(error).__name__}: "
            answer = {"error": name + (str(error).strip().splitlines() or [""])[0]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    # What libraries print must not get between the answers.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        serve(sys.argv[1], sys.stdin, answers)
