"""Densities, responsibilities, draws and moments of a mixture."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    DOUBLE,
    DTYPE,
    D,
    K,
    array,
    assert_close,
    blobs,
    by_dtype,
    double,
    start_from_labels,
)

import jaxgmm as jg

pytestmark = pytest.mark.quick

RELATIVE = by_dtype(2e-5, 1e-11)

FAR = {
    "diagonal": ([1e10, 1e10], True),
    "squares overflow float32": ([1e25, 0.0], True),
    "squares overflow float64": ([1e160, 0.0], DOUBLE),
    "anything overflows": ([1e200, 0.0], DOUBLE),
    "opposite": ([-1e25, 1e25], True),
}
FAR = {name: point for name, (point, representable) in FAR.items() if representable}


@pytest.fixture
def x():
    return blobs()


@pytest.fixture
def mixture(x, covariance_type):
    return start_from_labels(x, covariance_type)


@pytest.fixture
def full(x):
    return start_from_labels(x, "full")


def test_densities_are_the_oracles(x, mixture):
    reference = oracle.dense(mixture)
    assert_close(
        mixture.component_log_prob(array(x)),
        oracle.component_log_prob(reference, x),
        rtol=RELATIVE,
        atol=RELATIVE,
    )
    assert_close(mixture.log_prob(array(x)), oracle.log_prob(reference, x), rtol=RELATIVE)
    assert mixture.log_prob(array(x)).dtype == DTYPE


def test_responsibilities_are_the_oracles(x, mixture):
    expected = oracle.responsibilities(oracle.dense(mixture), x)
    tolerance = by_dtype(2e-4, 1e-11)
    assert_close(mixture.responsibilities(array(x)), expected, rtol=0, atol=tolerance)
    logs = double(mixture.log_responsibilities(array(x)))
    assert_close(np.exp(logs), expected, rtol=0, atol=tolerance)
    assert np.array_equal(mixture.predict(array(x)), expected.argmax(axis=1))


def test_responsibilities_sum_to_one(x, mixture):
    assert_close(jnp.sum(mixture.responsibilities(array(x)), axis=1), np.ones(len(x)))


def test_total_log_likelihood_is_the_weighted_sum(x, mixture):
    weights = double(array(np.random.default_rng(0).uniform(size=len(x))))
    expected = oracle.log_likelihood(oracle.dense(mixture), x, weights)
    actual = jg.log_likelihood(mixture, array(x), array(weights))
    assert actual.shape == ()
    assert_close(actual, expected, rtol=RELATIVE)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (0,)], ids=str)
def test_methods_keep_leading_axes(full, shape):
    points = array(np.zeros((*shape, D)))
    assert full.log_prob(points).shape == shape
    assert full.predict(points).shape == shape
    for method in (full.component_log_prob, full.log_responsibilities, full.responsibilities):
        assert method(points).shape == (*shape, K)


def test_precisions_are_inverse_covariances(mixture):
    product = np.einsum("kij,kjl->kil", double(mixture.precisions), double(mixture.covariances))
    assert product.shape == (K, D, D)
    assert_close(
        product, np.broadcast_to(np.eye(D), product.shape), rtol=0, atol=by_dtype(1e-4, 1e-12)
    )


def test_mean_and_covariance_are_those_of_the_density(mixture):
    m = oracle.dense(mixture)
    mean = m.weights @ m.means
    second = np.einsum("k,kij->ij", m.weights, m.covariances)
    second = second + np.einsum("k,ki,kj->ij", m.weights, m.means, m.means)
    assert_close(mixture.mean(), mean)
    assert_close(mixture.covariance_matrix(), second - np.outer(mean, mean))


def test_draws_have_the_moments_of_the_mixture(mixture, key):
    """Means within 5 standard errors, covariances within a few percent of the total variance."""
    n = 20_000
    draws = double(mixture.sample(key, n))
    variance = double(mixture.covariance_matrix())
    error = np.abs(draws.mean(axis=0) - double(mixture.mean())) / np.sqrt(np.diag(variance) / n)
    assert error.max() < 5
    scale = np.sqrt(np.outer(np.diag(variance), np.diag(variance)))
    assert np.abs((np.cov(draws.T) - variance) / scale).max() < 10 / np.sqrt(n)


def test_draws_of_each_component_have_its_moments(mixture, key):
    n = 20_000
    draws, labels = mixture.sample(key, n, return_labels=True)
    reference = oracle.dense(mixture)
    for k in range(K):
        own = double(draws)[np.asarray(labels) == k]
        assert abs(len(own) / n - reference.weights[k]) < 5 / np.sqrt(n)
        whiten = np.linalg.inv(np.linalg.cholesky(reference.covariances[k]))
        noise = (own - reference.means[k]) @ whiten.T
        assert np.abs(noise.mean(axis=0)).max() < 5 / np.sqrt(len(own))
        assert np.abs(np.cov(noise.T) - np.eye(D)).max() < 10 / np.sqrt(len(own))


def test_the_key_decides_the_draws(full, key):
    first, again = full.sample(key, 8), full.sample(key, 8)
    other = full.sample(jax.random.key(1), 8)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert first.dtype == DTYPE


@pytest.mark.parametrize("n", [0, 1])
def test_few_draws_have_the_right_shape(full, key, n):
    draws, labels = full.sample(key, n, return_labels=True)
    assert draws.shape == (n, D) and labels.shape == (n,)
    assert jnp.issubdtype(labels.dtype, jnp.integer)


def test_a_component_of_weight_zero_is_never_drawn(key):
    mixture = jg.GaussianMixture.create(
        array([0, 0.5, 0.5]), array(np.eye(3, 2)), array(np.ones(3)), "spherical"
    )
    _, labels = mixture.sample(key, 1000, return_labels=True)
    assert np.all(np.asarray(labels) > 0)


def test_an_equidistant_point_belongs_to_equal_components_alike():
    """And the label is the lowest of them."""
    mixture = jg.GaussianMixture.create(
        array([0.5, 0.5]), array([[-1.0, 0.0], [1.0, 0.0]]), array(1.0), "tied_spherical"
    )
    assert_close(mixture.responsibilities(array([0.0, 3.0])), [0.5, 0.5])
    assert mixture.predict(array([0.0, 3.0])) == 0


@pytest.mark.parametrize("point", FAR.values(), ids=FAR)
def test_far_tails_belong_to_the_component_whose_density_vanishes_last(mixture, point):
    shares = double(mixture.responsibilities(array(point)))
    logs = double(mixture.log_responsibilities(array(point)))
    assert np.isfinite(shares).all() and not np.isnan(logs).any()
    assert_close(shares.sum(), 1)
    with np.errstate(over="ignore"):
        direction = np.asarray(point) / np.abs(point).max()
        reference = oracle.dense(mixture)
        square = np.einsum("i,kij,j->k", direction, np.linalg.inv(reference.covariances), direction)
    if np.ptp(square) > 1e-3 * square.max():
        assert mixture.predict(array(point)) == square.argmin()


def test_with_a_shared_covariance_far_points_belong_to_the_nearest_mean():
    mixture = jg.GaussianMixture.create(
        array([0.9, 0.1]), array([[0.0, 0.0], [5.0, 4.0]]), array(np.eye(2)), "tied"
    )
    distances = [[1e4, 1e4], [-1e4, -1e4], [1e5, 0.0], [0.0, -1e5]]
    assert mixture.predict(array(distances)).tolist() == [1, 0, 1, 0]


def test_a_component_too_tight_for_its_square_changes_nothing_among_others():
    tight = by_dtype(1e-25, 1e-180)
    means, variances = array([[0.0], [1.0], [10.0]]), array([1.0, 1.0, tight**2])
    scale = jg.Spherical(array([1.0, 1.0, tight]))
    others = jg.GaussianMixture.create(array([0.5, 0.5]), means[:2], variances[:2], "spherical")
    mixture = jg.GaussianMixture(jnp.log(array([0.4, 0.4, 0.2])), means, scale)
    point = array([0.2])
    assert_close(mixture.responsibilities(point)[:2], others.responsibilities(point))
    assert mixture.responsibilities(point)[2] == 0
    slope = jax.grad(lambda x: mixture.log_responsibilities(x)[0])(point)
    assert_close(slope, jax.grad(lambda x: others.log_responsibilities(x)[0])(point))


@pytest.mark.parametrize("point", FAR.values(), ids=FAR)
def test_far_densities_are_representable_or_minus_infinity(mixture, point):
    log_prob = double(mixture.log_prob(array(point)))
    by_component = double(mixture.component_log_prob(array(point)))
    assert not np.isnan(log_prob) and not np.isnan(by_component).any()
    assert log_prob < -1e15 and (by_component < -1e15).all()
    if np.abs(point).max() < by_dtype(1e15, 1e150):
        expected = oracle.log_prob(oracle.dense(mixture), np.asarray(point)[None])[0]
        assert_close(log_prob, expected, rtol=by_dtype(1e-4, 1e-10))


def test_gradients_are_never_nan_in_far_tails(mixture):
    """With respect to the point and to every parameter; finite wherever squares don't overflow."""
    points = np.array(list(FAR.values()))

    def log_density(mixture, x):
        return mixture.log_prob(x)

    def responsibility(mixture, x):
        return mixture.responsibilities(x)[0]

    @jax.jit
    def gradients(mixture, points):
        of = [jax.grad(f, argnums=(0, 1)) for f in (log_density, responsibility)]
        return [jax.vmap(g, in_axes=(None, 0))(mixture, points) for g in of]

    moderate = np.abs(points).max(axis=1) < by_dtype(1e15, 1e100)
    for leaf in jax.tree.leaves(gradients(mixture, array(points))):
        assert not np.isnan(double(leaf)).any()
        assert np.isfinite(double(leaf)[moderate]).all()


