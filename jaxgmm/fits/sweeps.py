"""The fits of a sweep over components and covariance types, by few programs."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.arrays.budgets import budget
from jaxgmm.arrays.padding import power_of_two
from jaxgmm.covariances.structures import structure_named
from jaxgmm.covariances.traced import AnyStructure, TracedStructure
from jaxgmm.execution.blocks import fit_blocks
from jaxgmm.execution.programs import Axes, Program
from jaxgmm.execution.tasks import at, in_blocks, slots_for
from jaxgmm.fits.criteria import log_map_responsibility
from jaxgmm.fits.entry import fit_all, own_axes
from jaxgmm.solvers.results import FitResult
from jaxgmm.solvers.settings import Limits, Settings
from jaxgmm.steps.expectation import total_log_prob
from jaxgmm.steps.products import products_in_pass
from jaxgmm.steps.rows import as_they_are


class Candidate(NamedTuple):
    """One row of a sweep."""

    n_components: int
    covariance_type: str


class Group(NamedTuple):
    """Rows of a sweep that one program fits.

    Attributes:
        numbers: of the rows.
        padded_size: number of components that the program has.
        covariance_type: of all rows, or None where each has its own.
    """

    numbers: list[int]
    padded_size: int
    covariance_type: str | None


def groups_of(candidates: list[Candidate], shape: tuple[int, ...]) -> list[Group]:
    """The rows of a sweep over data (N, D), in groups.

    Small data are fitted with the largest number of components of the sweep, of which some have no
    weight, and large data with the next power of two.
    """
    n_rows, n_features = shape[-2:]
    largest = max(candidate.n_components for candidate in candidates)

    def padded(numbers: list[int]) -> list[Group]:
        """Rows of the same type: all together, or each by itself."""
        name = candidates[numbers[0]].covariance_type
        if n_rows * largest * n_features <= budget().padded_pass:
            return [Group(numbers, largest, name)]
        counts = [candidates[number].n_components for number in numbers]
        sizes = [min(largest, power_of_two(count)) for count in counts]
        return [Group([number], size, name) for number, size in zip(numbers, sizes, strict=True)]

    numbers_of: dict[str, list[int]] = {}
    for number, candidate in enumerate(candidates):
        numbers_of.setdefault(candidate.covariance_type, []).append(number)
    as_data = [name for name in numbers_of if not structure_named(name).coupled]
    groups = []
    if len(as_data) > 1 and n_rows * largest * n_features**2 <= budget().common_pass:
        together = sorted(number for name in as_data for number in numbers_of.pop(name))
        groups.append(Group(together, largest, None))
    groups += [group for numbers in numbers_of.values() for group in padded(numbers)]
    return sorted(groups, key=lambda group: group.numbers)


class Fits(NamedTuple):
    """Fits of a group, and what they are judged by; leaves have a leading axis.

    Attributes:
        results: of the fits.
        log_map_responsibility: see `criteria.log_map_responsibility`.
        held_out: log-likelihood per unit of weight of the rows that were held out, NaN without any.
    """

    results: FitResult
    log_map_responsibility: Array
    held_out: Array


def fit_group(
    keys: Array,
    x: Array,
    weights: Array,
    kept: np.ndarray | None,
    models: list[Candidate],
    group: Group,
    numbers: tuple[Limits, Array],
    init: str,
    n_init: int,
) -> Fits:
    """M models of one group.

    Args:
        keys: (M,) of each model's candidate.
        x: (N, D), or (M, N, D).
        weights: (N,), or (M, N).
        kept: (M, N) bool, rows that models see; None for all.
        models: the candidates that they are.
        group: of these.
        numbers: where fits end, and reg_covar.
        init: name of a start.
        n_init: number of restarts.

    Returns:
        With NumPy's arrays as leaves.
    """
    counts = np.array([model.n_components for model in models])
    own_type = group.covariance_type
    fits = fit_blocks(
        _fit_each,
        (
            keys,
            x,
            weights,
            kept,
            np.arange(group.padded_size) < counts[:, None],
            *numbers,
            TracedStructure.of([model.covariance_type for model in models])
            if own_type is None
            else structure_named(own_type),
        ),
        (True, x.ndim == 3, weights.ndim == 2, True, True, False, False, True),
        len(models),
        len(models) * x.shape[-2] * x.shape[-1],
        init=init,
        n_init=n_init,
        settings=Settings(0, "implicit", history=False, accelerate=None),
    )
    return jax.tree.map(np.asarray, fits)


def _axes_of_sweep(
    keys: Array, x: Array, weights: Array, kept: Array | None, *_: Any
) -> dict[int, Axes]:
    """The axes of rows and models that arguments of `_fit_each` have."""
    of_models = dict.fromkeys((0, 4, 7), Axes(models=0))
    axes = {1: own_axes(x, 2), 2: own_axes(weights, 1), **of_models}
    return axes if kept is None else {**axes, 3: Axes(rows=1, models=0)}


@partial(
    Program,
    static_argnames=("init", "n_init", "settings"),
    pass_size=lambda keys, x, weights, kept, active, *_, n_init, **__: products_in_pass(
        x, active.size * n_init
    ),
    layout=_axes_of_sweep,
)
def _fit_each(
    keys: Array,
    x: Array,
    weights: Array,
    kept: Array | None,
    active: Array,
    limits: Limits,
    reg_covar: Array,
    structure: AnyStructure,
    n_wanted: Array | None,
    init: str,
    n_init: int,
    settings: Settings,
) -> Fits:
    n_models = active.shape[0]
    active = jnp.asarray(active)
    seen = weights
    if kept is not None:
        seen = jnp.where(jnp.asarray(kept), jnp.broadcast_to(weights, kept.shape), 0)
    n_wanted = n_models if n_wanted is None else n_wanted
    data = (keys, x, seen, None, None, active, limits, reg_covar, structure, n_wanted)
    results = fit_all(*data, init, n_init, settings)

    def judged(model: Array) -> tuple[Array, Array]:
        mixture = at(results.mixture, model)
        own_x = x[model] if x.ndim == 3 else x
        all_rows = weights[model] if weights.ndim == 2 else weights
        certainty = log_map_responsibility(mixture, as_they_are(own_x, all_rows))
        if kept is None:
            return certainty, jnp.full_like(certainty, jnp.nan)
        left = all_rows - seen[model]
        held_out = as_they_are(own_x, left)
        total = total_log_prob(held_out, mixture, mixture.log_weights)[0]
        return certainty, total / held_out.total_weight()

    n_rows, n_features = x.shape[-2:]
    size = slots_for(n_models, n_rows * n_features * active.shape[1])
    return Fits(results, *in_blocks(judged, n_models, size))


def kept_in_folds(key: Array, weights: np.ndarray, n_folds: int) -> np.ndarray:
    """(1 + n_folds, N) bool: all rows, and those that each of several random folds leaves over.

    Rows without weight (N,) are in no fold.
    """
    random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    order = random.permutation(weights.size)
    present = order[weights[order] > 0]
    fold = np.full(weights.size, n_folds)
    fold[present] = np.arange(present.size) % max(1, n_folds)
    return np.arange(-1, n_folds)[:, None] != fold[None]
