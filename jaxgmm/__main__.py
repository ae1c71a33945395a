"""The program that `jaxgmm` and `python -m jaxgmm` run."""

import os
import sys

from jaxgmm import command_line
from jaxgmm.command_line import EXIT_INTERRUPTED


def main() -> None:
    """Runs the command line, and ends the process with its exit code."""
    try:
        code = command_line.main()
    except KeyboardInterrupt:
        # A second one, while the first was being answered.
        code = EXIT_INTERRUPTED
    if code == EXIT_INTERRUPTED:
        # XLA's threads go on with what was interrupted, and crash in an interpreter that is being
        # taken apart. Files are whole or removed already; only what was printed is to be kept.
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """Ends the process without taking the interpreter apart."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
