"""A library at work in another process: started here, told what to do, asked how long it took."""

import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path

PROGRAM = Path(__file__).parent / "serve.py"


class WorkerError(RuntimeError):
    """A worker can't do what it was asked, or is gone; the message says why."""


class Worker:
    """One library with one problem; a context manager that ends the process."""

    def __init__(self, python: Path, library: str, patience: float):
        """Starts it.

        Args:
            python: an interpreter that has the library.
            library: a key of `peers.LIBRARIES`.
            patience: seconds after which an answer is no longer waited for.
        """
        self.library = library
        self.patience = patience
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # A cache of compiled programs would hide what the first call costs.
        hidden = ("JAX_COMPILATION_CACHE_DIR", "PYTHONPATH")
        self.process = subprocess.Popen(
            [python, PROGRAM, library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env={name: value for name, value in os.environ.items() if name not in hidden},
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def ask(self, command: str, argument: str | int) -> dict:
        """The answer to a command; a WorkerError if there is none."""
        timer = threading.Timer(self.patience, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(json.dumps([command, argument]) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            late = not timer.is_alive()
            timer.cancel()
        if not line:
            raise WorkerError(self.epitaph(late))
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def epitaph(self, late: bool) -> str:
        """Why the process is gone."""
        if late:
            return f"no answer in {self.patience:.0f} s"
        code = self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines()
        return f"process ended with code {code}" + (f": {said[-1]}" if said else "")

    def run(self, n_iter: int) -> float:
        """Seconds that so many iterations take, from the start; a WorkerError if it made fewer."""
        answer = self.ask("run", n_iter)
        if answer["n_iter"] != n_iter:
            raise WorkerError(f"stopped after {answer['n_iter']} of {n_iter} iterations")
        return answer["seconds"]
