"""Numbers are read as they were when the call was made, from whatever they are kept in."""

import warnings
from decimal import Decimal

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import DOUBLE, DTYPE, Tensor, blobs

import jaxgmm as jg
from jaxgmm.arrays.budgets import CPU
from jaxgmm.arrays.conversion import _own_copy, _warn_computed_in_float32, as_float_array
from jaxgmm.arrays.host import from_host

pytestmark = pytest.mark.quick

X = blobs()


class TensorAndArray(Tensor):
    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class NeedsGradient(Tensor):
    def __dlpack__(self, **options):
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")


def at_64_bytes(shape):
    """Memory of the kind that JAX on a CPU shares instead of copying it."""
    n_bytes = int(np.prod(shape)) * DTYPE.itemsize
    memory = np.empty(n_bytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n_bytes].view(DTYPE).reshape(shape)


@pytest.mark.parametrize("n_rows", [100, CPU.small + 1])
@pytest.mark.parametrize("kind", [np.asarray, Tensor, TensorAndArray])
def test_what_an_owner_writes_afterwards_is_not_seen(kind, n_rows):
    buffer = at_64_bytes((n_rows, 2))
    buffer[:] = 1
    taken = as_float_array("x", kind(buffer))
    buffer[:] = 5
    assert np.all(np.asarray(taken) == 1)


def test_what_is_copied_is_copied_once():
    """JAX takes the copy over as it is, and its own arrays stay."""
    copy = _own_copy(X[::2].T, DTYPE)
    assert from_host(copy).unsafe_buffer_pointer() == copy.ctypes.data
    assert np.array_equal(copy, X[::2].T) and copy.flags.c_contiguous
    array = jnp.asarray(X, DTYPE)
    assert as_float_array("x", array) is array


STRIDED = {
    "columns": lambda x: x[:, :1],
    "every other row": lambda x: x[::2],
    "transposed": lambda x: x.T,
    "reversed": lambda x: x[::-1],
    "one column of several": lambda x: x[:, 1:2],
}


@pytest.mark.parametrize("view", STRIDED.values(), ids=STRIDED)
def test_tensors_may_be_views(view):
    x = view(np.array(X, DTYPE))
    assert np.array_equal(as_float_array("x", Tensor(x)), x)
    assert np.array_equal(as_float_array("x", TensorAndArray(x)), x)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64", "uint8", "bool"])
def test_tensors_are_computed_in_the_dtype_of_arrays(dtype):
    x = (4 * X).astype(dtype)

    def taken(kind):
        _warn_computed_in_float32.cache_clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            return as_float_array("x", kind(x)), [str(warning.message) for warning in caught]

    expected, said = taken(np.asarray)
    assert len(said) == (dtype == "float64" and not DOUBLE)
    for kind in (Tensor, TensorAndArray):
        actual, also_said = taken(kind)
        assert actual.dtype == expected.dtype and np.array_equal(actual, expected)
        assert also_said == said


def test_bfloat16_tensors_are_computed_in_float32():
    x = jnp.asarray(X, "bfloat16")
    actual = as_float_array("x", Tensor(x))
    assert actual.dtype == jnp.float32 and np.array_equal(actual, x.astype("float32"))


def test_tensors_that_require_gradients_say_detach():
    with pytest.raises(ValueError, match=r"x can't be made into an array: .*tensor\.detach\(\)"):
        as_float_array("x", NeedsGradient(X))


def test_extended_precision_is_double_precision():
    """In either mode; where that is off, with its warning."""
    _warn_computed_in_float32.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        taken = as_float_array("x", X.astype(np.longdouble))
    assert taken.dtype == DTYPE and np.array_equal(taken, X.astype(DTYPE))
    assert len(caught) == (not DOUBLE)


