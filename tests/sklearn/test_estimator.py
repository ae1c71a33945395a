"""The estimator: scikit-learn's results by its rules, and what scikit-learn lacks."""

import pickle
import warnings

import jax
import numpy as np
import pandas
import pytest
import sklearn.mixture
from jax import monitoring
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import jaxgmm as jg
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.sklearn import GaussianMixture

# In float64 whatever JAX's default is.
pytestmark = pytest.mark.once

IRIS = load_iris().data
MEANS = IRIS[[10, 60, 110]]


def copy_of(model):
    return pickle.loads(pickle.dumps(model))


def of_both(x=IRIS, **arguments):
    """A fit by scikit-learn, and one by this library."""
    return [
        kind(3, **arguments).fit(x) for kind in (sklearn.mixture.GaussianMixture, GaussianMixture)
    ]


def test_it_does_what_estimators_have_to():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_estimator(GaussianMixture())


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("init_params", ["kmeans", "random"])
def test_fits_are_those_of_scikit_learn(covariance_type, init_params):
    """From the same random state: the same steps, to rounding, and all attributes."""
    theirs, ours = of_both(
        covariance_type=covariance_type, init_params=init_params, random_state=3, max_iter=300
    )
    assert ours.n_iter_ == theirs.n_iter_ and ours.converged_ == theirs.converged_
    names = "weights_ means_ covariances_ precisions_ precisions_cholesky_ lower_bounds_"
    for name in (*names.split(), "lower_bound_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-9)
    assert np.array_equal(ours.predict(IRIS), theirs.predict(IRIS))
    for method in ("predict_proba", "score_samples", "score", "bic", "aic"):
        actual, expected = (getattr(of, method)(IRIS) for of in (ours, theirs))
        np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)
    for actual, expected in zip(ours.sample(7), theirs.sample(7), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-9)


def test_what_is_given_for_the_start_is_where_it_begins():
    precisions = [np.eye(4) / 0.3] * 3
    given = {"weights_init": [0.2, 0.3, 0.5], "means_init": MEANS, "precisions_init": precisions}
    for chosen in ([*given], ["means_init"], ["weights_init", "precisions_init"]):
        arguments = {name: given[name] for name in chosen}
        theirs, ours = of_both(random_state=0, **arguments)
        assert ours.n_iter_ == theirs.n_iter_
        np.testing.assert_allclose(ours.means_, theirs.means_, rtol=1e-8)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_variances_are_added_as_they_are():
    theirs, ours = of_both(reg_covar=0.1, random_state=0, max_iter=5, tol=0)
    np.testing.assert_allclose(ours.covariances_, theirs.covariances_, rtol=1e-10)


@pytest.mark.parametrize("covariance_type", STRUCTURES)
def test_all_covariance_types_can_be_chosen(covariance_type):
    model = GaussianMixture(3, covariance_type=covariance_type, random_state=0, max_iter=300)
    model.fit(IRIS)
    assert model.converged_ and np.all(np.diff(model.lower_bounds_) > -1e-9)
    assert model.covariances_.shape == STRUCTURES[covariance_type].shape(3, 4)
    with jax.enable_x64(True):
        mixture = jg.GaussianMixture.create(
            model.weights_, model.means_, model.covariances_, covariance_type
        )
        np.testing.assert_allclose(model.score_samples(IRIS), mixture.log_prob(IRIS), rtol=1e-9)
        assert model._n_parameters() == jg.n_parameters(mixture, covariance_type)
    x, labels = model.sample(2000)
    assert x.shape == (2000, 4) and set(labels) == {0, 1, 2}
    np.testing.assert_allclose(x.mean(axis=0), model.weights_ @ model.means_, atol=0.2)


def test_a_weight_is_a_row_so_many_times():
    """And with weight 0 none."""
    counts = np.random.default_rng(0).integers(0, 4, size=len(IRIS))
    arguments = {"means_init": MEANS, "weights_init": [1 / 3] * 3, "tol": 1e-6, "max_iter": 500}
    arguments["precisions_init"] = [np.eye(4)] * 3
    weighted = GaussianMixture(3, **arguments).fit(IRIS, sample_weight=counts)
    repeated = GaussianMixture(3, **arguments).fit(np.repeat(IRIS, counts, axis=0))
    assert weighted.n_iter_ == repeated.n_iter_
    np.testing.assert_allclose(weighted.covariances_, repeated.covariances_, rtol=1e-9)


def test_rows_without_weight_are_no_start():
    weights = np.where(np.arange(len(IRIS)) % 3, 0, 1)
    for init_params in ("random_from_data", "k-means++"):
        model = GaussianMixture(3, init_params=init_params, random_state=0, max_iter=300)
        model.fit(IRIS, sample_weight=weights)
        alone = model.weights_.min(), model.score(IRIS[::3])
        model.fit(np.where(weights[:, None], IRIS, 1e3), sample_weight=weights)
        np.testing.assert_allclose((model.weights_.min(), model.score(IRIS[::3])), alone, rtol=1e-6)
        assert alone[0] > 0.05
    with pytest.raises(ValueError, match="n_samples = 2"):
        GaussianMixture(3).fit(IRIS, sample_weight=np.arange(len(IRIS)) < 2)


def test_a_fit_of_other_parameters_is_not_gone_on_with():
    model = GaussianMixture(2, warm_start=True, random_state=0).fit(IRIS)
    for changed in ({"n_components": 3}, {"n_components": 2, "covariance_type": "diag"}):
        model.set_params(**changed)
        for method in (model.fit, model.partial_fit):
            with pytest.raises(ValueError, match="that has been fitted has 2 components"):
                method(IRIS)