def test_components_a_long_way_apart_have_certain_responsibilities():
    mixture = jg.GaussianMixture.create(
        array([0.5, 0.5]), array([[0.0], [1e4]]), array(1.0), "tied_spherical"
    )
    logs = double(mixture.log_responsibilities(array([[0.0], [1e4]])))
    assert_close(np.diag(logs), [0, 0])
    assert_close(logs[[0, 1], [1, 0]], [-5e7, -5e7], rtol=1e-5)


def test_a_component_of_weight_zero_has_no_say():
    """Density, responsibilities and their gradients are those of the mixture without it."""

    def of(weights):
        mixture = jg.GaussianMixture(
            jnp.log(weights), array(np.eye(3, 2)), jg.Spherical(array([1.0, 1.0, 2.0]))
        )
        return mixture.log_prob(array([0.3, 0.4]))

    with_it = of(array([0.0, 0.5, 0.5]))
    without = jg.GaussianMixture.create(
        array([0.5, 0.5]), array(np.eye(3, 2)[1:]), array([1.0, 4.0]), "spherical"
    )
    assert_close(with_it, without.log_prob(array([0.3, 0.4])))
    mixture = jg.GaussianMixture(
        array([-np.inf, np.log(0.5), np.log(0.5)]),
        array(np.eye(3, 2)),
        jg.Spherical(array([1.0, 1.0, 2.0])),
    )
    gradient = jax.grad(lambda mixture: mixture.log_prob(array([0.3, 0.4])))(mixture)
    assert all(np.isfinite(double(leaf)).all() for leaf in jax.tree.leaves(gradient))
    assert gradient.log_weights[0] == 0


