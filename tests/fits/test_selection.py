"""Free parameters, information criteria, and the sweep that compares them."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    COVARIANCE_TYPES,
    D,
    K,
    N,
    array,
    assert_close,
    assert_same_mixture,
    blobs,
    by_dtype,
    double,
    set_budget,
    start_from_labels,
)

import jaxgmm as jg
import jaxgmm.fits.selection
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.covariances.traced import TracedStructure
from jaxgmm.fits.ranking import ROW, ROW_WITH_FOLDS, Selection, ranking, winning_row
from jaxgmm.fits.sweeps import kept_in_folds

WEIGHTS = np.arange(N) % 4.0


@pytest.fixture(scope="module")
def sweep():
    """One sweep that several tests look at, and the rows that its callback saw."""
    seen = []
    selection = jg.select(
        jax.random.key(0),
        array(blobs()),
        (2, 3, 4),
        ["full", "spherical"],
        n_init=3,
        callback=seen.append,
    )
    return selection, seen


@pytest.fixture(scope="module")
def narrow_sweep():
    """Two components that are found, at the edge of a sweep over one and two."""
    x = blobs()[:50]
    return jg.select(jax.random.key(0), array(x), [1, 2], "tied", n_init=2)


def row(n_components, criterion, status):
    """A row of the table in which only what decides is filled in."""
    return np.array((n_components, "full", 0, 0, 0, criterion, 0, 1, status), ROW)


def parameters(covariance_type, k, d):
    """Free parameters, counted on fingers."""
    matrix = d * (d + 1) // 2
    covariances = {
        "full": k * matrix,
        "tied": matrix,
        "diag": k * d,
        "spherical": k,
        "tied_diag": d,
        "tied_spherical": 1,
    }
    return k - 1 + k * d + covariances[covariance_type]


def test_number_of_parameters(covariance_type):
    mixture = start_from_labels(blobs(), covariance_type)
    assert jg.n_parameters(mixture) == parameters(covariance_type, K, D)
    assert jg.n_parameters(mixture, covariance_type) == parameters(covariance_type, K, D)


def test_single_component_counts_once_as_any_type():
    """Storage can't tell tied from untied with one component, and need not: they are the same."""
    for name in COVARIANCE_TYPES:
        assert parameters(name, 1, D) == parameters(name.removeprefix("tied_"), 1, D)
    mixture = jg.GaussianMixture.create([1.0], [[0.0, 0.0]], array(np.eye(D)), "tied")
    assert jg.n_parameters(mixture, "tied") == jg.n_parameters(mixture) == 5


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_criteria_equal_their_formulas(covariance_type, weights):
    x = blobs()
    mixture = start_from_labels(x, covariance_type)
    reference = oracle.dense(mixture)
    counted = np.ones(N) if weights is None else weights
    given = (array(x), None if weights is None else array(weights))
    p = parameters(covariance_type, K, D)
    log_likelihood = oracle.log_likelihood(reference, x, counted)
    certainty = np.log(oracle.responsibilities(reference, x).max(axis=1))
    bic = p * np.log(counted.sum()) - 2 * log_likelihood
    assert_close(jg.log_likelihood(mixture, *given), log_likelihood)
    assert_close(jg.aic(mixture, *given), 2 * p - 2 * log_likelihood)
    assert_close(jg.bic(mixture, *given), bic)
    assert_close(jg.icl(mixture, *given), bic - 2 * np.sum(counted * certainty))


def test_criteria_take_the_type_that_was_estimated():
    x = array(blobs())
    mixture = start_from_labels(x, "tied_diag")
    assert_close(jg.aic(mixture, x, covariance_type="full") - jg.aic(mixture, x), 2 * (9 - D))


def test_integer_weights_equal_repeated_rows():
    x = blobs()
    mixture = start_from_labels(x, "full")
    repeated = np.repeat(x, WEIGHTS.astype(int), axis=0)
    for criterion in (jg.aic, jg.bic, jg.icl, jg.log_likelihood):
        weighted = criterion(mixture, array(x), array(WEIGHTS))
        assert_close(weighted, criterion(mixture, array(repeated)))