def test_what_is_printed_of_a_warm_start_begins_with_a_change(capsys):
    model = GaussianMixture(3, warm_start=True, random_state=0, verbose=2, verbose_interval=1)
    model.set_params(max_iter=3, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(IRIS)
        assert "Iteration 1" in capsys.readouterr().out
        model.fit(IRIS)
    text = capsys.readouterr().out
    assert "Iteration 1" in text and "inf" not in text


def test_labels_of_some_rows_stand():
    truth = load_iris().target
    labels = np.where(np.arange(len(IRIS)) % 10 == 0, truth, -1)
    model = GaussianMixture(3, use_labels=True, random_state=0).fit(IRIS, labels)
    assert np.mean(model.predict(IRIS) == truth) > 0.9
    ignored = GaussianMixture(3, random_state=0).fit(IRIS, labels)
    np.testing.assert_allclose(ignored.means_, GaussianMixture(3, random_state=0).fit(IRIS).means_)
    for bad in (labels + 1, labels.astype(float), labels[:9]):
        with pytest.raises(ValueError, match="y must hold"):
            model.fit(IRIS, bad)


def test_parts_of_the_data_are_learned_one_after_the_other():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 2)) + 6 * rng.integers(0, 2, size=(6000, 1))
    model = GaussianMixture(2, random_state=0)
    for part in np.split(x, 20):
        model.partial_fit(part)
    whole = GaussianMixture(2, random_state=0).fit(x)
    order, expected = np.argsort(model.means_[:, 0]), np.argsort(whole.means_[:, 0])
    np.testing.assert_allclose(model.means_[order], whole.means_[expected], atol=0.2)
    assert model.n_iter_ == 20 and len(model.lower_bounds_) == 20
    with pytest.raises(ValueError, match="3 features"):
        model.partial_fit(np.ones((5, 3)))
    again = clone(model).fit(x)
    before = again.n_iter_, again.weights_, again.covariances_
    again.partial_fit(x[:1]).partial_fit(x[:500])
    assert again.n_iter_ == before[0] + 2
    np.testing.assert_allclose(again.weights_, before[1], atol=0.15)
    np.testing.assert_allclose(again.covariances_, before[2], atol=0.5)
    assert copy_of(again).fit(x).n_iter_ == before[0]
    with pytest.raises(ValueError, match="n_samples >= n_components"):
        GaussianMixture(3).partial_fit(x[:2])


def test_precision_is_that_of_the_rows_and_jax_is_left_alone():
    before = jax.config.jax_enable_x64
    for dtype in (np.float32, np.float64):
        model = GaussianMixture(3, random_state=0).fit(IRIS.astype(dtype))
        assert {getattr(model, name).dtype for name in ("means_", "covariances_")} == {
            np.dtype(dtype)
        }
        assert model.score_samples(IRIS.astype(dtype)).dtype == dtype
    whole = GaussianMixture(2).fit(np.arange(12).reshape(6, 2))
    assert whole.means_.dtype == np.float64
    assert jax.config.jax_enable_x64 == before


def test_names_of_columns_and_pickles_are_kept():
    frame = pandas.DataFrame(IRIS, columns=list("abcd"))
    model = GaussianMixture(3, random_state=0).fit(frame)
    assert list(model.feature_names_in_) == list("abcd")
    assert np.array_equal(copy_of(model).predict(frame), model.predict(frame))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["b", "a", "c", "d"]])


def test_a_grid_is_searched_by_few_programs():
    """Not one for each number of components, covariance type and fold."""
    compiled = []

    def heard(name, _, **__):
        compiled.append(name) if name.endswith("backend_compile_duration") else None

    grid = {
        "gaussianmixture__n_components": [1, 2, 3, 4],
        "gaussianmixture__covariance_type": ["full", "diag", "tied", "tied_spherical"],
    }
    pipeline = make_pipeline(StandardScaler(), GaussianMixture(random_state=0))
    monitoring.register_event_duration_secs_listener(heard)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            search = GridSearchCV(pipeline, grid, cv=4, error_score="raise").fit(IRIS)
    finally:
        monitoring.clear_event_listeners()
    assert search.best_params_["gaussianmixture__n_components"] >= 2
    # Fits and densities for 1, 2 and 4 components, and rows that are held out or not.
    assert len(compiled) <= 12


def test_failures_are_said_as_scikit_learn_says_them():
    twice = np.repeat([[0.0, 0.0], [1.0, 1.0]], 10, axis=0)
    for covariance_type in ("full", "diag", "spherical", "VEI"):
        model = GaussianMixture(2, covariance_type=covariance_type, reg_covar=0, random_state=0)
        with pytest.raises(ValueError, match="ill-defined empirical covariance"):
            model.fit(twice)
    line = np.random.default_rng(0).normal(size=(50, 1)) * [[1.0, 2.0]]
    with pytest.raises(ValueError, match="ill-defined empirical covariance"):
        GaussianMixture(1, reg_covar=0).fit(line)
    with pytest.warns(ConvergenceWarning, match="did not converge"):
        GaussianMixture(3, max_iter=1, random_state=0).fit(IRIS)
    with pytest.raises(ValueError, match="precisions_init is for covariance types full"):
        GaussianMixture(2, covariance_type="VEI", precisions_init=np.ones((2, 4))).fit(IRIS)
    with pytest.raises(ValueError, match="covariance_type"):
        GaussianMixture(2, covariance_type="round").fit(IRIS)
