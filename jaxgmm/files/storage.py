"""Mixtures in files: NumPy's npz without pickle, written atomically, checked when read."""

import hashlib
import io
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from jaxgmm.arrays.validation import check_known
from jaxgmm.covariances.storage import Covariance, Diagonal, Full, Spherical
from jaxgmm.mixtures.mixture import GaussianMixture

FORMAT, FORMAT_WITH_NAMES = "jaxgmm mixture 1", "jaxgmm mixture 2"
CLASSES: dict[str, type[Covariance]] = {
    "full": Full,
    "diagonal": Diagonal,
    "spherical": Spherical,
}
PARAMETERS = ("log_weights", "means", "scale")
DIGEST_LENGTH = 64


def save(
    path: str | os.PathLike[str] | BinaryIO,
    mixture: GaussianMixture,
    *,
    feature_names: Sequence[str] | None = None,
) -> None:
    """Writes a mixture, or a batch of them, so that `load` gives exactly the same arrays.

    The file appears whole or not at all: it is written under another name in the same folder and
    then renamed. It is an ordinary npz file with a checksum in the archive's comment.

    Args:
        path: where to; an existing file is replaced. Or a file object, open for writing bytes.
        mixture: finite, with any batch axes in front.
        feature_names: D different names of the features, for all mixtures of a batch.

    Raises:
        TypeError: not a mixture, one that is being traced, names that are no strings, or a file
            object for text.
        ValueError: the parameters are not those of a mixture, or the names not those of its
            features.
        OSError: the place can't be written.
    """
    if not isinstance(mixture, GaussianMixture):
        raise TypeError(
            "mixture must be a GaussianMixture, such as result.mixture, got "
            f"{type(mixture).__name__}"
        )
    check_known("save", mixture)
    arrays = as_arrays(mixture)
    if feature_names is not None:
        arrays |= {
            "format": np.array(FORMAT_WITH_NAMES),
            "feature_names": _encoded(feature_names),
        }
    check_parameters(arrays)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
        archive.comment = b"0" * DIGEST_LENGTH
    content = buffer.getvalue()[:-DIGEST_LENGTH]
    content += _digest(content)
    if isinstance(path, (str, os.PathLike)):
        with written_atomically(Path(path)) as file:
            file.write(content)
    elif isinstance(path, io.TextIOBase) or not hasattr(path, "write"):
        raise TypeError(f"path must be a path or a file open for writing bytes, got {path!r}")
    else:
        path.write(content)


@overload
def load(
    path: str | os.PathLike[str] | BinaryIO, *, return_feature_names: Literal[False] = False
) -> GaussianMixture: ...


@overload
def load(
    path: str | os.PathLike[str] | BinaryIO, *, return_feature_names: Literal[True]
) -> tuple[GaussianMixture, list[str] | None]: ...


def load(
    path: str | os.PathLike[str] | BinaryIO, *, return_feature_names: bool = False
) -> GaussianMixture | tuple[GaussianMixture, list[str] | None]:
    """Reads what `save` wrote. Executes nothing that the file holds.

    Args:
        path: the file; or a file object, open for reading bytes, of which all that follows is read.
        return_feature_names: whether to return the names of the features, too.

    Returns:
        The mixture, bit for bit; while JAX's 64-bit mode is off, float64 parameters are cut to
        float32, with a warning. With `return_feature_names` also its D names, or None if it was
        saved without.

    Raises:
        TypeError: a file object for text.
        ValueError: the file is truncated, damaged, foreign, of another format version, or its
            parameters are not those of a mixture; or they would not be, cut to float32.
        OSError: the file can't be read.

    Example:
        >>> import io, jaxgmm as jg
        >>> mixture = jg.GaussianMixture.create([1.0], [[0.0, 0.0]], [1.0], "spherical")
        >>> file = io.BytesIO()
        >>> jg.save(file, mixture, feature_names=["height", "weight"])
        >>> _ = file.seek(0)
        >>> jg.load(file, return_feature_names=True)[1]
        ['height', 'weight']
    """
    name, content = _content(path)
    arrays = _checked_arrays(name, content)
    dtypes = {arrays[entry].dtype for entry in PARAMETERS}
    if np.dtype(np.float64) in dtypes and jnp.result_type(float) != np.float64:
        warnings.warn(
            f"{name} holds float64 parameters, which are cut to float32 because JAX's 64-bit mode "
            "is off",
            stacklevel=2,
        )
    with np.errstate(over="ignore"):
        floats = {
            entry: arrays[entry].astype(jax.dtypes.canonicalize_dtype(arrays[entry].dtype))
            for entry in PARAMETERS
        }
    try:
        check_parameters(arrays | floats)
    except ValueError as error:
        raise ValueError(
            f"{name} holds float64 parameters that don't fit in float32 ({error}); call "
            "jax.config.update('jax_enable_x64', True) first"
        ) from None
    covariance = CLASSES[str(arrays["covariance"])](jnp.asarray(floats["scale"]))
    mixture = GaussianMixture(
        jnp.asarray(floats["log_weights"]), jnp.asarray(floats["means"]), covariance
    )
    if not return_feature_names:
        return mixture
    encoded = arrays.get("feature_names")
    return mixture, None if encoded is None else json.loads(encoded.tobytes())


