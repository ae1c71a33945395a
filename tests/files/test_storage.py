"""Mixtures in files: an exact round trip, and no belief in files that are not whole."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import time
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DOUBLE, array, blobs, start_from_labels

import jaxgmm as jg
from jaxgmm.files import storage
from jaxgmm.files.storage import DIGEST_LENGTH, FORMAT


def mixture_of(covariance_type="full", batch_shape=(), dtype=np.float32):
    """A mixture, or a batch of different ones."""
    one = start_from_labels(blobs(), covariance_type)
    count = int(np.prod(batch_shape))
    factors = jnp.linspace(1, 2, count, dtype=one.means.dtype)
    means, covariance = jax.tree.map(
        lambda leaf: jnp.multiply.outer(factors, leaf).reshape(batch_shape + leaf.shape),
        (one.means, one.covariance),
    )
    log_weights = jnp.broadcast_to(one.log_weights, means.shape[:-1])
    mixture = jg.GaussianMixture(log_weights, means, covariance)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), mixture)


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def sound_arrays(**changes):
    """What a file of two components and two features holds, with changes; None drops an entry."""
    arrays = {
        "format": np.array(FORMAT),
        "covariance": np.array("full"),
        "log_weights": np.log([0.5, 0.5]).astype(np.float32),
        "means": np.zeros((2, 2), np.float32),
        "scale": np.tile(np.eye(2, dtype=np.float32), (2, 1, 1)),
        **changes,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def sealed(path, arrays):
    """A file with any arrays and a good checksum."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=True)
        archive.comment = b"0" * DIGEST_LENGTH
    content = buffer.getvalue()[:-DIGEST_LENGTH]
    path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    return path


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "mixture.npz"
    jg.save(path, mixture_of())
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 2)], ids=str)
def test_round_trip_is_exact(covariance_type, batch_shape, dtype, tmp_path):
    with jax.enable_x64(True):
        mixture = mixture_of(covariance_type, batch_shape, dtype)
        jg.save(tmp_path / "mixture.npz", mixture)
        assert_identical(jg.load(tmp_path / "mixture.npz"), mixture)


def test_components_without_weight_come_back(tmp_path):
    mixture = jg.GaussianMixture.create([1.0, 0.0], [[0.0], [1.0]], [1.0, 2.0], "spherical")
    jg.save(tmp_path / "mixture.npz", mixture)
    assert_identical(jg.load(tmp_path / "mixture.npz"), mixture)


def test_extreme_parameters_come_back(tmp_path):
    smallest, largest = 1e-30, 1e30
    covariance = jg.Diagonal(jnp.array([[smallest, largest]], jnp.float32))
    means = jnp.array([[largest, -smallest]], jnp.float32)
    mixture = jg.GaussianMixture(jnp.zeros(1, jnp.float32), means, covariance)
    jg.save(tmp_path / "mixture.npz", mixture)
    assert_identical(jg.load(tmp_path / "mixture.npz"), mixture)


def test_loaded_mixture_works(saved):
    x = blobs().astype(np.float32)
    np.testing.assert_array_equal(jg.load(saved).log_prob(x), mixture_of().log_prob(x))


@pytest.mark.parametrize("name", ["Mischung – été.npz", "混合", "no suffix", "a.b.c"])
def test_any_name_is_taken_as_it_is(name, tmp_path):
    jg.save(str(tmp_path / name), mixture_of())
    assert os.listdir(tmp_path) == [name]
    assert_identical(jg.load(str(tmp_path / name)), mixture_of())


def test_existing_file_is_replaced(saved):
    other = mixture_of("tied_diag")
    jg.save(saved, other)
    assert_identical(jg.load(saved), other)


def test_file_is_readable_as_npz(saved):
    with np.load(saved, allow_pickle=False) as archive:
        assert str(archive["format"]) == FORMAT
        np.testing.assert_array_equal(archive["means"], mixture_of().means)


def test_any_flipped_bit_is_detected(saved, tmp_path):
    content = saved.read_bytes()
    drawn = np.random.default_rng().integers(8 * len(content), size=80).tolist()
    ends = [0, 7, 8 * (len(content) - DIGEST_LENGTH) - 1, 8 * len(content) - 1]
    for bit in [*drawn, *ends]:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path = tmp_path / "damaged.npz"
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.npz"):
            jg.load(path)


