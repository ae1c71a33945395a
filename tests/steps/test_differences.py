"""Components that matrix products lose go by differences, and no others."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import (
    EPS,
    array,
    assert_close,
    by_dtype,
    double,
    set_budget,
)

import jaxgmm as jg
from jaxgmm.covariances.storage import pick, with_inverse
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.steps.differences import (
    excess_over_nothing,
    statistics_by_differences,
)
from jaxgmm.steps.expectation import expected_statistics
from jaxgmm.steps.features import features_for
from jaxgmm.steps.forms import Forms, extent_of, forms_of
from jaxgmm.steps.products import logit_coefficients, statistics_by_products
from jaxgmm.steps.rows import Rows, as_they_are, standardization_of

N, D, K = 600, 2, 8
TYPES = ["full", "diag", "spherical"]
# Tight components, of which one is the origin of products, and all others are apart; the first is
# so far away that in float32 it can't be the origin, which the wide ones would mind.
REGIMES = {"none": 0, "one": 1, "two": 2, "most": 5}
TIGHT = by_dtype(1e-4, 1e-7)


def rows_with_an_outlier(n_rows: int = N, n_features: int = D) -> Rows:
    """Rows of wide and of tight clusters, one far from all others, and some without weight."""
    random = np.random.default_rng(0)
    x = random.normal(size=(n_rows, n_features))
    x[: n_rows // 4] = x[: n_rows // 4] * 1e-4 + 0.7
    x[-1] = 40.0
    weights = random.uniform(0.5, 2, size=n_rows)
    weights[::7] = 0
    x, weights = array(x), array(weights)
    return Rows(standardization_of(x, weights, True), x, weights)


def mixture_with(n_tight: int, covariance_type: str, z: np.ndarray) -> jg.GaussianMixture:
    """K components over standardized rows z, of which so many are tight: first one far away."""
    random = np.random.default_rng(1)
    n_features = z.shape[1]
    means = random.normal(size=(K, n_features)) / 2
    below = np.tril(random.uniform(-0.2, 0.2, size=(K, n_features, n_features)))
    factors = below + 0.7 * np.eye(n_features)
    places = [3, 6, 0, 7, 2][:n_tight]
    means[places] = np.concatenate([z[-1:], z[1:2], z[[200, 300, 400]]])[:n_tight]
    # The far one is wider than the others, as its distance does the rest.
    sizes = np.r_[100 * TIGHT, np.full(n_tight, TIGHT)][:n_tight]
    factors[places] = sizes[:, None, None] * factors[places]
    covariance: jg.Full | jg.Diagonal | jg.Spherical
    match covariance_type:
        case "full":
            covariance = jg.Full(array(factors))
        case "diag":
            covariance = jg.Diagonal(array(np.einsum("kii->ki", np.abs(factors))))
        case _:
            covariance = jg.Spherical(array(np.abs(factors[:, 0, 0])))
    log_weights = array(np.log(random.dirichlet(np.full(K, 5.0))))
    return jg.GaussianMixture(log_weights, array(means), with_inverse(covariance))


@pytest.fixture(scope="module")
def rows():
    return rows_with_an_outlier()


@pytest.fixture(scope="module", params=TYPES)
def passes(request, rows):
    """By covariance type: the rows, standardized, their extent, and a compiled pass."""
    full = STRUCTURES[request.param].full_second_moment
    with pytest.MonkeyPatch.context() as patch:
        set_budget(patch, smallest_pass=0)
        extent = extent_of(rows, K, STRUCTURES[request.param])

    @jax.jit
    def one(mixture):
        return expected_statistics(rows, mixture, full, extent)

    return request.param, rows.standardization.standardize(rows.x, rows.weights), extent, one


def with_full_second(statistics):
    """The oracle's second moments, or their diagonals, in a form that can be compared."""
    second = double(statistics.second)
    return second if second.ndim == 3 else second[:, :, None] * np.eye(D)


