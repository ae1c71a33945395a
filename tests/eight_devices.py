"""What `test_devices.py` looks at, from a process of its own: JSON on the standard output."""

import json
import os
from functools import partial

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"


import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxgmm as jg
from jaxgmm.arrays import budgets

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", os.environ["JAXGMM_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

N_ROWS, D, K = 8 * 20_000, 2, 3
# Two forms of passes where there are so many rows, one where there are few.
budgets.CPU = budgets.CPU._replace(smallest_pass=2**16)
KEY = jax.random.key(0)
ROWS, NOWHERE, FEATURES = PartitionSpec("rows"), PartitionSpec(), PartitionSpec(None, "features")
random = np.random.default_rng(0)
centers = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
points = centers[random.integers(K, size=N_ROWS)] + random.normal(size=(N_ROWS, D))
x = jnp.asarray(points, jnp.result_type(float))
few = x[: 8 * 40]
start = jax.tree.map(
    lambda leaf: leaf.astype(x.dtype),
    jg.GaussianMixture.create([0.3, 0.3, 0.4], (centers + 0.5).tolist(), [np.eye(D).tolist()] * K),
)
meshes = {
    kind: jax.make_mesh((8,), ("rows",), axis_types=(axis_type,))
    for kind, axis_type in (("auto", AxisType.Auto), ("explicit", AxisType.Explicit))
}
auto, of_features = meshes["auto"], jax.make_mesh((2,), ("features",))


def on_each(function, x):
    """For each device, what a function of its own rows returns."""

    def own(x):
        return jax.tree.map(lambda leaf: leaf[None], function(x))

    return jax.jit(jax.shard_map(own, mesh=auto, in_specs=ROWS, out_specs=ROWS))(x)