def test_any_truncated_file_is_refused(saved, tmp_path):
    content = saved.read_bytes()
    path = tmp_path / "short.npz"
    for length in [*np.linspace(0, len(content) - 2, 40).astype(int), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"short\.npz"):
            jg.load(path)


def test_appended_bytes_are_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=r"mixture\.npz"):
        jg.load(saved)


@pytest.mark.parametrize("length", [0, 1, 64, 100, 5000])
def test_random_bytes_are_refused(length, tmp_path):
    path = tmp_path / "noise.npz"
    path.write_bytes(np.random.default_rng().bytes(length))
    with pytest.raises(ValueError, match=r"noise\.npz"):
        jg.load(path)


def test_npz_of_others_is_refused(tmp_path):
    path = tmp_path / "foreign.npz"
    np.savez(path, **sound_arrays())
    with pytest.raises(ValueError, match=r"foreign\.npz"):
        jg.load(path)


class Mark:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_pickle_is_never_run(tmp_path):
    marker = tmp_path / "marker"
    pickled = np.array([Mark(marker)], dtype=object)
    for name in ("means", "extra"):
        path = sealed(tmp_path / "trap.npz", sound_arrays(**{name: pickled}))
        with pytest.raises(ValueError, match=r"trap\.npz"):
            jg.load(path)
    path.write_bytes(pickle.dumps(Mark(marker)))
    with pytest.raises(ValueError, match=r"trap\.npz"):
        jg.load(path)
    assert not marker.exists()


def test_entries_cannot_leave_the_file(tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    arrays = sound_arrays(**{"../escaped": np.zeros(3, np.float32)})
    path = sealed(folder / "mixture.npz", arrays)
    with pytest.raises(ValueError, match="entries"):
        jg.load(path)
    assert os.listdir(tmp_path) == ["inner"]
    assert os.listdir(folder) == ["mixture.npz"]


NAN = np.float32(np.nan)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": np.array("jaxgmm mixture 2")}, "format 'jaxgmm mixture 1'"),
        ({"format": np.array(1)}, "format"),
        ({"format": None}, "entries"),
        ({"scale": None}, "entries"),
        ({"covariance": np.array("circular")}, "circular"),
        ({"means": np.zeros((2, 2), np.int32)}, "float32 or float64"),
        ({"means": np.zeros((2, 2), np.complex64)}, "float32 or float64"),
        ({"means": np.zeros((3, 2), np.float32)}, "agree"),
        ({"means": np.zeros((2, 3), np.float32)}, "agree"),
        ({"means": np.zeros((2,), np.float32)}, "agree"),
        ({"means": np.zeros((2, 0), np.float32)}, "agree"),
        ({"log_weights": np.zeros((), np.float32)}, "agree"),
        ({"scale": np.ones((4, 2, 2), np.float32)}, "agree"),
        ({"covariance": np.array("diagonal")}, "agree"),
        ({"covariance": np.array("spherical")}, "agree"),
        ({"means": np.full((2, 2), NAN)}, "finite"),
        ({"scale": np.full((2, 2, 2), NAN)}, "finite"),
        ({"log_weights": np.full(2, NAN)}, "sum to 1"),
        ({"log_weights": np.log([0.5, 0.4]).astype(np.float32)}, "sum to 1"),
        ({"log_weights": np.full(2, np.inf, np.float32)}, "sum to 1"),
        ({"scale": np.ones((2, 2, 2), np.float32)}, "triangular"),
        ({"scale": np.zeros((2, 2, 2), np.float32)}, "positive"),
        ({"scale": -np.tile(np.eye(2, dtype=np.float32), (2, 1, 1))}, "positive"),
    ],
)
def test_well_formed_files_without_a_mixture_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        jg.load(sealed(tmp_path / "odd.npz", sound_arrays(**changes)))
    assert "odd.npz" in str(caught.value)


def test_sound_arrays_are_sound(tmp_path):
    """The refusals above are due to the changes alone."""
    mixture = jg.load(sealed(tmp_path / "sound.npz", sound_arrays()))
    np.testing.assert_array_equal(mixture.covariances, np.tile(np.eye(2), (2, 1, 1)))


def test_cut_to_float32_is_announced(tmp_path):
    with jax.enable_x64(True):
        mixture = mixture_of(dtype=np.float64)
        jg.save(tmp_path / "mixture.npz", mixture)
    with jax.enable_x64(False):
        with pytest.warns(UserWarning, match="float32"):
            loaded = jg.load(tmp_path / "mixture.npz")
        assert loaded.means.dtype == np.float32
        np.testing.assert_allclose(loaded.means, mixture.means, rtol=1e-6)