@pytest.mark.parametrize("regime", REGIMES)
def test_statistics_are_the_oracles_however_many_components_products_lose(passes, rows, regime):
    """Also of components that products keep, which share the rows with those that they lose."""
    covariance_type, z, extent, one = passes
    n_tight = REGIMES[regime]
    mixture = mixture_with(n_tight, covariance_type, double(z))
    forms = forms_of(rows, mixture, extent)
    lost = np.asarray(forms.moments_apart)
    n_origins = int(np.any(forms.origin))
    assert n_origins == (n_tight > by_dtype(1, 0))
    assert np.sum(lost) == np.sum(forms.logits_apart) == n_tight - n_origins
    found = one(mixture)
    # Sums of products are about one origin, those of differences about the means.
    assert np.array_equal(found.origin, np.where(lost[:, None], mixture.means, forms.origin))
    actual = found.about(mixture.means)
    weights, dense = double(rows.weights), oracle.dense(mixture)
    expected = oracle.e_step(dense, double(z), weights)
    log_likelihood = oracle.log_likelihood(dense, double(z), weights)
    log_likelihood -= weights.sum() * double(rows.standardization.log_volume())
    tolerance = by_dtype(2e-4, 1e-11)
    assert_close(actual.log_likelihood, log_likelihood, rtol=by_dtype(1e-5, 1e-12))
    assert_close(actual.count, expected.count, rtol=by_dtype(1e-3, 1e-9))
    assert_close(np.sum(double(actual.count)), weights.sum(), rtol=by_dtype(1e-5, 1e-13))
    assert_close(actual.first, expected.first, rtol=0, atol=tolerance * N)
    second = expected.second if actual.second.ndim == 3 else expected.second * np.eye(D)
    assert_close(with_full_second(actual), second, rtol=0, atol=tolerance * N)
    # Those of tight components are small, and judged by their own size.
    for k in np.flatnonzero(lost):
        own = np.abs(second[k]).max()
        assert_close(
            with_full_second(actual)[k], second[k], rtol=0, atol=by_dtype(1e-2, 1e-10) * own
        )


def excess_of(mixture, forms, z, full):
    """Of each component: (K, N), with the logits by products."""
    features = features_for(mixture, full)
    moved = replace(mixture, means=mixture.means - forms.origin[None])
    logits = logit_coefficients(moved, features).at(features.of(z - forms.origin[None]))
    excess = excess_over_nothing(mixture, forms, features, logits, z)
    return np.stack([double(excess(jnp.array([k])))[0] for k in range(mixture.n_components)])


def exact_excess(mixture, forms, z):
    """What it would be if products lost nothing."""
    logits = oracle.logits(oracle.dense(mixture), double(z)).T
    kept = logits[~np.asarray(forms.logits_apart)]
    return logits - kept.max(axis=0) - np.log(float(jnp.finfo(z.dtype).smallest_subnormal))


@pytest.mark.parametrize("regime", ["two", "most"])
def test_no_row_with_a_share_in_a_component_apart_is_passed_over(passes, rows, regime):
    """Nor are many looked at whose share is zero, but of a component that has them all around."""
    covariance_type, z, extent, _ = passes
    mixture = mixture_with(REGIMES[regime], covariance_type, double(z))
    forms = forms_of(rows, mixture, extent)
    apart = np.flatnonzero(forms.logits_apart)
    found = excess_of(mixture, forms, z, STRUCTURES[covariance_type].full_second_moment)[apart]
    exact = exact_excess(mixture, forms, z)[apart]
    assert np.all(found >= exact - 1e-4 * np.abs(exact))
    # The cluster of the tight ones has a quarter of the rows.
    assert len(apart) and np.all(np.sum(found > 0, axis=1) < 0.3 * N)


@pytest.mark.parametrize("condition", by_dtype([1e3, 1e5], [1e6, 1e11]))
def test_products_lose_no_more_of_a_logit_than_is_allowed_for(condition):
    """Of many correlated features, far from the origin."""
    random, n_features = np.random.default_rng(0), 24
    axis = np.ones(n_features) / np.sqrt(n_features)
    thin = np.eye(n_features) - (1 - condition**-0.5) * np.outer(axis, axis)
    covariance = with_inverse(
        jg.Full(array(np.stack([np.eye(n_features), np.linalg.cholesky(thin @ thin)])))
    )
    means = np.stack([np.zeros(n_features), 4 * axis])
    mixture = jg.GaussianMixture(array(np.log([0.5, 0.5])), array(means), covariance)
    apart = jnp.array([False, True])
    forms = Forms(array(np.zeros(n_features)), apart, apart, array(0.0))
    z = array(random.normal(size=(N, n_features)) + random.uniform(0, 9, size=(N, 1)) * axis)
    found, exact = (
        of[1] for of in (excess_of(mixture, forms, z, True), exact_excess(mixture, forms, z))
    )
    assert np.all(found >= exact)
    # And no more than a few percent of what it is about.
    assert np.median(found - exact) < 0.1 * np.median(np.abs(exact))


