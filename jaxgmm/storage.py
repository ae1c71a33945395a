"""Mixtures in files: NumPy's npz without pickle, written atomically, checked when read."""

import hashlib
import io
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.covariance import Covariance, Diagonal, Full, Spherical
from jaxgmm.mixture import GaussianMixture
from jaxgmm.validation import check_known

FORMAT = "jaxgmm mixture 1"
CLASSES: dict[str, type[Covariance]] = {
    "full": Full,
    "diagonal": Diagonal,
    "spherical": Spherical,
}
DIGEST_LENGTH = 64


def save(path: str | os.PathLike[str], mixture: GaussianMixture) -> None:
    """Writes a mixture, or a batch of them, so that `load` gives exactly the same arrays.

    The file appears whole or not at all: it is written under another name in the same folder and
    then renamed. It is an ordinary npz file with a checksum in the archive's comment.

    Args:
        path: where to; an existing file is replaced.
        mixture: finite, with any batch axes in front.

    Raises:
        TypeError: not a mixture, or one that is being traced.
        ValueError: the parameters are not those of a mixture.
        OSError: the place can't be written.
    """
    if not isinstance(mixture, GaussianMixture):
        raise TypeError(
            "mixture must be a GaussianMixture, such as result.mixture, got "
            f"{type(mixture).__name__}"
        )
    check_known("save", mixture)
    arrays = as_arrays(mixture)
    check_parameters(arrays)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        archive.comment = b"0" * DIGEST_LENGTH
    content = buffer.getvalue()[:-DIGEST_LENGTH]
    with written_atomically(Path(path)) as file:
        file.write(content + _digest(content))


def load(path: str | os.PathLike[str]) -> GaussianMixture:
    """Reads what `save` wrote. Executes nothing that the file holds.

    Args:
        path: the file.

    Returns:
        The mixture, bit for bit; while JAX's 64-bit mode is off, float64 parameters are cut to
        float32, with a warning.

    Raises:
        ValueError: the file is truncated, damaged, foreign, of another format version, or its
            parameters are not those of a mixture; or they would not be, cut to float32.
        OSError: the file can't be read.
    """
    content = Path(path).read_bytes()
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError(f"{path} is not a jaxgmm file, or is truncated")
    if _digest(content[:-DIGEST_LENGTH]) != content[-DIGEST_LENGTH:]:
        raise ValueError(f"{path} is damaged, or was not written by jaxgmm: its checksum is wrong")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} can't be read as npz: {error}") from None
    try:
        check_parameters(arrays)
    except ValueError as error:
        raise ValueError(f"{path} does not hold a mixture: {error}") from None
    dtypes = {arrays[name].dtype for name in ("log_weights", "means", "scale")}
    if np.dtype(np.float64) in dtypes and jnp.result_type(float) != np.float64:
        warnings.warn(
            f"{path} holds float64 parameters, which are cut to float32 because JAX's 64-bit mode "
            "is off",
            stacklevel=2,
        )
    with np.errstate(over="ignore"):
        floats = {
            name: arrays[name].astype(jax.dtypes.canonicalize_dtype(arrays[name].dtype))
            for name in ("log_weights", "means", "scale")
        }
    try:
        check_parameters(arrays | floats)
    except ValueError as error:
        raise ValueError(
            f"{path} holds float64 parameters that don't fit in float32 ({error}); call "
            "jax.config.update('jax_enable_x64', True) first"
        ) from None
    covariance = CLASSES[str(arrays["covariance"])](jnp.asarray(floats["scale"]))
    return GaussianMixture(
        jnp.asarray(floats["log_weights"]), jnp.asarray(floats["means"]), covariance
    )


def check_parameters(arrays: dict[str, np.ndarray]) -> None:
    """ValueError unless these are the arrays of a mixture, batch axes in front."""
    expected = {"format", "covariance", "log_weights", "means", "scale"}
    if set(arrays) != expected:
        raise ValueError(f"expected the entries {sorted(expected)}, got {sorted(arrays)}")
    if str(arrays["format"]) != FORMAT:
        raise ValueError(f"expected format {FORMAT!r}, got {str(arrays['format'])!r}")
    if str(arrays["covariance"]) not in CLASSES:
        raise ValueError(f"unknown covariance storage {str(arrays['covariance'])!r}")
    log_weights, means, scale = (arrays[name] for name in ("log_weights", "means", "scale"))
    if not all(array.dtype in (np.float32, np.float64) for array in (log_weights, means, scale)):
        raise ValueError("parameters must be float32 or float64")
    if means.ndim < 2 or 0 in means.shape or log_weights.shape != means.shape[:-1]:
        raise ValueError(f"log_weights {log_weights.shape} and means {means.shape} don't agree")
    n_features = means.shape[-1]
    trailing = {"full": (n_features, n_features), "diagonal": (n_features,), "spherical": ()}
    of_component = trailing[str(arrays["covariance"])]
    leading = [(*means.shape[:-2], k) for k in (means.shape[-2], 1)]
    if scale.shape not in [(*shape, *of_component) for shape in leading]:
        raise ValueError(f"covariance factors {scale.shape} don't agree with means {means.shape}")
    _check_values(log_weights, means, scale, bool(of_component) and len(of_component) == 2)


def _check_values(
    log_weights: np.ndarray, means: np.ndarray, scale: np.ndarray, triangular: bool
) -> None:
    if not (np.isfinite(means).all() and np.isfinite(scale).all()):
        raise ValueError("means and covariance factors must be finite")
    total = np.exp(log_weights.astype(np.float64)).sum(axis=-1)
    if not np.all(np.abs(total - 1) < 1e-4):
        raise ValueError(f"weights must sum to 1, they sum to {total}")
    if triangular and np.triu(scale, 1).any():
        raise ValueError("covariance factors must be lower triangular")
    if not np.all((np.diagonal(scale, axis1=-2, axis2=-1) if triangular else scale) > 0):
        raise ValueError("covariance factors must have a positive diagonal")


def as_arrays(mixture: GaussianMixture) -> dict[str, np.ndarray]:
    """What the file of a mixture holds, by name."""
    kind = next(
        name for name, storage in CLASSES.items() if isinstance(mixture.covariance, storage)
    )
    return {
        "format": np.array(FORMAT),
        "covariance": np.array(kind),
        "log_weights": np.asarray(mixture.log_weights),
        "means": np.asarray(mixture.means),
        "scale": np.asarray(jax.tree.leaves(mixture.covariance)[0]),
    }


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


@contextmanager
def written_atomically(path: Path) -> Iterator[BinaryIO]:
    """A file under another name in the same folder, renamed when it is whole, or else removed.

    Args:
        path: what it is called in the end; an existing file is replaced.

    Yields:
        The file, open for writing and reading bytes.

    Raises:
        OSError: the place can't be written.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