def test_float32_is_loaded_in_silence(saved):
    for enabled in (False, True):
        with jax.enable_x64(enabled), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert jg.load(saved).means.dtype == np.float32


def test_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        jg.load(tmp_path / "nowhere.npz")


def test_folders_are_no_files(tmp_path):
    with pytest.raises(OSError):
        jg.load(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError):
        jg.save(folder, mixture_of())
    with pytest.raises(OSError):
        jg.save(tmp_path / "nowhere" / "mixture.npz", mixture_of())
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(folder) == []


@pytest.mark.parametrize("call", ["fsync", "replace", "fdopen", "chmod"])
def test_failed_writing_leaves_everything_as_it_was(call, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_, **__):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, call, fail)
        with pytest.raises(OSError, match="no space left"):
            jg.save(saved, mixture_of("diag"))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]
    assert_identical(jg.load(saved), mixture_of())


def test_what_is_no_mixture_is_named(tmp_path):
    result = jg.em(start_from_labels(blobs(), "full"), array(blobs()), max_iter=1)
    with pytest.raises(TypeError, match=r"result\.mixture, got FitResult"):
        jg.save(tmp_path / "result.npz", result)
    jg.save(tmp_path / "mixture.npz", result.mixture)


@pytest.mark.parametrize("field", ["log_weights", "means"])
def test_parameters_of_no_mixture_are_not_written(field, saved):
    before = saved.read_bytes()
    mixture = mixture_of()
    leaves = {"log_weights": mixture.log_weights, "means": mixture.means}
    leaves[field] = jnp.full_like(leaves[field], jnp.nan)
    with pytest.raises(ValueError):
        jg.save(saved, jg.GaussianMixture(**leaves, covariance=mixture.covariance))
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_dtype_is_stored_as_it_is(tmp_path):
    mixture = start_from_labels(blobs(), "full")
    jg.save(tmp_path / "mixture.npz", mixture)
    with np.load(tmp_path / "mixture.npz") as archive:
        assert archive["means"].dtype == (np.float64 if DOUBLE else np.float32)


WRITER = """
import itertools, sys
import jaxgmm as jg
for n in itertools.count():
    scale = float(n % 2 + 1)
    mixture = jg.GaussianMixture.create([1.0], [[scale] * 200], [scale], "spherical")
    jg.save(sys.argv[1], mixture)
    if n == 1:
        print("writing", flush=True)
"""


def test_a_writer_that_is_killed_leaves_a_whole_file(tmp_path):
    path = tmp_path / "killed.npz"
    for wait in (0.0, 0.003, 0.011):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "writing\n"
            time.sleep(wait)
            writer.kill()
        means = np.asarray(jg.load(path).means)
        assert (means == means[0, 0]).all() and means[0, 0] in (1, 2)


def test_of_two_writers_one_leaves_a_whole_file(tmp_path):
    path = tmp_path / "shared.npz"
    mixtures = [
        jg.GaussianMixture.create([1.0], [[float(n)] * 300], [1.0], "spherical") for n in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda n: [jg.save(path, mixtures[n]) for _ in range(20)], range(2)))
    found = np.asarray(jg.load(path).means)
    assert (found == found[0, 0]).all() and found[0, 0] in (0, 1)
    assert [file.name for file in tmp_path.iterdir()] == ["shared.npz"]


def test_what_does_not_fit_in_float32_is_refused(tmp_path):
    with jax.enable_x64(True):
        mixture = mixture_of(dtype=np.float64)
        jg.save(tmp_path / "large.npz", replace(mixture, means=mixture.means + 1e300))
        tight = jg.Spherical(np.full(2, 1e-50))
        jg.save(tmp_path / "tight.npz", jg.GaussianMixture(np.log([0.5, 0.5]), np.eye(2), tight))
    for name in ("large.npz", "tight.npz"):
        refused = pytest.raises(ValueError, match="don't fit in float32")
        with jax.enable_x64(False), pytest.warns(UserWarning, match="float32"), refused:
            jg.load(tmp_path / name)


NAMES = ["height, mm", "µ 身長\n", "0"]


