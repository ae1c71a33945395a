"""The commands, a function each."""

import argparse
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
from jax import Array

from jaxgmm.arrays.host import from_host
from jaxgmm.arrays.padding import padded_rows, with_rows
from jaxgmm.command_line.checks import check_places
from jaxgmm.command_line.data import (
    blocks_for,
    load_model,
    names_to_keep,
    say_dropped,
    table_to_fit,
)
from jaxgmm.command_line.messages import data_output, shown
from jaxgmm.command_line.options import UsageError
from jaxgmm.command_line.plan import Part, joined, planned
from jaxgmm.command_line.reports import model_report, report, score_report, size_report
from jaxgmm.files.storage import save
from jaxgmm.files.table_columns import numbered
from jaxgmm.files.table_writing import Block, write_blocks, write_text, writer_for
from jaxgmm.files.tables import BLOCK_ROWS
from jaxgmm.fits.criteria import n_parameters
from jaxgmm.fits.ranking import Selection
from jaxgmm.fits.selection import select
from jaxgmm.mixtures.mixture import GaussianMixture

TOL = 1e-8
MAX_ITER = 5000
BLOCK_NUMBERS = 2**22
# A picture decomposes covariance matrices of all features.
MOST_DRAWN = 300


def fit(options: argparse.Namespace) -> None:
    """The command `fit`."""
    plot, no_plot = _plot_module(options)
    path = options.plot or Path("fit.png")
    check_places({"data": options.file}, [options.output, path] if plot else [options.output])
    if plot:
        plot.picture_format(path)
    names, x = table_to_fit(options)
    parts = planned(options.components, options.covariance_type, *x.shape)
    if plot and len(names) > MOST_DRAWN:
        no_plot = f"{len(names)} features are more than the {MOST_DRAWN} that can be drawn"
        if options.plot:
            raise ValueError(f"--plot: {no_plot}")
        plot = None
    print(size_report(options.file or "Old Faithful", len(x), names), flush=True)
    selection = _sweep(options, parts, x)
    mixture = selection.best.mixture
    try:
        save(options.output, mixture, feature_names=names_to_keep(names))
        if plot:
            with warnings.catch_warnings():
                # Characters that no font has are drawn as boxes.
                warnings.filterwarnings("ignore", "Glyph .* missing from")
                plot.picture(path, mixture, x, [*map(shown, names)])
    finally:
        print(report(selection, names, len(x)))
    print(f"\nmodel    {options.output}")
    print(f"picture  {path}" if plot else f"no picture: {no_plot}")


def _sweep(options: argparse.Namespace, parts: Sequence[Part], x: np.ndarray) -> Selection:
    """The fits, counted on the terminal while they are made."""
    total = sum(len(counts) * len(types) for counts, types in parts)
    on_terminal = sys.stderr.isatty()
    n_done = 0

    def show(text: str) -> None:
        if on_terminal:
            print(f"\r{text:<30}", end="", file=sys.stderr, flush=True)

    def count(_: np.ndarray) -> None:
        nonlocal n_done
        n_done += 1
        show(f"{n_done} of {total} fits")

    def swept(counts: list[int], types: list[str]) -> Selection:
        return select(
            jax.random.key(options.seed),
            x,
            counts,
            types,
            criterion=options.criterion,
            n_init=options.n_init,
            max_iter=MAX_ITER,
            tol=TOL,
            callback=count,
        )

    show(f"0 of {total} fits")
    try:
        return joined([swept(*part) for part in parts])
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
        for log_prob in _of_blocks(options, mixture.log_prob, blocks):
            present = np.ma.compressed(log_prob)
            n_rows += len(present)
            total += float(present.sum(dtype=np.float64))
            yield [log_prob]

    if options.output:
        write_blocks(options.output, ["log_prob"], log_probs())
    else:
        for _ in log_probs():
            pass
    if not n_rows:
        raise ValueError("no row is without missing values; choose columns with --columns")
    print(size_report(options.file, n_rows, names))
    print(score_report(total, n_rows, n_parameters(mixture)))
    if options.output:
        print(f"\nwritten  {options.output}")


def predict(options: argparse.Namespace) -> None:
    """The command `predict`."""
    mixture, _, blocks = _model_and_data(options)
    if options.responsibilities:
        names = [f"component {k}" for k in range(mixture.n_components)]
        shares = _of_blocks(options, mixture.responsibilities, blocks)
        _write(options, names, ([*block.T] for block in shares))
    else:
        labels = _of_blocks(options, mixture.predict, blocks)
        _write(options, ["label"], ([block] for block in labels))


def sample(options: argparse.Namespace) -> None:
    """The command `sample`."""
    mixture, given = _model(options)
    names = given or numbered(mixture.n_features)
    label = "label"
    while label in names:
        label += "_"
    _write(options, [*names, *[label] * options.labels], _draws(options, mixture))


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
    mixture, names = load_model(options.model)
    print(model_report(mixture, names or numbered(mixture.n_features)))


def _model(
    options: argparse.Namespace, **sources: Path
) -> tuple[GaussianMixture, list[str] | None]:
    """The mixture and names of its features, after a look at where the output goes."""
    if options.output:
        writer_for(options.output)
        check_places({"model": options.model, **sources}, [options.output])
    return load_model(options.model)


def _model_and_data(
    options: argparse.Namespace,
) -> tuple[GaussianMixture, list[str], Iterator[np.ndarray]]:
    """The mixture, D names of columns, and blocks of rows (n, D)."""
    mixture, names = _model(options, data=options.file)
    return mixture, *blocks_for(options, mixture, names, _block_rows(mixture))


def _of_blocks(
    options: argparse.Namespace,
    function: Callable[[Array], Array],
    blocks: Iterator[np.ndarray],
) -> Iterator[np.ndarray]:
    """A function of rows (n, D) -> (n, ...), for all blocks; masked for rows with missing values.

    At the end it is told how many these were, if they were to be dropped.
    """
    n_rows, n_dropped = 0, 0
    for x in blocks:
        if not options.drop_missing:
            yield _of_rows(function, x)
            continue
        complete = ~np.isnan(x).any(axis=1)
        # Dtypes are known from rows of zeros where no other is complete.
        known = x[complete] if complete.any() else np.zeros_like(x[:1])
        values = _of_rows(function, known)
        masked = np.ma.masked_all((len(x), *values.shape[1:]), values.dtype)
        if complete.any():
            masked[complete] = values
        n_rows, n_dropped = n_rows + len(x), n_dropped + int(np.sum(~complete))
        yield masked
    if options.drop_missing:
        say_dropped(n_dropped, n_rows)


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
        with data_output():
            write_text(sys.stdout, names, blocks)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "fit": fit,
    "score": score,
    "predict": predict,
    "sample": sample,
    "show": show,
}