def largest_difference(function, x):
    """On a device from the same rows alone, in units of each result's size."""
    found = on_each(function, x)
    alone = jax.jit(function)(x[-len(x) // 8 :])
    return max(
        float(jnp.max(jnp.abs(a[-1] - b)) / jnp.maximum(1, jnp.max(jnp.abs(b))))
        for a, b in zip(*map(jax.tree.leaves, (found, alone)), strict=True)
        if jnp.issubdtype(b.dtype, jnp.floating)
    )


def em(x):
    return jg.em(start, x, max_iter=8, history=False)


IN_SHARD_MAP = {
    "e_step": (x, lambda x: jg.e_step(start, x)),
    "em_step": (x, lambda x: jg.em_step(start, x)),
    "log_prob": (x, start.log_prob),
    "log_likelihood": (x, lambda x: jg.log_likelihood(start, x)),
    "accumulate": (
        x,
        lambda x: jg.accumulate(x, jnp.full((len(x), K), 1 / K, x.dtype), covariance_type="full"),
    ),
    "em": (x, lambda x: em(x).mixture),
    "gradient of em": (few, jax.grad(lambda x: em(x).log_likelihood)),
    "fit by kmeans": (
        few,
        lambda x: jg.fit(KEY, x, K, init="kmeans", max_iter=3).mixture,
    ),
    "fit_batch": (
        few,
        lambda x: jg.fit_batch(KEY, x.reshape(2, -1, D), 2, init="random", max_iter=3).mixture,
    ),
    "observed_information": (few, lambda x: jg.observed_information(start, x)),
}


def recipe():
    """EM by the README's recipe, and how far its means are from those of `em`."""

    def fitted(mixture, x):
        def statistics(mixture):
            return jg.e_step(mixture, x).psum("rows")

        return jg.em_from_statistics(statistics, mixture, max_iter=8, tol=0.0).mixture

    fitted = jax.jit(jax.shard_map(fitted, mesh=auto, in_specs=(NOWHERE, ROWS), out_specs=NOWHERE))
    shared = jax.device_put(x, NamedSharding(auto, ROWS))
    alone = jg.em(start, x, max_iter=8, tol=0.0).mixture
    found, expected = jax.device_get((fitted(start, shared).means, alone.means))
    return float(np.max(np.abs(found - expected))), fitted.lower(start, shared).compile().as_text()


def refusal(function, *arguments):
    """The error's kind and text; empty where there is none."""
    try:
        jax.block_until_ready(function(*arguments))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def gap(actual, expected):
    """In units of each result's size."""
    pairs = zip(*map(jax.tree.leaves, jax.device_get((actual, expected))), strict=True)
    return float(
        np.max([np.max(np.abs(a - b)) / max(1, np.max(np.abs(b))) for a, b in pairs if np.size(a)])
    )


def without_the_first(n_rows):
    """Weights of so many rows, of which the first device's have none."""
    return jnp.asarray(random.uniform(0.5, 2, size=n_rows), x.dtype).at[: n_rows // 8].set(0)


weights = without_the_first(N_ROWS)
told = jnp.asarray(np.where(np.arange(N_ROWS)[:, None] % 5, 0, [[0, -np.inf, -np.inf]]), x.dtype)
shares = jnp.asarray(random.dirichlet(np.ones(K), size=N_ROWS), x.dtype)
some = x[: 8 * 1500]


def mixture(result):
    """What a fit says about all rows."""
    return result.mixture, result.log_likelihood, result.n_iter


# By name: a function of arrays (N, ...), and these.
OF_SPREAD_ROWS = {
    "e_step": (lambda x, w: jg.e_step(start, x, w), x, weights),
    "em_step": (lambda x: jg.em_step(start, x), x),
    "accumulate": (lambda x, r: jg.accumulate(x, r, covariance_type="diag").count, x, shares),
    "log_likelihood": (lambda x, p: jg.log_likelihood(start, x, log_prior=p), x, told),
    "bic": (lambda x, w: jg.bic(start, x, w), x, weights),
    "em": (lambda x, w: mixture(jg.em(start, x, weights=w, max_iter=8, tol=0)), x, weights),
    "em, tied": (
        lambda x: mixture(jg.em(start, x, covariance_type="tied", max_iter=8, tol=0)),
        x,
    ),
    "em, polished": (lambda x: mixture(jg.em(start, x, polish=True, max_iter=8)), few),
    "em, accelerated": (
        lambda x, p: mixture(jg.em(start, x, log_prior=p, accelerate="squarem", max_iter=8)),
        few,
        told[: len(few)],
    ),
    "fit": (lambda x: mixture(jg.fit(KEY, x, K, max_iter=8, tol=0)), some),
    "fit, restarts": (lambda x: mixture(jg.fit(KEY, x, K, n_init=3, max_iter=8, tol=0)), few),
    "fit, kmeans": (
        lambda x, w: mixture(jg.fit(KEY, x, K, weights=w, init="kmeans", max_iter=8, tol=0)),
        some,
        without_the_first(len(some)),
    ),
    "fit, random": (lambda x: mixture(jg.fit(KEY, x, K, init="random", max_iter=3, tol=0)), few),
    "fit, random rows": (
        lambda x, w: mixture(
            jg.fit(KEY, x, K, weights=w, init="random_from_data", max_iter=8, tol=0)
        ),
        few,
        without_the_first(len(few)),
    ),
    "fit, prior": (
        lambda x, p: mixture(jg.fit(KEY, x, K, log_prior=p, max_iter=8, tol=0)),
        few,
        told[: len(few)],
    ),
    "fit, random rows, fewer than components": (
        lambda x: mixture(jg.fit(KEY, x, K, init="random_from_data", max_iter=8, tol=0)),
        x[:16],
    ),
    "fit, responsibilities": (
        lambda x, r: mixture(jg.fit(KEY, x, K, init=r, max_iter=8, tol=0)),
        few,
        shares[: len(few)],
    ),
}


def spread(arrays, mesh):
    return [jax.device_put(array, NamedSharding(mesh, ROWS)) for array in arrays]


def in_shard_map():
    """`em` of all rows inside of `jax.shard_map`: how far it is off, and the program."""

    def fitted(mixture, x):
        return jg.em(mixture, x, max_iter=8, history=False, axis_name="rows").mixture.means

    joint = jax.jit(jax.shard_map(fitted, mesh=auto, in_specs=(NOWHERE, ROWS), out_specs=NOWHERE))
    (shared,) = spread([x], auto)
    return gap(joint(start, shared), em(x).mixture.means), joint.lower(start, shared).compile()


def messages_of_a_step(program):
    """The collectives of the loop that has most of them, and all others than all-reduce."""
    loops, body = {}, None
    for line in program.as_text().splitlines():
        if line.endswith("{") and "=" not in line.split("(")[0]:
            body = line.split()[0]
        for kind in ("all-reduce", "all-gather", "all-to-all", "collective-permute"):
            if f" {kind}(" in line or f" {kind}-start(" in line:
                loops.setdefault(body, []).append(kind)
    main = [kinds for name, kinds in loops.items() if "main" not in name and name != "ENTRY"]
    return max(map(len, main)), sorted({kind for kinds in loops.values() for kind in kinds})


few_weights = weights[-len(few) :]
# By name: functions of rows and their weights, of whose results derivatives are taken.
DIFFERENTIATED = {
    "em": lambda x, w: jg.em(start, x, weights=w, history=False).mixture,
    "em, regularized": lambda x, w: (
        jg.em(start, x, weights=w, reg_covar=0.3, adjoint="one_step", max_iter=3).mixture
    ),
    "em, one step": lambda x, w: jg.em(start, x, weights=w, adjoint="one_step").mixture,
    "em, unrolled": lambda x, w: (
        jg.em(start, x, weights=w, adjoint="unroll", max_iter=3, history=False).mixture
    ),
    "fit, tied": lambda x, w: jg.fit(KEY, x, K, weights=w, covariance_type="tied").mixture,
    "e_step": lambda x, w: jg.e_step(start, x, w).second / len(x),
    "log_likelihood": lambda x, w: jg.log_likelihood(start, x, w) / len(x),
}


def slope_of(function):
    """Derivatives of a number made of all results, of about 1 for each row."""

    def number(x, w):
        return sum(len(x) * jnp.mean(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(x, w)))

    return jax.grad(number, (0, 1))


def afterwards():
    """What goes wrong with results on an explicit mesh, by name."""
    (rows,) = spread([few], meshes["explicit"])
    fitted = jg.fit(KEY, rows, 2, max_iter=5).mixture
    batch = jg.fit_batch(KEY, put(some_models, ALONG_MODELS, both["explicit"]), 2, max_iter=2)
    calls = {
        "marginal": lambda: jg.marginal(fitted, [0]),
        "condition": lambda: jg.condition(fitted, [0], [1.0]),
        "affine": lambda: jg.affine(fitted, 2 * jnp.eye(2, dtype=x.dtype), jnp.ones(2, x.dtype)),
        "match": lambda: jg.match(fitted, fitted),
        "kl_divergence": lambda: jg.kl_divergence(fitted, fitted),
        "product": lambda: jg.product(fitted, fitted),
        "reduce": lambda: jg.reduce(fitted, 1),
        "overlap": lambda: jg.overlap(fitted),
        "sample": lambda: fitted.sample(KEY, 10),
        "printed": lambda: (repr(batch), repr(fitted)),
        "picked": lambda: jg.em(batch[5].mixture, some_models[5], max_iter=2),
        "start": lambda: jg.fit(KEY, few, 2, init=fitted, max_iter=2),
    }
    wrong = {name: refusal(call) for name, call in calls.items()}
    found = {name: text for name, text in wrong.items() if text}
    if "FitError" not in refusal(batch.check):
        found["check"] = refusal(batch.check)
    return found


def bad_data():
    """What is said of it, on an explicit mesh; of more numbers than are looked at on the host."""
    where = meshes["explicit"]
    arrays = {
        "x": (x.at[-7, 1].set(jnp.nan), weights, told),
        "weights": (x, weights.at[-9].set(-1), told),
        "log_prior": (x, weights, told.at[-11].set(-jnp.inf)),
    }
    return [
        refusal(lambda x, w, p: jg.em(start, x, weights=w, log_prior=p), *spread(bad, where))
        for bad in arrays.values()
    ]


def derivative_in_a_mesh():
    """Of known rows, which JAX wants the mesh for."""
    arrays = spread((few, few_weights), meshes["explicit"])
    with jax.set_mesh(meshes["explicit"]):
        found = slope_of(DIFFERENTIATED["em"])(*arrays)
    return gap(found, slope_of(DIFFERENTIATED["em"])(few, few_weights))


def beside_known_weights():
    """Of rows that are traced, where weights are known and spread: a fit, and its derivative."""
    rows, own = spread((few, few_weights), meshes["explicit"])

    def total(w, x):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(DIFFERENTIATED["em"](x, w)))

    functions = [jax.jit(partial(total, own)), jax.grad(partial(total, own))]
    with jax.set_mesh(meshes["explicit"]):
        found = [function(rows) for function in functions]
    return gap(found, [total(few_weights, few), jax.grad(partial(total, few_weights))(few)])


def messages_of(function, *arguments):
    """All kinds of collectives in a program."""
    text = function.lower(*arguments).compile().as_text()
    kinds = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
    return sorted(kind for kind in kinds if f" {kind}(" in text or f" {kind}-start(" in text)


some_models = few.reshape(8, 40, D)
# Of each model one device has no row of any weight.
of_rows = jnp.asarray(random.uniform(0.5, 2, size=(8, 40)), x.dtype).at[:, :20].set(0)
labels = jnp.asarray(np.where(random.uniform(size=(8, 40, 1)) < 0.1, [[0, -np.inf]], 0), x.dtype)
their_starts = jg.fit_batch(KEY, some_models, 2, init="random", max_iter=1).mixture
one_model = jax.tree.map(
    lambda leaf: leaf.astype(x.dtype),
    jg.GaussianMixture.create([0.5, 0.5], [[0, 0], [5, 5]], [[2, 2], [2, 2]], "diag"),
)
their_fit = jg.em(start, few, weights=few_weights).mixture
SHORT = {"init": "random", "max_iter": 3, "tol": 0}
ALONG_MODELS, ALONG_BOTH = PartitionSpec("models"), PartitionSpec("models", "rows")
SECOND = PartitionSpec(None, "rows")
# By name: a function, and its arguments, each with how it is spread.
SPREAD = {
    "models": (lambda x: jg.fit_batch(KEY, x, 2, **SHORT), (some_models, ALONG_MODELS)),
    "models and rows": (
        lambda x, p: jg.fit_batch(
            KEY, x, 2, log_prior=p, covariance_type="tied", n_init=2, max_iter=3, tol=0
        ),
        (some_models, ALONG_BOTH),
        (labels, ALONG_BOTH),
    ),
    "rows of models": (
        lambda x, w, m: jg.fit_batch(KEY, x, 2, weights=w, init=m, max_iter=3, tol=0),
        (some_models, SECOND),
        (of_rows, SECOND),
        (their_starts, NOWHERE),
    ),
    "models of the same rows": (
        lambda x, w: jg.fit_batch(KEY, x, 2, weights=w, **SHORT),
        (some_models[0], ROWS),
        (of_rows, ALONG_BOTH),
    ),
    "select": (
        lambda x, w: table(jg.select(KEY, x, [1, 2], "diag", weights=w, criterion="cv")),
        (some_models[0], ROWS),
        (of_rows[0] + 1, ROWS),
    ),
    "select_batch": (
        lambda x: [table(found) for found in jg.select_batch(KEY, x, 2, "diag", n_init=2)],
        (some_models, ALONG_BOTH),
    ),
    "fit_gradient": (
        lambda x, w: jg.fit_gradient(one_model, x, weights=w, max_iter=5),
        (few, ROWS),
        (few_weights, ROWS),
    ),
    "fit_gradient of drawn rows": (
        lambda x, w: (
            jg.fit_gradient(one_model, x, weights=w, key=KEY, batch_rows=50, max_iter=5).mixture
        ),
        (few, ROWS),
        (few_weights, ROWS),
    ),
    "standard_errors": (
        lambda x, w: jg.standard_errors(their_fit, x, w),
        (few, ROWS),
        (few_weights, ROWS),
    ),
    "points": (
        lambda x: (one_model.log_prob(x), one_model.predict(x), jg.mahalanobis(one_model, x)),
        (x, ROWS),
    ),
    "niw_prior": (lambda x: jg.niw_prior(one_model, x).posterior(x), (few, ROWS)),
    "rows and models along one axis": (
        lambda x, w: jg.fit_batch(KEY, x, 2, weights=w, **SHORT),
        (some_models[0], ALONG_MODELS),
        (of_rows, ALONG_MODELS),
    ),
    "weights along another axis": (
        lambda x, w: jg.e_step(one_model, x, w),
        (some, ROWS),
        (weights[-len(some) :], ALONG_MODELS),
    ),
    "outlier_score": (
        lambda x: jg.outlier_score(KEY, one_model, x, n_samples=100),
        (few, ROWS),
    ),
    "regress": (lambda x: jg.regress(one_model, [0], x[:, :1]), (few, ROWS)),
}
both = {
    kind: jax.make_mesh((4, 2), ("models", "rows"), axis_types=(axis_type,) * 2)
    for kind, axis_type in (("auto", AxisType.Auto), ("explicit", AxisType.Explicit))
}


def table(selection):
    """The numbers of a sweep."""
    names = ["log_likelihood", "bic", "n_iter", *({"cv"} & {*selection.table.dtype.names})]
    return [selection.table[name].astype(float) for name in names]


def put(tree, spec, mesh):
    return jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, spec)), tree)


