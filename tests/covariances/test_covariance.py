"""A covariance is the linear map that turns white noise into the component's noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import DTYPE, EPS, array, assert_close, by_dtype, double

import jaxgmm as jg
from jaxgmm.arrays import budgets
from jaxgmm.arrays.matrices import cholesky
from jaxgmm.arrays.numerics import log_softmax, logsumexp
from jaxgmm.covariances.storage import (
    kl_between_covariances,
    precision,
    precision_diagonal,
    whiten_columns,
    whiten_few,
)
from jaxgmm.covariances.structures import STRUCTURES, covariance_type_of, structure_named

pytestmark = pytest.mark.quick

N_COMPONENTS, N_FEATURES = 3, 4


def covariance_of(storage, leading, seed=0):
    random = np.random.default_rng(seed)
    if storage is jg.Full:
        lower = np.tril(random.normal(size=(leading, N_FEATURES, N_FEATURES)), -1)
        diagonal = random.uniform(0.5, 2, size=(leading, N_FEATURES))
        return jg.Full(array(lower + np.einsum("ki,ij->kij", diagonal, np.eye(N_FEATURES))))
    shape = (leading, N_FEATURES) if storage is jg.Diagonal else (leading,)
    return storage(array(random.uniform(0.5, 2, size=shape)))


@pytest.fixture(params=[jg.Full, jg.Diagonal, jg.Spherical], ids=lambda storage: storage.__name__)
def storage(request):
    return request.param


@pytest.fixture(params=[1, N_COMPONENTS], ids=["shared", "own"])
def covariance(storage, request):
    return covariance_of(storage, request.param)


@pytest.fixture
def vectors():
    return array(np.random.default_rng(1).normal(size=(5, N_COMPONENTS, N_FEATURES)))


def test_whiten_undoes_unwhiten(covariance, vectors):
    assert_close(covariance.whiten(covariance.unwhiten(vectors)), vectors)
    assert covariance.whiten(vectors).dtype == DTYPE


def test_columns_of_few_features_are_whitened_as_those_of_many(covariance, vectors):
    columns = jnp.transpose(vectors, (1, 2, 0))
    few = whiten_few(covariance, [columns[:, i] for i in range(N_FEATURES)])
    assert_close(jnp.stack(few, axis=1), whiten_columns(covariance, columns))
    assert_close(jnp.transpose(jnp.stack(few), (2, 1, 0)), covariance.whiten(vectors))


def test_dense_is_the_covariance_of_unwhitened_noise(covariance):
    columns = double(covariance.unwhiten(jnp.eye(N_FEATURES, dtype=DTYPE)[:, None, :]))
    assert_close(covariance.dense(N_FEATURES), np.einsum("ikm,ikn->kmn", columns, columns))


def test_whitened_square_is_the_mahalanobis_distance(covariance, vectors):
    precision = np.linalg.inv(double(covariance.dense(N_FEATURES)))
    precision = np.broadcast_to(precision, (N_COMPONENTS, N_FEATURES, N_FEATURES))
    expected = np.einsum("nki,kij,nkj->nk", double(vectors), precision, double(vectors))
    assert_close(np.sum(double(covariance.whiten(vectors)) ** 2, axis=-1), expected, rtol=1e3 * EPS)


def test_log_det_is_that_of_the_dense_matrix(covariance):
    expected = np.linalg.slogdet(double(covariance.dense(N_FEATURES)))[1]
    assert_close(covariance.log_det(N_FEATURES), expected)


def test_a_row_of_noise_is_shared_by_all_components(covariance):
    noise = array(np.arange(1.0, 1 + N_FEATURES)[None, None])
    shapes = covariance.whiten(noise).shape, covariance.unwhiten(noise).shape
    leading = covariance.dense(N_FEATURES).shape[0]
    assert shapes == ((1, leading, N_FEATURES), (1, leading, N_FEATURES))


def test_precision_is_the_inverse(covariance):
    expected = np.linalg.inv(double(covariance.dense(N_FEATURES)))
    assert_close(
        precision(covariance, N_FEATURES), expected, rtol=0, atol=1e3 * EPS * expected.max()
    )
    diagonal = precision_diagonal(covariance, N_FEATURES)
    assert_close(diagonal, np.diagonal(expected, axis1=1, axis2=2), rtol=1e3 * EPS)


def test_kl_between_covariances_is_the_textbook_formula(storage):
    new, old = covariance_of(storage, N_COMPONENTS), covariance_of(storage, N_COMPONENTS, seed=7)
    ratio = np.linalg.solve(double(old.dense(N_FEATURES)), double(new.dense(N_FEATURES)))
    expected = np.trace(ratio, axis1=1, axis2=2) - N_FEATURES - np.linalg.slogdet(ratio)[1]
    actual = kl_between_covariances(new, old, N_FEATURES)
    assert_close(actual, expected / 2, rtol=by_dtype(1e-3, 1e-10))


def test_kl_between_covariances_is_accurate_however_close_they_are(covariance):
    """Scaling a factor by 1 + δ gives D (δ + δ²/2 - log(1 + δ)), which is D δ² to first order."""
    delta = 2.0**-10 if jnp.float32 == DTYPE else 2.0**-23
    wider = jax.tree.map(lambda leaf: leaf * (1 + delta), covariance)
    actual = kl_between_covariances(wider, covariance, N_FEATURES)
    expected = N_FEATURES * (delta + delta**2 / 2 - np.log1p(delta))
    if delta < 1e-6:
        expected = N_FEATURES * (delta**2 - delta**3 / 3)
    assert_close(actual, np.full(actual.shape, expected), rtol=by_dtype(2e-2, 1e-6))
    assert_close(kl_between_covariances(covariance, covariance, N_FEATURES), 0 * expected)


def test_kl_is_zero_between_equal_covariances(covariance):
    assert np.all(double(kl_between_covariances(covariance, covariance, N_FEATURES)) == 0)


def test_every_type_writes_down_what_it_stores(covariance_type):
    row = STRUCTURES[covariance_type]
    variances = covariance_of(row.storage, 1 if row.shared else N_COMPONENTS)
    written = double(variances.dense(N_FEATURES))
    flat = {jg.Full: written, jg.Diagonal: np.einsum("kii->ki", written)}
    values = flat.get(row.storage, written[:, 0, 0])
    values = values[0] if row.shared else values
    assert values.shape == row.shape(N_COMPONENTS, N_FEATURES)
    stored = row.store(array(values))
    assert row.stores(stored, N_COMPONENTS)
    assert covariance_type_of(stored, N_COMPONENTS) == covariance_type
    assert_close(stored.dense(N_FEATURES), written)


def test_the_nearest_covariance_of_its_own_type_is_itself(covariance_type):
    row = STRUCTURES[covariance_type]
    covariance = covariance_of(row.storage, 1 if row.shared else N_COMPONENTS)
    nearest = row.nearest(covariance, array([0.2, 0.3, 0.5]), N_FEATURES)
    assert_close(nearest.dense(N_FEATURES), covariance.dense(N_FEATURES))


def test_names_are_mclusts():
    names = {name: row.mclust for name, row in STRUCTURES.items()}
    assert all(structure_named(code) is STRUCTURES[name] for name, code in names.items())
    assert names == {
        "full": "VVV",
        "tied": "EEE",
        "diag": "VVI",
        "spherical": "VII",
        "tied_diag": "EEI",
        "tied_spherical": "EII",
        "VEI": "VEI",
    }


def test_cholesky_is_exact_for_well_conditioned_matrices():
    factor = covariance_of(jg.Full, N_COMPONENTS).scale_tril
    dense = np.einsum("kij,klj->kil", double(factor), double(factor))
    assert_close(cholesky(array(dense)), np.linalg.cholesky(double(array(dense))))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_cholesky_exists_for_singular_matrices(rank):
    random = np.random.default_rng(rank)
    columns = random.normal(size=(N_FEATURES, rank))
    matrix = columns @ columns.T
    factor = double(cholesky(array(matrix)))
    assert np.all(np.diag(factor) > 0) and np.isfinite(factor).all()
    assert_close(factor @ factor.T, matrix, rtol=0, atol=100 * EPS * max(1, np.trace(matrix)))


def test_cholesky_does_not_depend_on_units():
    matrix = np.array([[2.0, 1.0], [1.0, 3.0]])
    units = np.diag([2.0**-20, 2.0**20])
    assert_close(cholesky(array(units @ matrix @ units)), units @ np.linalg.cholesky(matrix), 1e-5)


def test_logsumexp_of_nothing_is_minus_infinity_with_zero_gradient():
    nothing = array([-np.inf, -np.inf])
    value, gradient = jax.value_and_grad(logsumexp)(nothing)
    assert value == -jnp.inf and np.all(double(gradient) == 0)
    assert_close(log_softmax(nothing), -np.log([2, 2]))


@pytest.mark.parametrize("n_components", [1, budgets.CPU.few_arrays, budgets.CPU.few_arrays + 1])
def test_logsumexp_of_few_arrays_is_that_of_many(n_components):
    """Written out or not, and so are its derivatives, forward and backward."""
    logits = array(np.random.default_rng(0).normal(scale=30, size=(n_components, 20)))
    logits = logits.at[:, 3].set(-jnp.inf)

    def total(axis, values):
        values = values if axis == 0 else values.T
        return jnp.sum(jnp.where(jnp.arange(20) == 3, 0, logsumexp(values, axis)) ** 2)

    by_first, by_last = (jax.value_and_grad(partial(total, axis)) for axis in (0, 1))
    for found, expected in zip(by_first(logits), by_last(logits), strict=True):
        assert_close(found, expected)
    assert logsumexp(logits, 0)[3] == -jnp.inf
    along = jnp.where(jnp.isfinite(logits), jnp.cos(logits), 0)
    slope = jax.jvp(partial(total, 0), (logits,), (along,))[1]
    assert_close(slope, jnp.sum(along * by_last(logits)[1]), rtol=1e4 * EPS)


def test_logsumexp_does_not_overflow():
    largest = float(jnp.finfo(DTYPE).max) / 4
    assert logsumexp(array([largest, largest])) == largest
    assert_close(logsumexp(array([-1e4, -1e4])), -1e4 + np.log(2))


def test_cholesky_of_rounded_singular_matrices_does_not_grow():
    """Of rank 4 in 30 dimensions: what rounding leaves of the rest is no factor of anything."""
    thin = np.random.default_rng(0).normal(size=(20, 30, 4))
    matrix = array(np.einsum("kir,kjr->kij", thin, thin))
    factor = double(cholesky(matrix))
    diagonal = np.einsum("kii->ki", double(matrix))
    error = np.abs(np.einsum("kij,klj->kil", factor, factor) - double(matrix))
    scale = np.sqrt(diagonal[:, :, None] * diagonal[:, None, :])
    assert np.max(error / scale) < by_dtype(0.02, 1e-6)


def test_the_nearest_shared_covariance_is_the_average_by_weight():
    covariances = array(np.stack([np.eye(2), 4 * np.eye(2)]))
    factors = jg.Full(jnp.sqrt(covariances))
    nearest = STRUCTURES["tied"].nearest(factors, array([0.25, 0.75]), 2)
    assert_close(nearest.dense(2)[0], 3.25 * np.eye(2))