def test_a_row_counts_while_its_share_may_be_more_than_zero():
    """With all that products may have lost of a logit, of large terms much; and where unknown."""
    covariance = with_inverse(jg.Spherical(array([1.0, 1e-3])))
    mixture = jg.GaussianMixture(array(np.log([0.5, 0.5])), array(np.zeros((2, D))), covariance)
    apart = jnp.array([False, True])
    forms = Forms(array(np.zeros(D)), apart, apart, array(0.0))
    smallest = np.log(jnp.finfo(mixture.means.dtype).smallest_subnormal)
    logits = np.stack([np.zeros(5), smallest + np.array([50, 1, -10, -10, np.nan])])
    z = np.zeros((5, D))
    # Its terms are 1e6 z², of which each product may lose some eps.
    z[3] = np.sqrt(10 / EPS / 1e6 / D)
    features = features_for(mixture, False)
    excess = excess_over_nothing(mixture, forms, features, array(logits), array(z))
    found = double(excess(jnp.array([1])))[0]
    assert np.array_equal(~(found <= 0), [True, True, False, True, True])


@pytest.mark.parametrize("n_features", [D, 5])
@pytest.mark.parametrize("covariance_type", [*TYPES, "tied"])
@pytest.mark.parametrize("sparseness", [1, 4, 10**6])
@pytest.mark.parametrize("which", ["lost", "all"])
def test_of_few_rows_of_a_component_apart_or_of_all(
    monkeypatch, n_features, covariance_type, sparseness, which
):
    """The same, whether the rows that matter are gathered or all are gone through."""
    set_budget(monkeypatch, smallest_pass=0)
    rows = rows_with_an_outlier(N, n_features)
    z = rows.standardization.standardize(rows.x, rows.weights)
    full = covariance_type in ("full", "tied")
    mixture = mixture_with(5, "full" if full else covariance_type, double(z))
    if covariance_type == "tied":
        mixture = replace(mixture, covariance=pick(mixture.covariance, jnp.array([3])))
    extent = extent_of(rows, K, None)
    forms = forms_of(rows, mixture, extent)
    if which == "all":
        every = jnp.ones(K, bool)
        forms = forms._replace(logits_apart=every, moments_apart=every)

    def statistics(fewest_picked):
        set_budget(monkeypatch, sparseness=sparseness, fewest_picked=fewest_picked)
        return expected_statistics(rows, mixture, full, extent, forms)

    found, expected = statistics(0), statistics(np.inf)
    assert_close(found.log_likelihood, expected.log_likelihood, rtol=1e2 * EPS)
    count, second = double(expected.count), np.abs(double(expected.second)).reshape(K, -1)
    # Of a single row about itself nothing is left but rounding, by products that of coordinates.
    least = np.where(forms.moments_apart, TIGHT**2, 1) * count
    sizes = {"count": count, "second": np.maximum(second.max(axis=1), least)}
    sizes["first"] = np.sqrt(sizes["count"] * sizes["second"])
    for name, size in sizes.items():
        gap = np.abs(double(getattr(found, name)) - double(getattr(expected, name)))
        assert np.all(gap.reshape(K, -1).max(axis=1) <= 100 * EPS * size)