def test_rows_of_weight_zero_may_hold_anything():
    x = blobs()
    weights = np.where(np.arange(N) < 4, 0.0, 1.0)
    damaged = np.where(weights[:, None] == 0, np.nan, x)
    mixture = start_from_labels(x, "full")
    for criterion in (jg.aic, jg.bic, jg.icl, jg.log_likelihood):
        present = criterion(mixture, array(x), array(weights))
        assert_close(criterion(mixture, array(damaged), array(weights)), present)


def test_criteria_refuse_infinity():
    x = blobs().copy()
    mixture = start_from_labels(x, "full")
    x[5, 1] = np.inf
    with pytest.raises(ValueError, match="row 5, column 1"):
        jg.bic(mixture, array(x))


def test_sweep_finds_the_clusters(sweep):
    selection, _ = sweep
    assert selection.best.converged
    assert selection.best.mixture.n_components == K
    assert not selection.at_edge


def test_table_has_a_row_for_each_fit_in_the_order_of_the_sweep(sweep):
    table = sweep[0].table
    assert table["n_components"].tolist() == [2, 2, 3, 3, 4, 4]
    assert table["covariance_type"].tolist() == ["full", "spherical"] * 3
    assert np.isfinite(table["bic"]).all()


def test_table_agrees_with_its_own_formulas(sweep):
    table = sweep[0].table
    counted = [
        parameters(name, k, D)
        for name, k in zip(table["covariance_type"], table["n_components"], strict=True)
    ]
    assert table["n_parameters"].tolist() == counted
    deviance = -2 * table["log_likelihood"]
    assert_close(table["aic"], 2 * table["n_parameters"] + deviance)
    assert_close(table["bic"], np.log(N) * table["n_parameters"] + deviance)
    assert (table["icl"] >= table["bic"]).all()


def test_best_is_the_first_of_the_ranked_rows(sweep):
    selection, _ = sweep
    first = selection.ranked()[0]
    assert selection.criterion == "bic"
    assert first["n_components"] == selection.best.mixture.n_components
    assert first["log_likelihood"] == float(selection.best.log_likelihood)
    assert_close(first["bic"], jg.bic(selection.best.mixture, array(blobs())))


def test_callback_sees_every_row_as_it_comes(sweep):
    selection, seen = sweep
    assert np.array_equal(np.array(seen, ROW), selection.table)


def test_types_share_their_key_and_do_not_depend_on_the_sweep(sweep):
    alone = jg.select(jax.random.key(0), array(blobs()), 3, "spherical", n_init=3)
    together = sweep[0].table[3]
    assert alone.table[0]["status"] == together["status"]
    assert abs(alone.table[0]["n_iter"] - together["n_iter"]) <= 1
    assert_close(alone.table[0]["log_likelihood"], together["log_likelihood"], by_dtype(1e-5, 1e-9))
    assert not alone.at_edge


def test_winner_at_the_upper_edge_is_said_to_be_one(narrow_sweep):
    assert narrow_sweep.best.mixture.n_components == 2
    assert narrow_sweep.at_edge


def test_winner_at_the_lower_edge_is_said_to_be_one():
    selection = jg.select(jax.random.key(0), array(blobs()), [4, 5], "spherical")
    assert selection.best.mixture.n_components == 4 and selection.at_edge


def test_the_winner_is_that_of_the_criterion():
    """A narrow cloud upon a wide one is two components to BIC, and one cluster to ICL."""
    random = np.random.default_rng(0)
    x = np.r_[random.normal(size=(300, D)), 0.6 * random.normal(size=(300, D)) + [1.0, 0.0]]
    winners = {
        criterion: jg.select(
            jax.random.key(0), array(x), [1, 2], "spherical", criterion=criterion, n_init=2
        ).best.mixture.n_components
        for criterion in ("bic", "icl")
    }
    assert winners == {"bic": 2, "icl": 1}


def test_one_component_is_no_edge():
    x = array(np.random.default_rng(3).normal(size=(50, D)))
    selection = jg.select(jax.random.key(0), x, [1, 2], "tied", n_init=2)
    assert selection.best.mixture.n_components == 1
    assert not selection.at_edge


