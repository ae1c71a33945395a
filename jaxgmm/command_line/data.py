"""Data of the commands: what is read, what is left out of it, and what is said of that."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.command_line.checks import check_components
from jaxgmm.command_line.messages import counted, listed, say, shown
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.files.storage import as_arrays, check_parameters, load
from jaxgmm.files.table_columns import MissingValueError, NotANumberError, TableError, numbered
from jaxgmm.files.tables import old_faithful, read_blocks, read_table
from jaxgmm.fits.redundancy import described, redundant_features
from jaxgmm.mixtures.mixture import GaussianMixture


def table_to_fit(options: argparse.Namespace) -> tuple[list[str], np.ndarray]:
    """D names of columns and rows (N, D), without missing values and redundant columns.

    Raises:
        ValueError: the table can't be read, or nothing of it is left.
    """
    if options.file is None:
        names, rows = old_faithful(options.columns)
    else:
        names, rows = read_table(
            options.file, options.columns, allow_missing=options.drop_missing, notify=say
        )
    if options.drop_missing:
        n_read = len(rows)
        rows = rows[~np.isnan(rows).any(axis=1)]
        say_dropped(n_read - len(rows), n_read)
        if not len(rows):
            raise ValueError("no row is without missing values; choose columns with --columns")
    x = in_dtype(rows, options.float32)
    check_components(options.components, len(x))
    kept = _without_redundant(names, x, options.covariance_type)
    return [names[i] for i in kept], x[:, kept] if len(kept) < len(names) else x


def _without_redundant(
    names: Sequence[str], x: np.ndarray, covariance_types: Sequence[str]
) -> list[int]:
    """Numbers of the columns that are neither constant nor follow from others."""
    linear = any(STRUCTURES[name].full_second_moment for name in covariance_types)
    found = redundant_features(x, linear=linear)
    left_out = {redundancy.feature for redundancy in found}
    kept = [i for i in range(len(names)) if i not in left_out]
    if not kept:
        rows = counted(len(x), "row")
        raise ValueError(f"every column is constant in all of {rows} ({listed(names)})")
    if found:
        reasons = described(found, lambda i: f"'{shown(names[i])}'")
        say(f"left out {counted(len(found), 'column')}: {reasons}")
    return kept


def say_dropped(n_dropped: int, n_rows: int) -> None:
    """Tells how many of N rows were dropped."""
    say(f"dropped {n_dropped} of {counted(n_rows, 'row')}, for missing values")


def names_to_keep(names: Sequence[str]) -> list[str] | None:
    """The names that a model gets: none if they only say where columns stood, or don't differ."""
    if [*names] == numbered(len(names)):
        return None
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        say(f"the model has no names of features, as several columns are named {repeated[0]!r}")
        return None
    return [*names]


def blocks_for(
    options: argparse.Namespace, mixture: GaussianMixture, names: list[str] | None, block_rows: int
) -> tuple[list[str], Iterator[np.ndarray]]:
    """The columns for a model's features: D names, and blocks of rows (n, D).

    Where missing values are dropped, rows with some hold NaN.

    Args:
        options: of the command.
        mixture: the model.
        names: of its features, if it has any.
        block_rows: most rows of a block.

    Raises:
        ValueError: there are no such columns.
    """
    found, blocks = read_blocks(
        options.file,
        options.columns,
        block_rows,
        expected=names,
        allow_missing=options.drop_missing,
        notify=say,
    )
    if len(found) != mixture.n_features:
        raise ValueError(
            f"{options.file} gives {counted(len(found), 'column')} ({listed(found)}), but "
            f"{options.model} has {counted(mixture.n_features, 'feature')}; choose as many with "
            "--columns"
        )
    return found, (in_dtype(rows, options.float32) for rows in blocks)


def in_dtype(rows: np.ndarray, float32: bool) -> np.ndarray:
    """Rows in float32 or float64; ValueError where they don't fit."""
    with np.errstate(over="ignore"):
        x: np.ndarray = rows.astype(np.float32 if float32 else np.float64, copy=False)
    if np.isinf(x).any():
        raise ValueError("the data have values too large for float32; leave out --float32")
    return x


def advice(error: TableError) -> str:
    """Advice on options that help where a table can't be read."""
    if isinstance(error, MissingValueError):
        return "; leave such rows out with --drop-missing, or choose other columns with --columns"
    if not isinstance(error, NotANumberError):
        return ""
    if error.remedy:
        return f"; {error.remedy}"
    plain = [name for name in error.numeric if name.isprintable() and not {*',"'} & {*name}]
    example = f", such as --columns {','.join(plain)}" if 0 < len(plain) <= 10 else ""
    return f"; choose columns of numbers with --columns{example}"


def load_model(path: Path) -> tuple[GaussianMixture, list[str] | None]:
    """The single mixture in a file, in the widest dtype that JAX's mode allows, and its names.

    Raises:
        ValueError: the file can't be read, holds a batch, or numbers too large or too small for
            float32 where that is the mode.
    """
    try:
        with jax.enable_x64(True):
            mixture, names = load(path, return_feature_names=True)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror or error}") from None
    batch_shape = mixture.log_weights.shape[:-1]
    if batch_shape:
        raise ValueError(
            f"{path} holds a batch of mixtures of shape {batch_shape}, expected a single one; "
            "save one of them with jaxgmm.save(path, mixture[b])"
        )
    with np.errstate(over="ignore"):
        known = jax.tree.map(
            lambda leaf: np.asarray(leaf).astype(jax.dtypes.canonicalize_dtype(leaf.dtype)), mixture
        )
    try:
        check_parameters(as_arrays(known))
    except ValueError as error:
        raise ValueError(f"{path} doesn't fit in float32, leave out --float32: {error}") from None
    return jax.tree.map(jnp.asarray, known), names