def test_of_rows_that_are_told_their_component_all_matter(monkeypatch):
    """However far away it is: nothing else decides whose they are."""
    set_budget(monkeypatch, smallest_pass=0)
    set_budget(monkeypatch, fewest_picked=0)
    random, thin = np.random.default_rng(0), by_dtype(1e-4, 4e-9)
    turn = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    along = random.uniform(3, 6, size=N)
    # Of the terms of a logit of -2000 products lose dozens.
    across = thin * np.sqrt(2 * random.uniform(4000, 5000, size=N))
    x, weights = array(np.stack([along, across], axis=1) @ turn), array(np.ones(N))
    prior = np.broadcast_to([-np.inf, 0], (N, 2))
    rows = as_they_are(x, weights, array(prior))
    root = np.sqrt((1 + thin**2) / 2)
    narrow = np.array([[root, 0], [(1 - thin**2) / 2 / root, thin / root]])
    covariance = with_inverse(jg.Full(array(np.stack([9 * np.eye(2), narrow]))))
    mixture = jg.GaussianMixture(array(np.log([0.5, 0.5])), array(np.zeros((2, 2))), covariance)
    apart = jnp.array([False, True])
    forms = Forms(array(np.zeros(2)), apart, apart, array(0.0))
    extent = extent_of(rows, 2, None)
    expected = statistics_by_differences(rows, mixture, True).log_likelihood
    found = expected_statistics(rows, mixture, True, extent, forms).log_likelihood
    assert_close(found, expected, rtol=100 * EPS)
    lost = statistics_by_products(rows, mixture, True, None).log_likelihood
    assert abs(double(lost) / double(expected) - 1) > 1e4 * EPS


@pytest.mark.parametrize("shift", range(4))
def test_logits_and_moments_may_be_apart_of_any_components(passes, rows, shift):
    """Of the same or of others, whichever way round."""
    covariance_type, z, extent, _ = passes
    mixture = mixture_with(0, covariance_type, double(z))
    full = STRUCTURES[covariance_type].full_second_moment
    logits = np.roll(np.arange(K) % 2 == 0, shift % 2)
    moments = np.roll(np.arange(K) < 2, shift)
    forms = forms_of(rows, mixture, extent)
    forms = forms._replace(logits_apart=jnp.asarray(logits), moments_apart=jnp.asarray(moments))
    found = expected_statistics(rows, mixture, full, extent, forms)
    assert np.array_equal(found.origin, np.where(moments[:, None], mixture.means, forms.origin))
    expected = statistics_by_differences(rows, mixture, full)
    assert_close(found.log_likelihood, expected.log_likelihood, rtol=by_dtype(1e-5, 1e-12))
    moved = found.about(mixture.means)
    for name in ("count", "first", "second"):
        tolerance = by_dtype(1e-4, 1e-11) * N
        assert_close(getattr(moved, name), getattr(expected, name), rtol=0, atol=tolerance)


def test_products_alone_would_lose_the_tight_component(passes, rows):
    """So that the tests above see something."""
    covariance_type, z, extent, _ = passes
    mixture = mixture_with(5, covariance_type, double(z))
    full = STRUCTURES[covariance_type].full_second_moment
    forms = forms_of(rows, mixture, extent)
    lost = statistics_by_products(rows, mixture, full, None, origin=forms.origin)
    lost = lost.about(mixture.means)
    kept = statistics_by_differences(rows, mixture, full)
    apart = np.asarray(forms.moments_apart)
    size = np.abs(double(kept.second))[apart].reshape(4, -1).max(axis=1)
    error = np.abs(double(lost.second) - double(kept.second))[apart].reshape(4, -1).max(axis=1)
    assert np.any(error > by_dtype(1, 1e-9) * size)


def test_a_batch_of_which_each_loses_others_is_one_by_one(passes):
    covariance_type, z, _, one = passes
    mixtures = [mixture_with(n_tight, covariance_type, double(z)) for n_tight in (0, 1, 2, 4)]
    batch = jax.vmap(one)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *mixtures))
    for b, mixture in enumerate(mixtures):
        alone = one(mixture).about(mixture.means)
        together = jax.tree.map(lambda leaf, b=b: leaf[b], batch).about(mixture.means)
        for name in ("log_likelihood", "count", "first", "second"):
            expected = double(getattr(alone, name))
            tolerance = by_dtype(2e-4, 1e-11) * max(N, np.abs(expected).max())
            assert_close(getattr(together, name), expected, rtol=0, atol=tolerance)