ROUNDED = {
    "Unix seconds": (1_760_000_000 + np.arange(9), DOUBLE),
    "uint32": (np.array([3_000_000_001], np.uint32), DOUBLE),
    "int32": (np.array([100_000_001], np.int32), DOUBLE),
    "of JAX": (lambda: jnp.array([100_000_001], jnp.int32), DOUBLE),
    "negative": (np.array([-(2**24) - 1]), DOUBLE),
    "a list": ([1_760_000_001], DOUBLE),
    "beyond float64": (np.array([2**53 + 1]), False),
    "the largest": (np.array([2**64 - 1], np.uint64), False),
    "exact": (np.array([2**24, -(2**24), 2**40, 3 * 2**60]), True),
    "small": (np.array([255], np.uint8), True),
}


@pytest.mark.parametrize(("values", "exact"), ROUNDED.values(), ids=ROUNDED)
def test_whole_numbers_that_floats_round_warn(values, exact):
    values = values() if callable(values) else values
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        taken = as_float_array("x", values)
    assert taken.dtype == DTYPE
    assert len(caught) == (not exact)
    for warning in caught:
        assert "x holds whole numbers" in str(warning.message)
        assert "offset" in str(warning.message)


def test_a_warning_points_at_the_line_of_the_call():
    mixture = jg.GaussianMixture.create([1.0], [[0.0]], [1.0], "spherical")
    with pytest.warns(UserWarning, match="weights holds whole numbers up to") as caught:
        jg.e_step(mixture, [[0.0], [1.0]], np.array([2**60 + 1, 1]))
    assert caught[0].filename == __file__


FRAME = pd.DataFrame({"a": X[:, 0], "b": X[:, 1] > 0, "c": np.arange(len(X))})
NUMBERS = np.c_[X[:, 0], X[:, 1] > 0, np.arange(len(X))].astype(DTYPE)
TABLES = {
    "of NumPy's dtypes": lambda: FRAME,
    "nullable": lambda: FRAME.astype({"a": "Float64", "b": "boolean", "c": "Int64"}),
    "of Arrow": lambda: FRAME.astype({"a": "double[pyarrow]", "c": "int64[pyarrow]"}),
    "objects": lambda: FRAME.astype(object),
    "Decimal": lambda: FRAME.assign(a=[Decimal(float(a)) for a in FRAME.a]),
    "two columns of one name": lambda: FRAME.set_axis(["a", "a", "c"], axis=1),
    "an array of objects": lambda: np.array(FRAME.astype(object)),
}


@pytest.mark.filterwarnings("ignore:x is float64")
@pytest.mark.parametrize("build", TABLES.values(), ids=TABLES)
def test_tables_of_several_dtypes_are_their_numbers(build):
    taken = as_float_array("x", build())
    assert taken.dtype == DTYPE and np.array_equal(taken, NUMBERS)


def test_a_nullable_column_is_weights():
    weights = pd.Series([1, 2, 3], dtype="Int64")
    assert as_float_array("weights", weights).tolist() == [1, 2, 3]


INCOMPLETE = {
    "missing": (
        lambda: FRAME.astype({"c": "Int64"}).replace({"c": {7: pd.NA}}),
        r"x, column 'c', .* missing values, the first at row 7; drop such",
    ),
    "text": (
        lambda: FRAME.assign(name="Ann"),
        r"x, column 'name', must hold numbers, got 'Ann' at row 0; .*leave the column out",
    ),
    "dates": (
        lambda: FRAME.assign(day=pd.Timestamp("2026-01-01")),
        r"x, column 'day', must hold numbers, got dtype datetime64",
    ),
    "None": (
        lambda: np.array([[1.0, 2.0], [3.0, None]]),
        r"x must hold numbers, got missing values, the first at row 1, column 1",
    ),
}


@pytest.mark.parametrize(("build", "message"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_columns_without_numbers_are_named(build, message):
    with pytest.raises(TypeError, match=message):
        as_float_array("x", build())


@pytest.mark.parametrize("value", [{"a": np.zeros(3)}, iter([1.0]), None, object()])
def test_what_is_no_array_at_all_is_called_by_its_type(value):
    with pytest.raises(TypeError, match=f"x must hold numbers, got {type(value).__name__}; make"):
        as_float_array("x", value)