def spread_gap(name, kind):
    """How far what is spread is from what is on one device."""
    function, *arguments = SPREAD[name]
    results = (
        function(*(put(tree, spec, both[kind]) for tree, spec in arguments)),
        function(*(tree for tree, _ in arguments)),
    )
    return gap(*(mixture(of) if isinstance(of, jg.FitResult) else of for of in results))


off, text = recipe()
joint, program = in_shard_map()
report = {
    "in shard_map": {name: largest_difference(f, own) for name, (own, f) in IN_SHARD_MAP.items()},
    "recipe": off,
    "spread": {
        f"{name}, {kind}": gap(function(*spread(arrays, mesh)), function(*arrays))
        for name, (function, *arrays) in OF_SPREAD_ROWS.items()
        for kind, mesh in meshes.items()
    },
    "spread in jit": gap(
        jax.jit(lambda x: em(x).mixture)(*spread([few], meshes["explicit"])), em(few).mixture
    ),
    "joint": joint,
    "messages": messages_of_a_step(program),
    "recipe gathers": "all-gather" in text,
    "recipe sums": "all-reduce" in text,
    "spread along two axes": {
        f"{name}, {kind}": spread_gap(name, kind)
        for name in SPREAD
        for kind in (["auto", "explicit"] if name == "models" else ["explicit"])
    },
    "models send": messages_of(
        jax.jit(SPREAD["models"][0]), put(some_models, ALONG_MODELS, both["explicit"])
    ),
    "models and rows send": messages_of(
        jax.jit(SPREAD["models and rows"][0]),
        *(put(tree, spec, both["explicit"]) for tree, spec in SPREAD["models and rows"][1:]),
    ),
    "refused features": refusal(em, jax.device_put(few, NamedSharding(of_features, FEATURES))),
    "derivatives": {
        f"{name}, {kind}": gap(
            jax.jit(slope_of(function))(*spread((few, few_weights), mesh)),
            jax.jit(slope_of(function))(few, few_weights),
        )
        for name, function in DIFFERENTIATED.items()
        for kind, mesh in meshes.items()
        if kind == "explicit" or name == "em"
    },
    "derivatives send": messages_of(
        jax.jit(slope_of(DIFFERENTIATED["em"])), *spread((few, few_weights), meshes["explicit"])
    ),
    "derivative in a mesh": derivative_in_a_mesh(),
    "beside known weights": beside_known_weights(),
    "several meshes": refusal(
        lambda x, w: jg.fit_batch(KEY, x, 2, weights=w, **SHORT),
        *spread([some_models[0]], meshes["explicit"]),
        put(of_rows, ALONG_MODELS, both["explicit"]),
    ),
    "derivative, two forms": gap(
        *(
            jax.jit(slope_of(DIFFERENTIATED["em"]))(*arrays)
            for arrays in (
                spread((some, weights[-len(some) :]), meshes["explicit"]),
                (some, weights[-len(some) :]),
            )
        )
    ),
    "afterwards": afterwards(),
    "bad data": bad_data(),
}

split_points = jax.device_put(few, NamedSharding(auto, ROWS))
log_prob = jax.jit(start.log_prob)
report["points"] = float(jnp.max(jnp.abs(start.log_prob(split_points) - start.log_prob(few))))
report["labels"] = bool(jnp.all(start.predict(split_points) == start.predict(few)))
report["points gather"] = "all-gather" in log_prob.lower(split_points).compile().as_text()

everywhere = jax.device_put(few, NamedSharding(auto, NOWHERE))
report["replicated"] = float(jnp.max(jnp.abs(em(everywhere).mixture.means - em(few).mixture.means)))
print(json.dumps(report))