def test_the_form_of_a_pass_is_not_a_matter_of_neighbors(passes):
    """Each of a shuffled batch of tight and wide mixtures has the digits that it has alone."""
    covariance_type, z, _, one = passes
    mixtures = [mixture_with(n, covariance_type, double(z)) for n in (5, 0, 1, 2)]

    def gap(actual, expected):
        """In roundings of the largest number of each component."""
        parts = []
        for name in ("count", "first", "second"):
            ours, theirs = (double(getattr(of, name)).reshape(K, -1) for of in (actual, expected))
            size = np.abs(theirs).max(axis=1, keepdims=True)
            parts.append(np.abs(ours - theirs) / np.where(size > 0, size, 1) / EPS)
        return max(part.max() for part in parts)

    for order in ([0, 1, 2, 3], [3, 1], [1, 2, 0]):
        shuffled = [mixtures[i] for i in order]
        batch = jax.vmap(one)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *shuffled))
        for place, i in enumerate(order):
            together = jax.tree.map(lambda leaf, place=place: leaf[place], batch)
            assert np.array_equal(together.origin, one(mixtures[i]).origin)
            assert gap(together, one(mixtures[i])) < 500
    # Each form has statistics about another origin.
    origins = [double(one(mixture).origin) for mixture in mixtures[:3]]
    assert not any(np.array_equal(origins[i], origins[i - 1]) for i in range(3))


def test_a_prior_is_added_to_components_apart(passes, rows):
    covariance_type, z, extent, _ = passes
    full = STRUCTURES[covariance_type].full_second_moment
    mixture = mixture_with(2, covariance_type, double(z))
    prior = array(np.random.default_rng(2).normal(size=(N, K)))
    expected = statistics_by_differences(rows._replace(log_prior=prior), mixture, full)

    @jax.jit
    def with_prior(prior):
        return expected_statistics(rows._replace(log_prior=prior), mixture, full, extent)

    actual = with_prior(prior)
    assert_close(actual.count, expected.count, rtol=by_dtype(1e-3, 1e-9))
    assert_close(actual.log_likelihood, expected.log_likelihood, rtol=by_dtype(1e-5, 1e-12))


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_the_objective_never_falls_while_a_component_is_apart(monkeypatch, covariance_type, rows):
    set_budget(monkeypatch, small=0)
    set_budget(monkeypatch, smallest_pass=0)
    z = rows.standardization.standardize(rows.x, rows.weights)
    start = mixture_with(3, covariance_type, double(z))
    with jg.record_passes() as record:
        fit = jg.em(
            start, z, weights=rows.weights, covariance_type=covariance_type, max_iter=40, tol=0
        )
    some = [0 < one.n_logits_apart < K for one in record.passes]
    assert len(some) == 40 and np.mean(some) > 0.5
    size = np.abs(double(fit.mixture.log_prob(z))).sum()
    assert np.diff(double(fit.history)).min() >= -by_dtype(1e-5, 1e-10) * size
    assert fit.status != jg.Status.NON_FINITE


def test_tangents_of_a_pass_are_those_of_differences(passes, rows):
    """As products of the curvature with a direction need them, also of several at once."""
    covariance_type, z, _, one = passes
    full = STRUCTURES[covariance_type].full_second_moment
    mixture = mixture_with(2, covariance_type, double(z))
    nowhere = jax.tree.map(jnp.zeros_like, mixture)
    of_weights = replace(nowhere, log_weights=array(np.linspace(-1, 1, K)))
    # Of the wide components: by those of the others everything would be large.
    wide = np.isin(np.arange(K), [1, 4, 5])
    moved = np.where(wide[:, None], [1.0, -2.0], 0)
    for direction in (of_weights, replace(of_weights, means=array(moved))):
        fixed = mixture.means

        def of_pass(mixture, fixed=fixed):
            return one(mixture).about(fixed)

        def of_differences(mixture, fixed=fixed):
            return statistics_by_differences(rows, mixture, full).about(fixed)

        _, expected = jax.jvp(of_differences, (mixture,), (direction,))
        _, actual = jax.jvp(of_pass, (mixture,), (direction,))
        for name in ("count", "first", "second"):
            wanted = double(getattr(expected, name))
            tolerance = by_dtype(1e-3, 1e-9) * max(N, np.abs(wanted).max())
            assert_close(getattr(actual, name), wanted, rtol=0, atol=tolerance)
    expected, of_pass = expected.count, lambda mixture: one(mixture).about(fixed).count
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), direction)
    many = jax.vmap(lambda moved: jax.jvp(of_pass, (mixture,), (moved,))[1])(twice)
    assert_close(many[1], 2 * expected, rtol=0, atol=by_dtype(2e-3, 2e-9) * N)
