"""The command line: fits mixtures to files of numbers, and uses and shows fitted ones."""

import os
import sys
from collections.abc import Sequence

import jax

from jaxgmm.command_line.commands import COMMANDS
from jaxgmm.command_line.data import advice
from jaxgmm.command_line.messages import escaping_output, say
from jaxgmm.command_line.options import UsageError, parser
from jaxgmm.files.table_columns import TableError

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 1, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: what stands behind the program's name; by default that of this process.

    Returns:
        The exit code: 0, 1 for failures, 2 for wrong usage, 130 when interrupted, 141 when
        nobody reads the output any more.
    """
    try:
        options = parser().parse_args(arguments)
        with jax.enable_x64(not options.float32), escaping_output():
            COMMANDS[options.command](options)
            sys.stdout.flush()
    except UsageError as error:
        return _complain(error, EXIT_USAGE)
    except KeyboardInterrupt:
        say("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except TableError as error:
        return _complain(f"{error}{advice(error)}", EXIT_FAILED)
    except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        return _complain(error, EXIT_FAILED)
    return 0


def _complain(error: BaseException | str, code: int) -> int:
    say(f"error: {' '.join(str(error).split()) or type(error).__name__}")
    return code
