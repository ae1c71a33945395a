"""No program holds two batched calls of LAPACK of which neither needs what the other makes.

Each spreads its batch over the pool of threads that it runs in, and waits: on few cores two of them
side by side may wait for each other for ever.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array
from test_compiling import is_program

import jaxgmm as jg

LAPACK = {"cholesky", "eig", "eigh", "geqrf", "hessenberg", "householder_product", "lu", "qr"}
LAPACK |= {"schur", "svd", "triangular_solve", "tridiagonal", "tridiagonal_solve"}
# What XLA runs as one operation, when all that it needs is there; other programs it takes apart.
LOOPS = {"while", "scan", "cond"}
N, D, K = 30, 4, 3


def programs_in(equation):
    """The programs that are parameters of an equation."""
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def is_batched(equation):
    return equation.primitive.name in LAPACK and equation.invars[0].aval.ndim > 2


def calls_in(jaxpr, needed, pairs):
    """Which LAPACK calls the outputs of a program need.

    Args:
        jaxpr: the program.
        needed: for each of its inputs the calls that it needs, as a frozenset.
        pairs: a set, to which pairs of calls are added that may run side by side.

    Returns:
        For each output a frozenset; and for each call in the program what it needs, as a dict.
    """
    known = dict(zip(jaxpr.invars, needed, strict=True))
    calls = {}

    def of(variable):
        """A literal needs nothing."""
        return frozenset() if hasattr(variable, "val") else known.get(variable, frozenset())

    for equation in jaxpr.eqns:
        before = frozenset().union(*map(of, equation.invars))
        inner, inside = list(programs_in(equation)), {}
        if is_batched(equation):
            inside[(id(equation), equation.primitive.name)] = before
        outputs = [before | frozenset(inside)] * len(equation.outvars)
        taken_apart = equation.primitive.name not in LOOPS and len(inner) == 1
        if taken_apart and len(inner[0].invars) == len(equation.invars):
            outputs, inside = calls_in(inner[0], [of(v) for v in equation.invars], pairs)
        else:
            for program in inner:
                _, found = calls_in(program, [before] * len(program.invars), pairs)
                inside |= {call: before | own for call, own in found.items()}
            outputs = [out | frozenset(inside) for out in outputs]
        for call, own in inside.items():
            pairs.update((call, other) for other in calls if other not in own)
        calls |= inside
        known.update(zip(equation.outvars, outputs, strict=True))
    return [of(v) for v in jaxpr.outvars], calls


def side_by_side(function, *arguments):
    """Pairs of LAPACK calls in a function's program that may run side by side."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    pairs = set()
    calls_in(jaxpr, [frozenset()] * len(jaxpr.invars), pairs)
    return {tuple(name for _, name in pair) for pair in pairs}


def test_the_search_finds_calls_that_need_nothing_of_each_other():
    x = jnp.stack([jnp.eye(3)] * 2)
    qr, cholesky = (lambda x: jnp.linalg.qr(x, mode="r")), jnp.linalg.cholesky
    solve = jax.scipy.linalg.solve_triangular
    assert side_by_side(lambda x: (qr(x), cholesky(x)), x) == {("cholesky", "qr")}
    assert side_by_side(lambda x: jax.jit(qr)(x) + jax.jit(cholesky)(x), x)
    assert side_by_side(lambda x: jax.lax.map(lambda y: (qr(y), cholesky(y)), x[None]), x)
    assert side_by_side(lambda x: qr(x) + jax.lax.map(cholesky, x[None])[0], x)
    assert side_by_side(jax.vmap(lambda x: (qr(x), cholesky(x))), x)
    assert not side_by_side(lambda x: (qr(x[0]), cholesky(x[0])), x)
    assert not side_by_side(lambda x: solve(cholesky(x), x, lower=True), x)
    assert not side_by_side(lambda x: qr(jax.jit(cholesky)(x)), x)
    assert not side_by_side(lambda x: qr(jax.lax.map(cholesky, x[None])[0]), x)


def mixtures():
    """Two, with full covariances."""
    random = np.random.default_rng(0)
    roots = random.normal(size=(2, K, D, D)) / 4 + np.eye(D)
    factors = np.linalg.cholesky(roots @ np.swapaxes(roots, 2, 3))
    means = random.normal(size=(2, K, D))
    log_weights = array(np.log(np.full(K, 1 / K)))
    return [
        jg.GaussianMixture(log_weights, array(m), jg.Full(array(f)))
        for m, f in zip(means, factors, strict=True)
    ]


KEY = jax.random.key(0)
SHORT = {"max_iter": 2, "history": False}


def weighted(p, x):
    return jg.accumulate(x, p.responsibilities(x), covariance_type="full")