def test_point_mass_does_not_win():
    """The likelihood of a component on repeated rows has no bound: it must not be believed."""
    x = np.random.default_rng(0).normal(size=(50, D))
    x[:10] = 3.0
    selection = jg.select(jax.random.key(0), array(x), [1, 2], "full", n_init=2)
    table = selection.table
    assert table["status"].tolist() == [jg.Status.CONVERGED, jg.Status.DEGENERATE]
    assert table["bic"][1] < table["bic"][0]
    assert selection.best.mixture.n_components == 1
    assert selection.ranked()["n_components"].tolist() == [1, 2]


def test_unhealthy_rows_rank_behind_healthy_ones():
    table = np.array(
        [
            row(1, -900.0, jg.Status.DEGENERATE),
            row(2, 50.0, jg.Status.CONVERGED),
            row(3, np.nan, jg.Status.NON_FINITE),
            row(4, 40.0, jg.Status.MAX_ITER),
            row(5, -800.0, jg.Status.NON_FINITE),
        ]
    )
    assert table["n_components"][ranking(table, "bic")].tolist() == [4, 2, 1, 5, 3]
    unhealthy = table[[4, 0]]
    assert ranking(unhealthy, "bic").tolist() == [1, 0]
    selection = Selection(best=None, table=table, criterion="bic", at_edge=False)
    assert selection.ranked()["n_components"][0] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": []}, "must not be empty"),
        ({"covariance_type": []}, "must not be empty"),
        ({"n_components": [0]}, "at least 1"),
        ({"n_components": [2, N + 1]}, "fewer"),
        ({"n_components": [2.5]}, "integer"),
        ({"covariance_type": "round"}, "tied_spherical"),
        ({"covariance_type": ["full", "round"]}, "tied_spherical"),
        ({"criterion": "likelihood"}, "bic"),
        ({"n_init": 0}, "n_init"),
        ({"init": "k-medoids"}, "k-means"),
        ({"criterion": "cv", "n_folds": 1}, "n_folds"),
        ({"criterion": "cv", "n_folds": N + 1}, "as many rows"),
        ({"one_standard_error": True}, "criterion='cv'"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"n_components": [1, 2], "covariance_type": "full", **options}
    with pytest.raises(ValueError, match=message):
        jg.select(jax.random.key(0), array(blobs()), **arguments)


def test_key_must_be_a_key():
    with pytest.raises(TypeError, match="key"):
        jg.select(0, array(blobs()), [1, 2])