def test_create_takes_variances_in_every_types_shape(mixture, covariance_type):
    assert mixture.covariance_type == covariance_type
    assert (mixture.n_components, mixture.n_features) == (K, D)
    assert mixture.covariances.shape == (K, D, D)
    assert_close(jnp.sum(mixture.weights), 1)


def test_a_batch_is_indexed_and_vmapped(mixture, x):
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), mixture)
    one = batch[1]
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(mixture), strict=True)
    for ours, theirs in leaves:
        assert np.array_equal(ours, theirs + 1)
    both = jax.vmap(lambda mixture: mixture.log_prob(array(x)))(batch)
    assert_close(both[1], one.log_prob(array(x)))
    assert np.array_equal(batch[-1].means, one.means)


def test_a_batch_is_not_a_mixture(full, x):
    batch = jax.tree.map(lambda leaf: leaf[None], full)
    with pytest.raises(ValueError, match="vmap"):
        batch.log_prob(array(x))
    with pytest.raises(IndexError, match="batch of 1"):
        batch[1]
    with pytest.raises(TypeError, match="not a batch"):
        full[0]


def test_queries_of_another_dimension_are_refused(full):
    methods = ("log_prob", "component_log_prob", "responsibilities", "predict")
    for method in methods:
        with pytest.raises(ValueError, match=r"\(\.\.\., 2\)"):
            getattr(full, method)(array(np.zeros((3, 5))))


