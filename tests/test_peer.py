"""Parity with scikit-learn and with figures that mclust's authors published."""

import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture as Peer

import jaxgmm as jg

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
PARITY = runpy.run_path(str(ROOT / "benchmarks" / "parity.py"))
sys.path.remove(str(ROOT / "benchmarks"))

# As mclust prints them for EEE with 3 components, in its sign.
MCLUST_LOG_LIKELIHOOD = -1126.326
MCLUST_BIC = -2314.316
MCLUST_ICL = -2357.824


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def old_faithful():
    path = Path(jg.__file__).parent / "datasets" / "old_faithful.csv"
    return np.loadtxt(path, delimiter=",", skiprows=1)


@pytest.fixture(scope="module")
def selection(old_faithful):
    with jax.enable_x64(True):
        types = ["tied", "tied_diag"]
        return jg.select(jax.random.key(0), old_faithful, [2, 3, 4], types, n_init=5, tol=1e-8)


@pytest.mark.parametrize(
    ("name", "n_components", "covariance_type"),
    [
        ("iris", 4, "tied"),
        ("iris", 3, "diag"),
        ("wine", 3, "full"),
        ("wine", 5, "spherical"),
        ("breast cancer", 2, "full"),
        ("breast cancer", 3, "tied"),
        ("breast cancer", 4, "diag"),
    ],
)
def test_fixed_point_equals_that_of_scikit_learn(name, n_components, covariance_type):
    x = PARITY["DATA"][name]().data
    labels = PARITY["partition"](x, n_components)
    cell = PARITY["compare"](x, labels, covariance_type)
    assert cell["singular"] is None
    assert cell["status"] == "CONVERGED"
    assert abs(cell["log_likelihood_difference"]) < 1e-6
    assert cell["means_difference"] < 1e-3
    assert cell["log_determinants_difference"] < 1e-3


def as_peer(mixture, covariance_type, covariances):
    """The mixture as a scikit-learn estimator; `covariances` in its shapes."""
    peer = Peer(mixture.n_components, covariance_type=covariance_type)
    peer.weights_ = np.asarray(mixture.weights)
    peer.means_ = np.asarray(mixture.means)
    peer.covariances_ = covariances
    inverse = np.linalg.inv if covariance_type in ("full", "tied") else np.reciprocal
    precisions = inverse(covariances)
    factor = np.linalg.cholesky if covariance_type in ("full", "tied") else np.sqrt
    peer.precisions_cholesky_ = factor(precisions)
    return peer


def some_mixture(covariance_type, n_components=3, n_features=2):
    """A mixture, and its covariances in scikit-learn's shapes."""
    rng = np.random.default_rng(0)
    weights = np.arange(1.0, n_components + 1)
    weights /= weights.sum()
    means = 4 * rng.standard_normal((n_components, n_features))
    roots = rng.standard_normal((n_components, n_features, n_features))
    scatters = roots @ roots.mT + np.eye(n_features)
    covariances = {
        "full": scatters,
        "tied": scatters[0],
        "diag": np.einsum("kdd->kd", scatters),
        "spherical": scatters[:, 0, 0],
    }[covariance_type]
    mixture = jg.GaussianMixture.create(weights, means, covariances, covariance_type)
    return mixture, covariances


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_densities_and_criteria_equal_those_of_scikit_learn(x64, covariance_type):
    mixture, covariances = some_mixture(covariance_type)
    peer = as_peer(mixture, covariance_type, covariances)
    x = 5 * np.random.default_rng(1).standard_normal((80, 2))
    np.testing.assert_allclose(mixture.log_prob(x), peer.score_samples(x), rtol=1e-12)
    np.testing.assert_allclose(mixture.responsibilities(x), peer.predict_proba(x), atol=1e-12)
    np.testing.assert_array_equal(mixture.predict(x), peer.predict(x))
    np.testing.assert_allclose(jg.log_likelihood(mixture, x), 80 * peer.score(x), rtol=1e-12)
    np.testing.assert_allclose(jg.aic(mixture, x), peer.aic(x), rtol=1e-12)
    np.testing.assert_allclose(jg.bic(mixture, x), peer.bic(x), rtol=1e-12)
    assert jg.n_parameters(mixture) == peer._n_parameters()


