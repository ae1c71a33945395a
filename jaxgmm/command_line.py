"""The command line: fits mixtures to a file, says which is best, and saves and draws it."""

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import jax
import numpy as np

from jaxgmm import __version__
from jaxgmm.reports import counted, report
from jaxgmm.selection import CRITERIA, Selection, select
from jaxgmm.storage import save
from jaxgmm.structures import STRUCTURES
from jaxgmm.tables import old_faithful, read_table

EPILOG = """\
FILE is CSV (with or without a header), NPY or Parquet; without one, the eruptions of the Old
Faithful geyser are fitted. Examples:

  jaxgmm fit
  jaxgmm fit data.csv --components 2,4,8 --covariance-type full,tied --columns height,weight
"""
TOL = 1e-8
MAX_ITER = 5000
MOST_COMPONENTS = 10_000
MOST_LISTED = 10
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 1, 2, 130, 141


class UsageError(ValueError):
    """Options that can't be meant."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints `main` prints like every other."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


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
        with jax.enable_x64(not options.float32):
            options.command(options)
        sys.stdout.flush()
    except UsageError as error:
        return _complain(error, EXIT_USAGE)
    except KeyboardInterrupt:
        print("jaxgmm: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        return _complain(error, EXIT_FAILED)
    return 0


def parser() -> Parser:
    """The options, which `--help` explains."""
    top = Parser("jaxgmm", description="Gaussian mixtures in JAX.")
    top.add_argument("--version", action="version", version=f"jaxgmm {__version__}")
    command = top.add_subparsers(metavar="COMMAND", required=True).add_parser(
        "fit",
        help="fit mixtures to a file and choose the best",
        description="Fits mixtures of several sizes and covariance types and chooses the best.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=fit)
    add = command.add_argument
    add("file", nargs="?", type=Path, metavar="FILE", help="the data, a row for each sample")
    add(
        "--components",
        type=_components,
        default="1:9",
        metavar="K",
        help="numbers of components to try: 3, or 1:9 (both included), or 2,4,8 (default: 1:9)",
    )
    add(
        "--covariance-type",
        type=_covariance_types,
        default="all",
        metavar="TYPE",
        help=f"all (the default), or some of {','.join(STRUCTURES)}",
    )
    add("--criterion", choices=CRITERIA, default="bic", help="what to choose by (default: bic)")
    add("--n-init", type=_count, default=10, metavar="N", help="restarts per fit (default: 10)")
    add("--seed", type=_seed, default=0, metavar="N", help="of the random starts (default: 0)")
    add("--columns", type=_columns, metavar="A,B", help="columns to use, by name or number from 0")
    add(
        "--output",
        type=Path,
        default=Path("fit.npz"),
        metavar="PATH",
        help="where to save the best mixture, for jaxgmm.load (default: fit.npz)",
    )
    add(
        "--plot",
        type=Path,
        metavar="PATH",
        help="where to draw it: .png, .pdf, .svg or .jpg (default: fit.png)",
    )
    add("--float32", action="store_true", help="compute in float32 rather than float64")
    return top


def fit(options: argparse.Namespace) -> None:
    """The command `fit`."""
    plot, no_plot = _plot_module(options)
    path = options.plot or Path("fit.png")
    _check_places(options.file, [options.output, path] if plot else [options.output])
    if plot:
        plot.picture_format(path)
    read = old_faithful if options.file is None else lambda some: read_table(options.file, some)
    names, rows = read(options.columns)
    x = _in_dtype(rows, np.float32 if options.float32 else np.float64)
    _check_components(options.components, len(x))
    size = f"{counted(len(x), 'row')}, {counted(len(names), 'column')}"
    print(f"{options.file or 'Old Faithful'}: {size} ({_listed(names)})", flush=True)
    selection = _sweep(options, x)
    try:
        save(options.output, selection.best.mixture)
        if plot:
            plot.picture(path, selection.best.mixture, x, names)
    finally:
        print(report(selection, names, len(x)))
    print(f"\nmodel    {options.output}")
    print(f"picture  {path}" if plot else f"no picture: {no_plot}")


def _sweep(options: argparse.Namespace, x: np.ndarray) -> Selection:
    """The fits, counted on the terminal while they are made."""
    total = len(options.components) * len(options.covariance_type)
    on_terminal = sys.stderr.isatty()
    n_done = 0

    def show(text: str) -> None:
        if on_terminal:
            print(f"\r{text:<30}", end="", file=sys.stderr, flush=True)

    def count(_: np.ndarray) -> None:
        nonlocal n_done
        n_done += 1
        show(f"{n_done} of {total} fits")

    show(f"0 of {total} fits")
    try:
        return select(
            jax.random.key(options.seed),
            x,
            options.components,
            options.covariance_type,
            criterion=options.criterion,
            n_init=options.n_init,
            max_iter=MAX_ITER,
            tol=TOL,
            callback=count,
        )
    finally:
        show("")
        show("\r")


def _plot_module(options: argparse.Namespace) -> tuple[ModuleType | None, str]:
    """`jaxgmm.plot`, or else why there is no picture; an error if one was asked for."""
    try:
        return importlib.import_module("jaxgmm.plot"), ""
    except ImportError as error:
        if options.plot is not None:
            raise UsageError(f"--plot: {error}") from None
        return None, str(error)


def _check_places(source: Path | None, places: Sequence[Path]) -> None:
    """ValueError unless files can be written there, without harm to the data or each other."""
    if len({place.resolve() for place in places}) < len(places):
        raise UsageError(f"--output and --plot are the same file, {places[0]}")
    for place in places:
        if place.is_dir():
            raise ValueError(f"{place} is a directory, expected the name of a file to write")
        if source is not None and source.exists() and place.exists() and place.samefile(source):
            raise ValueError(f"{place} would overwrite the data")
        try:
            tempfile.TemporaryFile(dir=place.parent).close()
        except OSError as error:
            raise ValueError(f"{place} can't be written: {error.strerror}") from None


def _in_dtype(rows: np.ndarray, dtype: type) -> np.ndarray:
    with np.errstate(over="ignore"):
        x: np.ndarray = rows.astype(dtype)
    if not np.isfinite(x).all():
        raise ValueError("the data have values too large for float32; leave out --float32")
    return x


def _check_components(counts: Sequence[int], n_rows: int) -> None:
    if counts[-1] > n_rows:
        raise ValueError(
            f"{counted(counts[-1], 'component')} can't be fitted to {counted(n_rows, 'row')}; try "
            f"--components {f'1:{n_rows}' if n_rows > 1 else '1'}"
        )


def _components(text: str) -> list[int]:
    counts: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition(":")
        try:
            low, high = int(first), int(last if ":" in part else first)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected numbers such as 3, 1:9 or 2,4,8, got {text!r}"
            ) from None
        if not 1 <= low <= high <= MOST_COMPONENTS:
            raise argparse.ArgumentTypeError(
                f"numbers must ascend from 1 at least to {MOST_COMPONENTS} at most, got {text!r}"
            )
        counts.update(range(low, high + 1))
    return sorted(counts)


def _covariance_types(text: str) -> list[str]:
    names = list(STRUCTURES) if text == "all" else text.split(",")
    for name in names:
        if name not in STRUCTURES:
            raise argparse.ArgumentTypeError(
                f"expected all or some of {', '.join(STRUCTURES)}; got {name!r}"
            )
    return list(dict.fromkeys(names))


def _columns(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _count(text: str) -> int:
    return _integer(text, 1)


def _seed(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, smallest: int) -> int:
    largest = 2**31 - 1
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not smallest <= number <= largest:
        raise argparse.ArgumentTypeError(
            f"expected an integer from {smallest} to {largest}, got {text!r}"
        )
    return number


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")


def _complain(error: BaseException, code: int) -> int:
    what = " ".join(str(error).split()) or type(error).__name__
    print(f"jaxgmm: error: {what}", file=sys.stderr)
    return code