def test_the_wider_dtype_wins():
    """A float32 mixture asked about float64 points, and the other way round, answers in float64."""
    with jax.enable_x64(True):
        narrow = jg.GaussianMixture(
            jnp.log(jnp.asarray([0.5, 0.5], "float32")),
            jnp.asarray(np.eye(2), "float32"),
            jg.Spherical(jnp.ones(2, "float32")),
        )
        wide = jax.tree.map(lambda leaf: leaf.astype("float64"), narrow)
        points = {name: jnp.zeros((1, 2), name) for name in ("float32", "float64")}
        dtypes = {
            (m, name): mixture.log_prob(point).dtype
            for m, mixture in (("narrow", narrow), ("wide", wide))
            for name, point in points.items()
        }
    assert dtypes.pop(("narrow", "float32")) == jnp.float32
    assert set(dtypes.values()) == {jnp.dtype("float64")}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(full, dtype):
    narrow = jax.tree.map(lambda leaf: leaf.astype("float32"), full)
    assert narrow.log_prob(jnp.zeros((1, D), dtype)).dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integers_and_booleans_become_the_default_float(full, dtype):
    points = np.ones((3, D), dtype)
    assert full.log_prob(points).dtype == DTYPE
    assert_close(full.log_prob(points), full.log_prob(array(points)))


def test_a_mixture_compares_by_identity(full):
    assert full == full
    assert full != jax.tree.map(lambda leaf: leaf, full)


def test_components_ten_thousand_deviations_apart_exclude_each_other():
    means = array([[0.0, 0.0], [1e4, 0.0]])
    mixture = jg.GaussianMixture.create(array([0.5, 0.5]), means, array([1.0, 1.0]), "spherical")
    own, other = np.diag(mixture.log_responsibilities(means)), mixture.log_responsibilities(means)
    assert_close(own, [0.0, 0.0])
    assert np.isfinite(other).all() and other[0, 1] < -1e7


def test_a_batch_has_no_covariance_type_of_its_own(full):
    batch = jax.tree.map(lambda leaf: leaf[None], full)
    for ask in (lambda: batch.covariance_type, lambda: jg.n_parameters(batch)):
        with pytest.raises(ValueError, match="one mixture is expected"):
            ask()


def test_densities_infinitely_far_vanish_and_of_nan_are_nan():
    """Where on the way to the density infinities of both signs cancel."""
    tight = by_dtype(1e-15, 1e-150)
    factor = tight * np.array([[[1.0, 0.0], [1.0, 1.0]]])
    mixture = jg.GaussianMixture(array([0.0]), array([[0.0, 0.0]]), jg.Full(array(factor)))
    far = by_dtype(1e25, 1e200)
    points = array([[far, far], [np.inf, 0.0], [np.nan, 0.0]])
    assert mixture.log_prob(points)[:2].tolist() == [-np.inf, -np.inf]
    assert np.isnan(mixture.log_prob(points)[2])
    broken = replace(mixture, means=array([[np.nan, 0.0]]))
    assert np.isnan(broken.log_prob(points)).all()


def test_no_points_have_no_densities():
    mixture = start_from_labels(blobs(), "full")
    nothing = array(np.zeros((0, 2)))
    assert mixture.log_prob(nothing).shape == (0,)
    assert mixture.predict(nothing).shape == (0,)
    assert mixture.responsibilities(nothing).shape == (0, mixture.n_components)
    assert jg.regress(mixture, [0], array(np.zeros((0, 1))))[0].shape == (0, 1)


def test_a_mixture_is_printed_as_a_table():
    """Of the first components and features, with standard deviations; shared ones for each."""
    mixture = jg.GaussianMixture.create([0.25, 0.75], [[1, 2], [3, 4]], [[4, 0], [0, 9]], "tied")
    head, header, *rows = repr(mixture).splitlines()
    assert head.startswith("GaussianMixture(2 tied components of 2 features, float")
    assert header.split() == ["weight", "mean", "standard", "deviation"]
    assert [row.split() for row in rows] == [
        ["0", "0.25", "1,", "2", "2,", "3"],
        ["1", "0.75", "3,", "4", "2,", "3"],
    ]
    large = jg.GaussianMixture.create([1 / 40] * 40, [[0.0] * 30] * 40, [1.0] * 40, "spherical")
    assert len(repr(large).splitlines()) < 15 and max(map(len, repr(large).splitlines())) < 100
    assert "<td>0.25</td>" in mixture._repr_html_()


def test_what_is_no_mixture_of_known_values_is_printed_without_a_table(mixture):
    shapes = jax.eval_shape(lambda: mixture)
    seen = []
    jax.jit(lambda one: seen.append((repr(one), one._repr_html_())) or one.means)(mixture)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), mixture)
    for text in (repr(shapes), repr(batch), seen[0][0]):
        assert "\n" not in text and "components of" in text
    assert seen[0][1].startswith("<p>GaussianMixture(") and "<table>" not in seen[0][1]
