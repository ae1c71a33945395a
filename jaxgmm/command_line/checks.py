"""What is refused before anything is computed."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.command_line.options import UsageError
from jaxgmm.command_line.reports import counted
from jaxgmm.mixture import GaussianMixture
from jaxgmm.storage import as_arrays, check_parameters, load


def check_places(sources: Mapping[str, Path | None], places: Sequence[Path]) -> None:
    """Refuses files that can't be written, or not without harm to what is read or each other.

    Args:
        sources: files that are read, by what they are.
        places: files to write.

    Raises:
        UsageError: two places are the same.
        ValueError: a place can't be written, or is one of the sources.
    """
    if len({place.resolve() for place in places}) < len(places):
        raise UsageError(f"--output and --plot are the same file, {places[0]}")
    for place in places:
        if place.is_dir():
            raise ValueError(f"{place} is a directory, expected the name of a file to write")
        for what, source in sources.items():
            if source and source.exists() and place.exists() and place.samefile(source):
                raise ValueError(f"{place} would overwrite the {what}")
        try:
            tempfile.TemporaryFile(dir=place.parent).close()
        except OSError as error:
            raise ValueError(f"{place} can't be written: {error.strerror}") from None


def in_dtype(rows: np.ndarray, float32: bool) -> np.ndarray:
    """Rows in float32 or float64; ValueError where they don't fit."""
    with np.errstate(over="ignore"):
        x: np.ndarray = rows.astype(np.float32 if float32 else np.float64)
    if not np.isfinite(x).all():
        raise ValueError("the data have values too large for float32; leave out --float32")
    return x


def check_components(counts: Sequence[int], n_rows: int) -> None:
    """ValueError if the largest of the counts is more than there are rows."""
    if counts[-1] > n_rows:
        raise ValueError(
            f"{counted(counts[-1], 'component')} can't be fitted to {counted(n_rows, 'row')}; try "
            f"--components {f'1:{n_rows}' if n_rows > 1 else '1'}"
        )


def load_model(path: Path) -> GaussianMixture:
    """The single mixture in a file, in the widest dtype that JAX's mode allows.

    Raises:
        ValueError: the file can't be read, holds a batch, or numbers too large or too small for
            float32 where that is the mode.
    """
    try:
        with jax.enable_x64(True):
            mixture = load(path)
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
    return jax.tree.map(jnp.asarray, known)