# Every public function that makes something of arrays, by its name: of two mixtures and of rows.
USES = {
    "GaussianMixture": lambda p, q, x: (
        jg.GaussianMixture.create(p.weights, p.means, p.covariances),
        (p.precisions, p.covariance_matrix(), p.mean()),
        (p.log_prob(x), p.component_log_prob(x), p.responsibilities(x), p.predict(x)),
        p.sample(KEY, 5, differentiable_weights=True),
    ),
    "accumulate": lambda p, q, x: weighted(p, x),
    "affine": lambda p, q, x: jg.affine(p, x[:2, :D], x[0, :2]),
    "aic": lambda p, q, x: jg.aic(p, x),
    "bic": lambda p, q, x: jg.bic(p, x),
    "cauchy_schwarz_divergence": lambda p, q, x: jg.cauchy_schwarz_divergence(p, q),
    "cdf": lambda p, q, x: jg.cdf(jg.marginal(p, 0), x[:, 0]),
    "component_entropies": lambda p, q, x: jg.component_entropies(p),
    "condition": lambda p, q, x: jg.condition(p, [1, 0], x[0, :2]),
    "constrain": lambda p, q, x: jg.constrain(jg.unconstrain(p)),
    "e_step": lambda p, q, x: jg.e_step(p, x),
    "em": lambda p, q, x: jg.em(p, x, **SHORT),
    "em_from_statistics": lambda p, q, x: jg.em_from_statistics(
        lambda m: jg.e_step(m, x), p, **SHORT
    ),
    "em_step": lambda p, q, x: jg.em_step(p, x),
    "entropy": lambda p, q, x: jg.entropy(p, key=KEY, n_samples=5),
    "fit": lambda p, q, x: jg.fit(KEY, x, 2, **SHORT),
    "fit_gradient": lambda p, q, x: jg.fit_gradient(p, x, max_iter=2),
    "highest_density_level": lambda p, q, x: jg.highest_density_level(KEY, p, 0.5, n_samples=5),
    "icl": lambda p, q, x: jg.icl(p, x),
    "kl_divergence": lambda p, q, x: jg.kl_divergence(p, q, key=KEY, n_samples=5),
    "l2_distance": lambda p, q, x: jg.l2_distance(p, q),
    "linear_dynamics": lambda p, q, x: jg.linear_dynamics(
        jg.niw_prior(p, x).posterior(x).gaussian(), [0, 1]
    ),
    "log_likelihood": lambda p, q, x: jg.log_likelihood(p, x),
    "m_step": lambda p, q, x: jg.m_step(weighted(p, x)),
    "mahalanobis": lambda p, q, x: jg.mahalanobis(p, x),
    "marginal": lambda p, q, x: jg.marginal(p, [2, 1]),
    "match": lambda p, q, x: jg.match(p, q),
    "niw_prior": lambda p, q, x: jg.niw_prior(p, x).posterior(x).gaussian(),
    "observed_information": lambda p, q, x: jg.observed_information(p, x),
    "outlier_score": lambda p, q, x: jg.outlier_score(KEY, p, x, n_samples=5),
    "overlap": lambda p, q, x: jg.overlap(p),
    "product": lambda p, q, x: jg.product(p, q),
    "quantile": lambda p, q, x: jg.quantile(jg.marginal(p, 0), jax.nn.sigmoid(x[:, 0])),
    "reduce": lambda p, q, x: jg.reduce(p, 2),
    "regress": lambda p, q, x: jg.regress(p, [0, 3], x[:, :2]),
    "standard_errors": lambda p, q, x: jg.standard_errors(p, x),
    "unconstrain": lambda p, q, x: jg.unconstrain(p),
    "wasserstein_distance": lambda p, q, x: jg.wasserstein_distance(p, q),
}
# Those that call `fit`'s program many times over, or are no programs.
ELSEWHERE = {"fit_batch", "select", "select_batch", "n_parameters", "load", "save", "record_passes"}
ELSEWHERE |= {"from_sklearn", "to_sklearn", "to_numpyro"}
# Of which derivatives go forward only, or are none.
NOT_BACKWARD = {
    *("fit", "em", "em_from_statistics", "fit_gradient"),
    *("match", "observed_information", "standard_errors"),
}


def test_every_public_function_is_in_the_table():
    functions = {name for name, value in vars(jg).items() if inspect.isfunction(value)}
    functions = {name for name in functions if not name.startswith("_")}
    assert functions - ELSEWHERE <= set(USES)


def floats(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(jnp.sum(leaf) for leaf in leaves)


@pytest.mark.parametrize("name", USES)
def test_no_program_holds_two_batched_calls_of_lapack_side_by_side(name):
    """As it is, in a batch, and with its derivatives, also in a batch."""
    use = USES[name]
    p, q = mixtures()
    x = array(np.random.default_rng(1).normal(size=(N, D)))
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), (p, q, x))
    assert not side_by_side(use, p, q, x)
    assert not side_by_side(jax.vmap(use), *batch)
    if name not in NOT_BACKWARD:
        slopes = jax.grad(lambda p, q, x: floats(use(p, q, x)), argnums=(0, 1, 2))
        assert not side_by_side(jax.vmap(slopes), *batch)


def test_mixtures_of_known_values_are_factorized_outside_of_the_program_that_makes_them():
    def both(shift):
        matrices = np.stack([np.eye(3)] * 2).tolist()
        one = jg.GaussianMixture.create([0.5, 0.5], np.zeros((2, 3)).tolist(), matrices)
        other = jg.GaussianMixture.create([0.5, 0.5], np.ones((2, 3)).tolist(), matrices)
        return one.means + other.means + shift

    assert "cholesky" not in str(jax.make_jaxpr(both)(1.0))