@pytest.mark.parametrize(
    "options",
    [
        {"criterion": "x"},
        {"tol": -1.0},
        {"n_init": 0},
        {"covariance_type": ["full", "round"]},
        {"n_components": [1, N + 1]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_sweep_is_refused_before_anything_is_fitted(monkeypatch, key, options):
    def never(*_):
        raise AssertionError("fitted")

    monkeypatch.setattr(jaxgmm.fits.selection, "fit_group", never)
    with pytest.raises(ValueError):
        jg.select(key, array(blobs()), **{"n_components": [1, 2], **options})


def test_covariance_types_as_data_are_estimated_alike(covariance_type):
    random = np.random.default_rng(0)
    roots = random.normal(size=(K, D, D))
    scatter, count = array(roots @ np.swapaxes(roots, 1, 2)), array([3.0, 1.0, 7.0])
    structure = STRUCTURES[covariance_type]
    own = scatter if structure.full_second_moment else jnp.diagonal(scatter, axis1=1, axis2=2)
    expected = structure.estimate(count, own, None).dense(D)
    form = jax.tree.map(lambda flags: flags[0], TracedStructure.of([covariance_type]))
    actual = form.estimate(count, scatter, None).dense(D)
    assert_close(actual, np.broadcast_to(expected, actual.shape))


def test_types_in_one_program_are_what_single_fits_are(key):
    x = array(blobs())
    options = {"n_init": 2, "tol": by_dtype(1e-5, 1e-9)}
    types = ["tied", "spherical"]
    selection = jg.select(key, x, [3, 2], types, **options)
    for name, row in zip(types, selection.table, strict=False):
        fit = jg.fit(jax.random.fold_in(key, 3), x, 3, covariance_type=name, **options)
        assert int(fit.status) == row["status"]
        assert abs(int(fit.n_iter) - row["n_iter"]) <= by_dtype(5, 1)
        assert_close(row["log_likelihood"], fit.log_likelihood, by_dtype(1e-4, 1e-8))
        assert_close(row["icl"], jg.icl(fit.mixture, x), by_dtype(1e-3, 1e-7))
        if name == selection.best.mixture.covariance_type:
            assert selection.best.mixture.n_components == 3
            assert_same_mixture(selection.best.mixture, fit.mixture)


def test_small_and_large_data_are_fitted_alike(monkeypatch, key):
    """By one program, and by one for each type and size."""
    x = array(blobs())
    options = {"n_init": 1, "tol": by_dtype(1e-5, 1e-9)}
    types = ["diag", "tied_spherical"]
    small = jg.select(key, x, [1, 3], types, **options).table
    set_budget(monkeypatch, common_pass=0)
    set_budget(monkeypatch, padded_pass=0)
    large = jg.select(key, x, [1, 3], types, **options).table
    for name in ("n_components", "covariance_type", "n_parameters", "status"):
        assert small[name].tolist() == large[name].tolist()
    assert_close(small["bic"], large["bic"], by_dtype(1e-4, 1e-8))


def test_cross_validation_is_that_of_a_plain_loop():
    x, key, n_folds = blobs(), jax.random.key(5), 4
    weights = 1.0 + np.arange(N) % 2
    selection = jg.select(
        key,
        array(x),
        [1, 3],
        "diag",
        criterion="cv",
        n_folds=n_folds,
        n_init=2,
        weights=array(weights),
        tol=by_dtype(1e-5, 1e-9),
    )
    kept = kept_in_folds(key, np.ones(N), n_folds)
    assert kept[0].all() and np.all((~kept[1:]).sum(axis=0) == 1)
    assert np.ptp(kept[1:].sum(axis=1)) <= 1
    for row in selection.table:
        held_out = []
        for seen in kept[1:]:
            count = int(row["n_components"])
            fit = jg.fit(
                jax.random.fold_in(key, count),
                array(x),
                count,
                covariance_type="diag",
                n_init=2,
                weights=array(weights * seen),
                tol=by_dtype(1e-5, 1e-9),
            )
            log_prob = double(fit.mixture.log_prob(array(x[~seen])))
            held_out.append(np.average(log_prob, weights=weights[~seen]))
        assert_close(row["cv"], np.mean(held_out), by_dtype(1e-4, 1e-7))
        error = np.std(held_out, ddof=1) / np.sqrt(n_folds)
        assert_close(row["cv_standard_error"], error, by_dtype(1e-3, 1e-5))
    assert selection.best.mixture.n_components == 3
    assert selection.ranked()["n_components"].tolist() == [3, 1]


def test_the_simplest_within_one_standard_error_wins():
    table = np.zeros(4, ROW_WITH_FOLDS)
    table["n_parameters"] = [3, 5, 9, 7]
    table["cv"] = [-4.0, -3.05, -3.0, -3.04]
    table["cv_standard_error"] = [0.1, 0.1, 0.06, 0.1]
    assert winning_row(table, "cv", False) == 2
    assert winning_row(table, "cv", True) == 1
    table["status"][1] = jg.Status.DEGENERATE
    assert winning_row(table, "cv", True) == 3
    table["cv_standard_error"][2] = np.nan
    assert winning_row(table, "cv", True) == 2


def test_each_data_set_of_a_batch_is_selected_for(key):
    """Three clusters, one cluster, and NaN."""
    x = np.stack([blobs(), np.random.default_rng(3).normal(size=(N, D)), np.full((N, D), np.nan)])
    options = {"n_init": 2, "tol": by_dtype(1e-5, 1e-9)}
    selections = jg.select_batch(key, array(x), [1, 3], "tied_spherical", **options)
    for b in range(2):
        own_key = jax.random.fold_in(key, b)
        alone = jg.select(own_key, array(x[b]), [1, 3], "tied_spherical", **options)
        for name in ("n_components", "covariance_type", "n_parameters"):
            assert selections[b].table[name].tolist() == alone.table[name].tolist()
        assert_close(selections[b].table["bic"], alone.table["bic"], by_dtype(1e-4, 1e-7))
        assert_same_mixture(selections[b].best.mixture, alone.best.mixture)
    assert [selection.best.mixture.n_components for selection in selections[:2]] == [3, 1]
    assert np.all(selections[2].table["status"] == jg.Status.NON_FINITE)


def test_folds_of_each_data_set_of_a_batch(key):
    x = array(np.stack([blobs(seed=seed) for seed in range(2)]))
    options = {"criterion": "cv", "n_folds": 3, "n_init": 1, "tol": by_dtype(1e-5, 1e-9)}
    selections = jg.select_batch(key, x, [2, 3], "spherical", **options)
    for b in range(2):
        alone = jg.select(jax.random.fold_in(key, b), x[b], [2, 3], "spherical", **options)
        assert_close(selections[b].table["cv"], alone.table["cv"], by_dtype(1e-4, 1e-7))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan])
def test_bad_weights_are_the_trouble_of_their_data_set(key, bad):
    x = array(np.stack([blobs()] * 2))
    weights = jnp.ones((2, N)).at[1].set(bad)
    options = {"n_init": 1, "weights": array(weights)}
    good, spoiled = jg.select_batch(key, x, [1, 3], "tied_spherical", **options)
    assert good.best.mixture.n_components == 3
    assert np.all(spoiled.table["status"] == jg.Status.NON_FINITE)


@pytest.mark.parametrize("shape", [(N, D), (2, 0, D), (2, N, D, 1)])
def test_a_batch_of_another_shape_is_refused(key, shape):
    with pytest.raises(ValueError, match=r"B, N, D|at least one"):
        jg.select_batch(key, jnp.zeros(shape), [1, 2])


def test_rows_without_weight_are_in_no_fold(key):
    """They would be folds of nothing, of which every model's likelihood is 0/0."""
    weights = (np.arange(N) % 30 == 0).astype(float)
    kept = kept_in_folds(key, weights, 3)
    assert np.array_equal((weights * ~kept[1:]).sum(axis=1), np.ones(3))
    options = {"criterion": "cv", "n_folds": 5, "n_init": 1, "tol": 1e-3}
    weights = array(np.arange(N) % 18 != 0)
    selection = jg.select(key, array(blobs()), [1, 2], "spherical", weights=weights, **options)
    assert np.isfinite(selection.table["cv"]).all()
    with pytest.raises(ValueError, match="n_folds=80 needs as many rows with weight, x has 60"):
        few = array(np.arange(N) % 3 != 0)
        jg.select(key, array(blobs()), 1, "spherical", weights=few, criterion="cv", n_folds=80)


@pytest.mark.once
def test_a_sweep_is_printed_with_its_winner_marked():
    table = np.zeros(80, ROW)
    table["n_components"] = 1 + np.arange(80) // 2
    table["covariance_type"] = ["full", "<diag>"] * 40
    table["log_likelihood"] = np.linspace(-200, -120, 80)
    table["bic"] = 500 - np.arange(80) + 3 * np.maximum(np.arange(80) - 6, 0)
    table["status"][3] = jg.Status.DEGENERATE
    mixture = jg.GaussianMixture.create([0.25] * 4, [[0.0]] * 4, [1.0] * 4, "spherical")
    best = jg.FitResult(mixture, *np.float64([table["log_likelihood"][6], 0, 0, 0, 0, 0]), None)
    short, long = (jg.Selection(best, of, "bic", False) for of in (table[:10], table))
    lines = repr(short).splitlines()
    assert lines[0] == "Selection(best of 10 by bic: 4 full components, 494)"
    assert [line.endswith("*") for line in lines[2:]] == [i == 6 for i in range(10)]
    assert "DEGENERATE" in lines[5] and "CONVERGED" in lines[8]
    assert len(repr(long).splitlines()) == 62 and repr(long).count("*") == 1
    html = short._repr_html_()
    assert html.count("bold") == 1 and "&lt;diag&gt;" in html and "<diag>" not in html
    frame = short.to_pandas()
    assert list(frame["status"][[3, 6]]) == ["DEGENERATE", "CONVERGED"]
    assert list(frame.columns) == list(ROW.names) and len(frame) == 10