def test_single_component_is_sample_mean_and_covariance(x64, old_faithful):
    result = jg.fit(jax.random.key(0), old_faithful, 1, reg_covar=0)
    assert result.converged
    covariance = np.cov(old_faithful.T, bias=True)
    np.testing.assert_allclose(result.mixture.means[0], old_faithful.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.mixture.covariances[0], covariance, rtol=1e-10)


def test_old_faithful_has_three_components_of_one_covariance(selection):
    """Scrucca, Fop, Murphy & Raftery 2016 select EEE with 3 components."""
    best = selection.best
    assert best.converged
    assert best.mixture.n_components == 3
    assert best.mixture.covariance_type == "tied"
    row = selection.ranked()[0]
    assert row["covariance_type"] == "tied"
    assert row["n_parameters"] == 11
    assert not selection.at_edge


def test_old_faithful_is_no_worse_than_published(selection):
    row = selection.ranked()[0]
    assert row["log_likelihood"] >= MCLUST_LOG_LIKELIHOOD
    assert row["log_likelihood"] >= -1126.3160
    assert row["bic"] <= -MCLUST_BIC
    assert row["bic"] <= 2314.296
    assert row["icl"] == pytest.approx(-MCLUST_ICL, abs=1)


def test_old_faithful_ends_where_scikit_learn_ends(x64, selection, old_faithful):
    mixture = selection.best.mixture
    peer = Peer(
        3,
        covariance_type="tied",
        tol=1e-13,
        reg_covar=0,
        max_iter=20_000,
        weights_init=np.asarray(mixture.weights),
        means_init=np.asarray(mixture.means),
        precisions_init=np.asarray(mixture.precisions[0]),
    ).fit(old_faithful)
    gain = len(old_faithful) * peer.score(old_faithful) - float(selection.best.log_likelihood)
    assert 0 <= gain + 1e-8 < len(old_faithful) * 1e-8 + 2e-8


def test_old_faithful_winner_comes_back_from_a_file(x64, selection, tmp_path):
    mixture = selection.best.mixture
    jg.save(tmp_path / "geyser.npz", mixture)
    loaded = jg.load(tmp_path / "geyser.npz")
    assert jax.tree.structure(loaded) == jax.tree.structure(mixture)
    for new, old in zip(jax.tree.leaves(loaded), jax.tree.leaves(mixture), strict=True):
        np.testing.assert_array_equal(new, old)
        assert new.dtype == old.dtype


@pytest.fixture(scope="module")
def three_gaussians():
    """The mixture of the demonstration that the library grew out of."""
    return jg.GaussianMixture.create(
        weights=[1 / 3, 1 / 3, 1 / 3],
        means=[[0, 5], [5, 0], [-4, -1]],
        covariances=[[[5, 0], [0, 1]], [[1, -1], [-1, 3]], [[1, 2], [2, 6]]],
    )


@pytest.mark.parametrize("n_components", [3, 5])
def test_hundred_rows_of_three_gaussians_get_responsibilities(three_gaussians, n_components):
    x = three_gaussians.sample(jax.random.key(1), 100)
    result = jg.fit(jax.random.key(2), x, n_components, n_init=5)
    responsibilities = np.asarray(result.mixture.responsibilities(x))
    assert responsibilities.shape == (100, n_components)
    np.testing.assert_allclose(responsibilities.sum(axis=1), 1, rtol=1e-5)


def test_three_gaussians_are_recovered_from_a_thousand_rows(three_gaussians):
    """Means come within 0.4 in ninety-nine of a hundred draws; of a hundred rows, within 1.9."""
    x = three_gaussians.sample(jax.random.key(1), 1000)
    fitted = np.asarray(jg.fit(jax.random.key(2), x, 3, n_init=10).check().mixture.means)
    means = np.asarray(three_gaussians.means)
    distances = np.linalg.norm(means[:, None] - fitted[None], axis=-1)
    assert (distances.min(axis=1) < 1).all()