def _content(path: str | os.PathLike[str] | BinaryIO) -> tuple[str, bytes]:
    """The name of a file in complaints, and all of its bytes."""
    if isinstance(path, (str, os.PathLike)):
        return str(path), Path(path).read_bytes()
    content = path.read() if hasattr(path, "read") else None
    if not isinstance(content, bytes):
        raise TypeError(f"path must be a path or a file open for reading bytes, got {path!r}")
    return str(getattr(path, "name", "the file object")), content


def _checked_arrays(name: str, content: bytes) -> dict[str, np.ndarray]:
    """The entries of a file, known to be those of a mixture; ValueError if they are not."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError(f"{name} is not a jaxgmm file, or is truncated")
    if _digest(content[:-DIGEST_LENGTH]) != content[-DIGEST_LENGTH:]:
        raise ValueError(f"{name} is damaged, or was not written by jaxgmm: its checksum is wrong")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {entry: archive[entry] for entry in archive.files}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name} can't be read as npz: {error}") from None
    try:
        check_parameters(arrays)
    except ValueError as error:
        raise ValueError(f"{name} does not hold a mixture: {error}") from None
    return arrays


def check_parameters(arrays: dict[str, np.ndarray]) -> None:
    """ValueError unless these are the arrays of a mixture, batch axes in front."""
    expected, own_format = {"format", "covariance", *PARAMETERS}, FORMAT
    if "feature_names" in arrays:
        expected, own_format = expected | {"feature_names"}, FORMAT_WITH_NAMES
    if set(arrays) != expected:
        raise ValueError(f"expected the entries {sorted(expected)}, got {sorted(arrays)}")
    if str(arrays["format"]) != own_format:
        raise ValueError(f"expected format {own_format!r}, got {str(arrays['format'])!r}")
    if str(arrays["covariance"]) not in CLASSES:
        raise ValueError(f"unknown covariance storage {str(arrays['covariance'])!r}")
    log_weights, means, scale = (arrays[name] for name in PARAMETERS)
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
    if "feature_names" in arrays:
        _check_names(arrays["feature_names"], n_features)


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


def _encoded(names: Sequence[str]) -> np.ndarray:
    """Names as the bytes of JSON, which one long name doesn't widen for all others."""
    names = [names] if isinstance(names, str) else list(names)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"feature_names must be strings, got {names!r}")
    # NumPy's strings are str, too, and become Python's.
    return np.frombuffer(json.dumps([str(name) for name in names]).encode(), np.uint8)


def _check_names(encoded: np.ndarray, n_features: int) -> None:
    """ValueError unless these are the bytes of D different names."""
    if encoded.dtype != np.uint8 or encoded.ndim != 1:
        raise ValueError("feature_names must be bytes (uint8) on one axis")
    try:
        names = json.loads(encoded.tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"feature_names are not JSON: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("feature_names must be a list of strings")
    if len(names) != n_features:
        raise ValueError(f"feature_names are {len(names)}, expected one for each of {n_features}")
    if len(set(names)) < n_features or "" in names:
        raise ValueError("feature_names must all differ, and not be empty")
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        raise ValueError("feature_names hold a character that UTF-8 doesn't have") from None


def as_arrays(mixture: GaussianMixture) -> dict[str, np.ndarray]:
    """The arrays that the file of a mixture holds, by name."""
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
