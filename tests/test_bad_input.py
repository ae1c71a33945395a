"""Wrong input is refused before anything is compiled, with what came and what to do.

The cases are numbered A01 to A27.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from helpers import (
    DOUBLE,
    DTYPE,
    K,
    N,
    Tensor,
    array,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    em,
    start_from_labels,
)

import jaxgmm as jg
from jaxgmm.arrays.budgets import CPU
from jaxgmm.arrays.conversion import as_float_array
from jaxgmm.arrays.validation import check_data

X = blobs()


def spoiled(value):
    x = X.copy()
    x[3, 1] = value
    return array(x)


BAD_DATA = {
    "A01 NaN": (lambda: spoiled(np.nan), ValueError, "nan at row 3, column 1"),
    "A02 infinity": (lambda: spoiled(np.inf), ValueError, "inf at row 3, column 1"),
    "A03 minus infinity": (lambda: spoiled(-np.inf), ValueError, "-inf at row 3, column 1"),
    "A04 no rows": (lambda: array(np.zeros((0, 2))), ValueError, "at least one row"),
    "A05 no features": (lambda: array(np.zeros((10, 0))), ValueError, "at least one row and"),
    "A06 one axis": (lambda: array(X[:, 0]), ValueError, r"x\[:, None\]"),
    "A06 no axis": (lambda: array(1.0), ValueError, r"x must be \(N, D\)"),
    "A07 three axes": (lambda: array(X.reshape(45, 2, 2)), ValueError, "vmap"),
    "A08 complex": (lambda: X + 0j, TypeError, "real numbers"),
    "A09 text": (lambda: X.astype(str), TypeError, "must hold numbers"),
    "A09 a list with text": (lambda: [["1", 2.0]], TypeError, "must hold numbers"),
    "A09 a ragged list": (lambda: [[1.0, 2.0], [1.0]], ValueError, "array"),
    "A09 objects": (lambda: np.array([[None, 1.0]]), TypeError, "must hold numbers"),
    "A09 dates": (lambda: np.zeros((3, 2), "datetime64[s]"), TypeError, "must hold numbers"),
    "A25 masked": (lambda: np.ma.masked_array(X, X > 3), ValueError, "weight 0"),
    "A25 missing in pandas": (
        lambda: pd.DataFrame({"a": [1, None], "b": [1, 2]}, dtype="Int64"),
        TypeError,
        "missing values",
    ),
    "A26 sparse": (lambda: scipy.sparse.csr_array(X), TypeError, "dense"),
}

CALLS = {
    "fit": lambda x: jg.fit(jax.random.key(0), x, 2),
    "em": lambda x: jg.em(start_from_labels(X, "full"), x),
    "em_step": lambda x: jg.em_step(start_from_labels(X, "full"), x),
    "log_likelihood": lambda x: jg.log_likelihood(start_from_labels(X, "full"), x),
    "bic": lambda x: jg.bic(start_from_labels(X, "full"), x),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("build", "error", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_data_are_refused(call, build, error, message):
    with pytest.raises(error, match=message):
        call(build())


BAD_QUERIES = {
    name: case for name, case in BAD_DATA.items() if name[:3] in ("A05", "A08", "A09", "A25", "A26")
}


@pytest.mark.parametrize("method", ["log_prob", "responsibilities", "predict"])
@pytest.mark.parametrize(("build", "error", "message"), BAD_QUERIES.values(), ids=BAD_QUERIES)
def test_queries_are_refused(method, build, error, message):
    with pytest.raises(error):
        getattr(start_from_labels(X, "full"), method)(build())


def test_a_query_of_nan_has_no_density():
    """A01: NaN in, NaN out, for that row alone."""
    log_prob = double(start_from_labels(X, "full").log_prob(spoiled(np.nan)))
    assert np.isnan(log_prob[3]) and np.isfinite(np.delete(log_prob, 3)).all()


@pytest.mark.parametrize(
    ("x", "message"),
    [(np.zeros((3, 5)), r"\(N, 2\).*got shape \(3, 5\)"), (np.zeros((3, 1)), "2 features")],
    ids=["A15 more features", "A15 fewer features"],
)
def test_data_of_another_dimension_are_refused(x, message):
    with pytest.raises(ValueError, match=message):
        jg.em(start_from_labels(X, "full"), array(x))


@pytest.mark.parametrize(
    ("n_components", "message"),
    [
        (0, "at least 1"),
        (-1, "at least 1"),
        (2.5, "integer"),
        (True, "integer"),
        (9, "n_components=9 .* x has 5"),
        (None, "integer"),
        ("2", "integer"),
    ],
    ids=lambda value: f"A16 {value}" if not isinstance(value, str) or value == "2" else "",
)
def test_counts_are_refused(n_components, message):
    with pytest.raises(ValueError, match=message):
        jg.fit(jax.random.key(0), array(X[:5]), n_components)


BAD_OPTIONS = {
    "A16 n_init 0": ({"n_init": 0}, "n_init"),
    "A16 max_iter -1": ({"max_iter": -1}, "max_iter"),
    "A18 tol NaN": ({"tol": np.nan}, "tol"),
    "A18 tol -1": ({"tol": -1}, "tol"),
    "A18 tol infinite": ({"tol": np.inf}, "tol"),
    "A18 tol vector": ({"tol": np.ones(2)}, "tol"),
    "A19 reg NaN": ({"reg_covar": np.nan}, "reg_covar"),
    "A19 reg -1": ({"reg_covar": -1.0}, "reg_covar"),
    "A21 negative": ({"weights": -np.ones(N)}, "negative, got -1"),
    "A21 NaN": ({"weights": np.full(N, np.nan)}, "finite"),
    "A21 zero": ({"weights": np.zeros(N)}, "all zero"),
    "A21 short": ({"weights": np.ones(N - 1)}, r"weights must be \(90,\)"),
    "A21 two axes": ({"weights": np.ones((N, 1))}, r"weights must be \(90,\)"),
    "A22 Full": ({"covariance_type": "Full"}, "full, tied, diag, spherical"),
    "A22 None": ({"covariance_type": None}, "full, tied, diag, spherical"),
    "A22 3": ({"covariance_type": 3}, "full, tied, diag, spherical"),
    "A22 init": ({"init": "magic"}, "kmeans"),
    "A22 responsibilities": ({"init": np.ones((N, K + 1))}, "responsibilities must be"),
    "A22 mixture": ({"init": "mixture of two"}, "init"),
    "A22 adjoint": ({"adjoint": "reverse"}, "implicit"),
}


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_options_are_refused(options, message):
    options = {
        name: array(value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    with pytest.raises(ValueError, match=message):
        jg.fit(jax.random.key(0), array(X), K, **options)


@pytest.mark.parametrize(
    ("key", "error"),
    [(0, TypeError), (None, TypeError), (np.zeros(2, np.uint32), TypeError), ("many", ValueError)],
    ids=["A23 int", "A23 none", "A23 numpy", "A23 batch"],
)
def test_keys_are_refused(key, error):
    key = jax.random.split(jax.random.key(0), 3) if isinstance(key, str) else key
    with pytest.raises(error, match="key"):
        jg.fit(key, array(X), K)
    with pytest.raises(error, match="key"):
        start_from_labels(X, "full").sample(key, 3)


def test_old_keys_are_accepted():
    """A23: the uint32 kind draws what the typed one draws."""
    mixture = start_from_labels(X, "full")
    old, new = jax.random.PRNGKey(3), jax.random.key(3)
    assert np.array_equal(mixture.sample(old, 4), mixture.sample(new, 4))


def readonly():
    x = np.array(X, DTYPE)
    x.setflags(write=False)
    return x


SAME_DATA = {
    "A24 Fortran order": lambda: np.asfortranarray(np.array(X, DTYPE)),
    "A24 view": lambda: np.repeat(np.array(X, DTYPE), 2, axis=0)[::2],
    "A24 reversed view": lambda: np.ascontiguousarray(np.array(X, DTYPE)[::-1])[::-1],
    "A24 read-only": readonly,
    "A24 DataFrame": lambda: pd.DataFrame(np.array(X, DTYPE), columns=["a", "b"]),
    "A24 DLPack": lambda: Tensor(np.array(X, DTYPE)),
    "A24 list": lambda: np.array(X, DTYPE).tolist(),
    "A24 big-endian": lambda: np.array(X, DTYPE).astype(np.dtype(DTYPE).newbyteorder(">")),
}


@pytest.mark.parametrize("build", SAME_DATA.values(), ids=SAME_DATA)
def test_the_kind_of_array_does_not_matter(build):
    start = start_from_labels(X, "full")
    expected = em(start, X)
    actual = jg.em(start, build())
    assert np.array_equal(actual.mixture.means, expected.mixture.means)
    assert actual.mixture.means.dtype == DTYPE


def test_data_may_lie_in_a_read_only_file(tmp_path):
    np.save(tmp_path / "x.npy", np.array(X, DTYPE))
    start = start_from_labels(X, "full")
    actual = jg.em(start, np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert np.array_equal(actual.mixture.means, em(start, X).mixture.means)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"], ids=lambda name: f"A11 {name}")
def test_integers_are_cast_exactly(dtype):
    x = (np.abs(X) > 3) if dtype == "bool" else np.abs(3 * X).astype(dtype)
    weights = jg.e_step(start_from_labels(X, "full"), x)
    expected = jg.e_step(start_from_labels(X, "full"), array(x))
    assert np.array_equal(weights.second, expected.second) and weights.second.dtype == DTYPE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"], ids=lambda name: f"A12 {name}")
def test_half_precision_is_computed_in_float32(dtype):
    start = jax.tree.map(lambda leaf: leaf.astype("float32"), start_from_labels(X, "full"))
    x = jnp.asarray(X, dtype)
    actual, expected = jg.e_step(start, x), jg.e_step(start, x.astype("float32"))
    assert actual.second.dtype == jnp.float32
    assert np.array_equal(actual.second, expected.second)


def test_double_precision_data_are_computed_in_double_or_say_so():
    """A13: while 64-bit mode is off, one warning in a program; never silently."""
    from jaxgmm.arrays.conversion import _warn_computed_in_float32

    _warn_computed_in_float32.cache_clear()
    start = start_from_labels(X, "full")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            result = start.log_prob(np.asarray(X, np.float64))
    assert len(caught) == (0 if DOUBLE else 1)
    assert result.dtype == DTYPE
    assert all("float32" in str(warning.message) for warning in caught)


def test_what_was_given_is_left_alone():
    """A27: no input is written to or donated."""
    x, weights = np.array(X, DTYPE), np.ones(N, DTYPE)
    start = start_from_labels(X, "full")
    before = jax.tree.map(np.array, (x, weights, start))
    device = array(x)
    jg.em(start, x, weights=weights)
    em(start, device)
    after = jax.tree.map(np.asarray, (x, weights, start))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert np.array_equal(old, new)
    assert np.array_equal(device, x)


@pytest.mark.parametrize("scale", by_dtype((1e-20, 1e15, 1e18), (1e-100, 1e100, 1e150)))
def test_extreme_units_are_fitted_or_reported(scale):
    """A14, C03, C04: never a wrong answer that calls itself converged."""
    start = start_from_labels(X, "diag")
    covariance = jax.tree.map(lambda leaf: leaf * scale, start.covariance)
    scaled = jg.GaussianMixture(start.log_weights, start.means * scale, covariance)
    expected, actual = em(start, X), em(scaled, double(array(X * scale)))
    if actual.converged:
        back = jax.tree.map(lambda leaf: leaf / scale, actual.mixture.covariance)
        mixture = jg.GaussianMixture(actual.mixture.log_weights, actual.mixture.means / scale, back)
        assert_same_mixture(mixture, expected.mixture)
    assert np.isfinite(double(actual.mixture.means)).all()


def test_the_first_bad_weight_is_named():
    weights = np.ones(N)
    weights[[4, 8]] = -1
    with pytest.raises(ValueError, match=r"negative, got -1.0 at row 4"):
        jg.em(start_from_labels(blobs(), "full"), array(blobs()), weights=array(weights))


def test_what_happens_to_a_small_array_afterwards_is_not_seen():
    """JAX may share the memory of an array that starts at a multiple of 64 bytes."""
    memory = np.ones(1000, DTYPE)
    start = -memory.ctypes.data % 64 // memory.itemsize
    x = memory[start : start + 200].reshape(100, 2)
    taken = as_float_array("x", x)
    x[:] = 5
    assert np.all(taken == 1)


def test_bfloat16_of_numpy_is_bfloat16():
    x = np.asarray(jnp.asarray(X, "bfloat16"))
    assert as_float_array("x", x).dtype == jnp.float32


def test_in_large_data_the_first_bad_number_is_named():
    spoiled = np.ones((CPU.small, 2), DTYPE)
    spoiled[70_000, 1] = np.inf
    x = jnp.asarray(spoiled)
    with pytest.raises(ValueError, match="x holds inf at row 70000, column 1"):
        jg.fit(jax.random.key(0), x, 2)
    absent = np.ones(CPU.small, DTYPE)
    absent[70_000] = 0
    check_data(x, absent)
    with pytest.raises(ValueError, match="row 70000"):
        jax.jit(lambda factor: factor * check_data(x, None)[0])(1.0)


def test_of_no_rows_there_is_nothing_and_no_likelihood():
    """I08."""
    mixture, nothing = start_from_labels(X, "full"), np.zeros((0, X.shape[1]), DTYPE)
    assert mixture.log_prob(nothing).shape == mixture.predict(nothing).shape == (0,)
    assert mixture.responsibilities(nothing).shape == (0, mixture.n_components)
    assert jg.mahalanobis(mixture, nothing).shape == (0, mixture.n_components)
    assert jg.regress(mixture, [0], nothing[:, :1])[0].shape == (0, X.shape[1] - 1)
    for number in (jg.log_likelihood, jg.bic):
        with pytest.raises(ValueError, match="at least one row"):
            number(mixture, nothing)


@pytest.mark.parametrize("function", [jg.em, jg.e_step, jg.log_likelihood, jg.standard_errors])
def test_what_is_no_mixture_is_a_type_error(function):
    with pytest.raises(TypeError, match="GaussianMixture"):
        function(array(X), array(X))
    result = jg.em(start_from_labels(X, "diag"), array(X), max_iter=1, tol=0)
    with pytest.raises(TypeError, match=r"result\.mixture"):
        function(result, array(X))
