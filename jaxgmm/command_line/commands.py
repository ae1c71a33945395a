"""What each command does."""

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import jax
import numpy as np

from jaxgmm.command_line.options import UsageError
from jaxgmm.command_line.reports import counted, report
from jaxgmm.selection import Selection, select
from jaxgmm.storage import save
from jaxgmm.tables import old_faithful, read_table

TOL = 1e-8
MAX_ITER = 5000
MOST_LISTED = 10


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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")


COMMANDS = {"fit": fit}
