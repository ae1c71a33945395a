"""What each command does."""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
from jax import Array

from jaxgmm.command_line.checks import check_components, check_places, in_dtype, load_model
from jaxgmm.command_line.options import UsageError
from jaxgmm.command_line.reports import (
    counted,
    listed,
    model_report,
    report,
    score_report,
    size_report,
)
from jaxgmm.criteria import n_parameters
from jaxgmm.mixture import GaussianMixture
from jaxgmm.padding import padded_rows, with_rows
from jaxgmm.selection import Selection, select
from jaxgmm.storage import save
from jaxgmm.table_writing import Block, write_blocks, write_text, writer_for
from jaxgmm.tables import BLOCK_ROWS, numbered, old_faithful, read_blocks, read_table
from jaxgmm.validation import from_host

TOL = 1e-8
MAX_ITER = 5000
BLOCK_NUMBERS = 2**22


def fit(options: argparse.Namespace) -> None:
    """The command `fit`."""
    plot, no_plot = _plot_module(options)
    path = options.plot or Path("fit.png")
    check_places({"data": options.file}, [options.output, path] if plot else [options.output])
    if plot:
        plot.picture_format(path)
    read = old_faithful if options.file is None else lambda some: read_table(options.file, some)
    names, rows = read(options.columns)
    x = in_dtype(rows, options.float32)
    check_components(options.components, len(x))
    print(size_report(options.file or "Old Faithful", len(x), names), flush=True)
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


def score(options: argparse.Namespace) -> None:
    """The command `score`."""
    mixture, names, blocks = _model_and_data(options)
    n_rows, total = 0, 0.0

    def log_probs() -> Iterator[Block]:
        nonlocal n_rows, total
        for x in blocks:
            log_prob = _of_rows(mixture.log_prob, x)
            n_rows += len(x)
            total += float(log_prob.sum(dtype=np.float64))
            yield [log_prob]

    if options.output:
        write_blocks(options.output, ["log_prob"], log_probs())
    else:
        for _ in log_probs():
            pass
    print(size_report(options.file, n_rows, names))
    print(score_report(total, n_rows, n_parameters(mixture)))
    if options.output:
        print(f"\nwritten  {options.output}")


def predict(options: argparse.Namespace) -> None:
    """The command `predict`."""
    mixture, _, blocks = _model_and_data(options)
    if options.responsibilities:
        names = [f"component {k}" for k in range(mixture.n_components)]
        _write(options, names, ([*_of_rows(mixture.responsibilities, x).T] for x in blocks))
    else:
        _write(options, ["label"], ([_of_rows(mixture.predict, x)] for x in blocks))


def sample(options: argparse.Namespace) -> None:
    """The command `sample`."""
    mixture = _model(options)
    names = numbered(mixture.n_features) + ["label"] * options.labels
    _write(options, names, _draws(options, mixture))


def _draws(options: argparse.Namespace, mixture: GaussianMixture) -> Iterator[Block]:
    """Columns of rows and their labels, of which the first don't depend on how many there are."""
    key = jax.random.key(options.seed)
    block_rows = _block_rows(mixture)
    for block, start in enumerate(range(0, max(options.n, 1), block_rows)):
        key_of_block = jax.random.fold_in(key, block)
        x, labels = mixture.sample(key_of_block, block_rows, return_labels=True)
        columns = [*np.asarray(x).T, *[np.asarray(labels)] * options.labels]
        yield [column[: options.n - start] for column in columns]


def show(options: argparse.Namespace) -> None:
    """The command `show`."""
    mixture = load_model(options.model)
    print(model_report(mixture, numbered(mixture.n_features)))


def _model(options: argparse.Namespace, **sources: Path) -> GaussianMixture:
    """The mixture, after a look at where the output goes."""
    if options.output:
        writer_for(options.output)
        check_places({"model": options.model, **sources}, [options.output])
    return load_model(options.model)


def _model_and_data(
    options: argparse.Namespace,
) -> tuple[GaussianMixture, list[str], Iterator[np.ndarray]]:
    """The mixture, D names of columns, and blocks of rows (n, D)."""
    mixture = _model(options, data=options.file)
    names, blocks = read_blocks(options.file, options.columns, _block_rows(mixture))
    if len(names) != mixture.n_features:
        raise ValueError(
            f"{options.file} gives {counted(len(names), 'column')} ({listed(names)}), but "
            f"{options.model} has {counted(mixture.n_features, 'feature')}; choose as many with "
            "--columns"
        )
    return mixture, names, (in_dtype(rows, options.float32) for rows in blocks)


def _block_rows(mixture: GaussianMixture) -> int:
    """A power of two, with a bounded product with D and K."""
    most = max(1, BLOCK_NUMBERS // max(mixture.n_features, mixture.n_components))
    return min(BLOCK_ROWS, 1 << (most.bit_length() - 1))


def _of_rows(function: Callable[[Array], Array], x: np.ndarray) -> np.ndarray:
    """A function of rows (n, D) -> (n, ...), which is compiled for a few n only."""
    return np.asarray(function(with_rows(from_host(x), padded_rows(len(x)))))[: len(x)]


def _write(options: argparse.Namespace, names: Sequence[str], blocks: Iterator[Block]) -> None:
    if options.output:
        write_blocks(options.output, names, blocks)
        print(f"written  {options.output}")
    else:
        write_text(sys.stdout, names, blocks)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "fit": fit,
    "score": score,
    "predict": predict,
    "sample": sample,
    "show": show,
}