def named_arrays(names, **changes):
    """What a file with names holds: one component, a feature for each of NAMES."""
    content = names if isinstance(names, bytes) else json.dumps(names).encode()
    return {
        "format": np.array("jaxgmm mixture 2"),
        "covariance": np.array("spherical"),
        "log_weights": np.zeros(1, np.float32),
        "means": np.zeros((1, len(NAMES)), np.float32),
        "scale": np.ones(1, np.float32),
        "feature_names": np.frombuffer(content, np.uint8),
        **changes,
    }


@pytest.mark.parametrize("batch_shape", [(), (2,)])
def test_names_of_features_come_back_and_the_mixture_is_the_same(tmp_path, batch_shape):
    path, names = tmp_path / "mixture.npz", ["b", "a"]
    mixture = mixture_of(batch_shape=batch_shape)
    jg.save(path, mixture, feature_names=np.array(names))
    loaded, found = jg.load(path, return_feature_names=True)
    assert found == names and all(type(name) is str for name in found)
    assert_identical(loaded, mixture)
    assert_identical(jg.load(path), mixture)


def test_file_without_names_is_of_the_first_format_and_says_so(saved):
    assert jg.load(saved, return_feature_names=True)[1] is None
    with np.load(saved) as archive:
        assert set(archive.files) == set(sound_arrays())
        assert str(archive["format"]) == "jaxgmm mixture 1"


def test_any_different_names_can_be_kept(tmp_path):
    loaded = sealed(tmp_path / "named.npz", named_arrays(NAMES))
    assert jg.load(loaded, return_feature_names=True)[1] == NAMES


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (named_arrays(["a", "b"]), "feature_names are 2, expected one for each of 3"),
        (named_arrays(["a", "b", "a"]), "must all differ"),
        (named_arrays(["a", "b", ""]), "not be empty"),
        (named_arrays(["a", "b", 3]), "list of strings"),
        (named_arrays({"a": 1, "b": 2, "c": 3}), "list of strings"),
        (named_arrays(b'["a", "b"'), "not JSON"),
        (named_arrays(b"\xff\xfe\xfa"), "not JSON"),
        (named_arrays(b"[" * 200_000), "not JSON"),
        (named_arrays(rb'["a", "b", "\ud800"]'), "UTF-8"),
        (named_arrays(NAMES, feature_names=np.array(NAMES)), "bytes"),
        (named_arrays(NAMES, feature_names=np.zeros((1, 3), np.uint8)), "bytes"),
        (named_arrays(NAMES, format=np.array("jaxgmm mixture 1")), "format 'jaxgmm mixture 2'"),
    ],
)
def test_names_that_are_not_those_of_the_features_are_refused(arrays, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        jg.load(sealed(tmp_path / "odd.npz", arrays))
    assert "odd.npz" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (["a"], ValueError, "feature_names are 1, expected one for each of 2"),
        (["a", "a"], ValueError, "must all differ"),
        ("ab", ValueError, "feature_names are 1"),
        ([0, 1], TypeError, "must be strings"),
    ],
)
def test_wrong_names_are_not_written(names, error, message, saved):
    before = saved.read_bytes()
    with pytest.raises(error, match=message):
        jg.save(saved, mixture_of(), feature_names=names)
    assert saved.read_bytes() == before


def test_file_objects_hold_the_bytes_that_files_do(saved, tmp_path):
    memory = io.BytesIO()
    jg.save(memory, mixture_of())
    assert memory.getvalue() == saved.read_bytes()
    memory.seek(0)
    assert_identical(jg.load(memory), mixture_of())
    with open(tmp_path / "opened", "w+b") as file:
        file.write(b"before")
        jg.save(file, mixture_of(), feature_names=["a", "b"])
        file.seek(len(b"before"))
        assert jg.load(file, return_feature_names=True)[1] == ["a", "b"]


def test_file_objects_are_refused_like_files(saved):
    with pytest.raises(ValueError, match="the file object is not a jaxgmm file"):
        jg.load(io.BytesIO(b"no"))
    with open(saved, "rb") as file:
        file.seek(1)
        with pytest.raises(ValueError, match=r"mixture\.npz"):
            jg.load(file)
    for odd in (io.StringIO(), 7):
        with pytest.raises(TypeError, match="file open for writing bytes"):
            jg.save(odd, mixture_of())
        with pytest.raises(TypeError, match="file open for reading bytes"):
            jg.load(odd)
