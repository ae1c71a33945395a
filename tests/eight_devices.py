"""What `test_devices.py` looks at, from a process of its own: JSON on the standard output."""

import json
import os

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"


import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxgmm as jg

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", os.environ["JAXGMM_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

N_ROWS, D, K = 8 * 20_000, 2, 3
KEY = jax.random.key(0)
ROWS, NOWHERE = PartitionSpec("rows"), PartitionSpec()
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
auto = meshes["auto"]


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


OF_SPLIT_ROWS = {
    "fit": lambda x: jg.fit(KEY, x, K),
    "em": lambda x: jg.em(start, x),
    "em_step": lambda x: jg.em_step(start, x),
    "e_step": lambda x: jg.e_step(start, x),
    "accumulate": lambda x: jg.accumulate(x, jnp.ones((len(x), K)), covariance_type="full"),
    "log_likelihood": lambda x: jg.log_likelihood(start, x),
    "bic": lambda x: jg.bic(start, x),
    "select": lambda x: jg.select(KEY, x, K, "diag"),
    "fit_batch": lambda x: jg.fit_batch(KEY, x[None], K),
    "fit_gradient": lambda x: jg.fit_gradient(start, x),
    "standard_errors": lambda x: jg.standard_errors(start, x),
    "log_prob of many": start.log_prob,
}

gap, text = recipe()
report = {
    "in shard_map": {name: largest_difference(f, own) for name, (own, f) in IN_SHARD_MAP.items()},
    "recipe": gap,
    "recipe gathers": "all-gather" in text,
    "recipe sums": "all-reduce" in text,
    "refused": {
        f"{name}, {kind}": refusal(function, jax.device_put(x, NamedSharding(mesh, ROWS)))
        for name, function in OF_SPLIT_ROWS.items()
        for kind, mesh in meshes.items()
    },
    "refused in jit": refusal(
        jax.jit(lambda x: em(x).mixture.means),
        jax.device_put(few, NamedSharding(meshes["explicit"], ROWS)),
    ),
}

split_points = jax.device_put(few, NamedSharding(auto, ROWS))
log_prob = jax.jit(start.log_prob)
report["points"] = float(jnp.max(jnp.abs(start.log_prob(split_points) - start.log_prob(few))))
report["labels"] = bool(jnp.all(start.predict(split_points) == start.predict(few)))
report["points gather"] = "all-gather" in log_prob.lower(split_points).compile().as_text()

everywhere = jax.device_put(few, NamedSharding(auto, NOWHERE))
report["replicated"] = float(jnp.max(jnp.abs(em(everywhere).mixture.means - em(few).mixture.means)))
models = few.reshape(8, 40, D)
options = {"init": "random", "max_iter": 3}
report["refused models"] = refusal(
    lambda x: jg.fit_batch(KEY, x, 2),
    jax.device_put(models, NamedSharding(meshes["explicit"], ROWS)),
)
of_models = jg.fit_batch(KEY, jax.device_put(models, NamedSharding(auto, ROWS)), 2, **options)
alone = jg.fit_batch(KEY, models, 2, **options)
report["models"] = float(
    np.max(np.abs(jax.device_get(of_models.mixture.means) - np.asarray(alone.mixture.means)))
)
print(json.dumps(report))
