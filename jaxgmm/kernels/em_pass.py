"""The E-step of long data in one launch: what rows are multiplied by never leaves the chip.

Each program goes through its own tiles of rows. Of a tile it makes the logits of all components, a
block of features after the other, then responsibilities, and adds the moments of its own features
to sums that stay in registers. Features are the products of two blocks of coordinates, made by
broadcasting. Where all sums are too many for the registers of a program, several of them go through
the same rows, each for another group of features, and each makes all logits for itself: half of the
arithmetic again for each group, but neither features nor responsibilities are ever written.

Products are of float32 numbers split in two of TF32 each, and nearly as accurate as those of
float32's own, which Triton makes without tensor cores.
"""

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl

from jaxgmm.kernels.launching import TRITON, launch, power_of_two

# Rows of a tile; the shortest side of what tensor cores multiply; coordinates in a block.
TILE, SHORTEST, BLOCK = 64, 16, 8
# Sums that a program keeps in the registers of so many warps, and programs for all of a GPU's
# processors: a few large ones, or more of small ones.
FEW_SUMS, FEW_WARPS, PROGRAMS_OF_FEW = 2**13, 4, 4 * 132
MOST_SUMS, MOST_WARPS, PROGRAMS_OF_MOST = 3 * 2**13, 8, 132
# With more groups of features the logits, which each of them makes again, would take longer than
# writing features to memory does; by an estimate, like all sizes here.
MOST_GROUPS = 4


class Plan(NamedTuple):
    """The sizes of a pass.

    Attributes:
        n_features: D.
        n_components: K.
        width: D, and
        columns: K, as powers of two.
        block: coordinates of a block, of which two make the products of a block of features.
        pairs: (P, 2) the numbers of such blocks, for all groups; empty without products.
        squares: whether there are squares of the coordinates instead.
        n_groups: of blocks of features.
        n_warps: of a program.
        n_programs: in all, at most.
    """

    n_features: int
    n_components: int
    width: int
    columns: int
    block: int
    pairs: tuple[tuple[int, int], ...]
    squares: bool
    n_groups: int
    n_warps: int
    n_programs: int

    @property
    def in_group(self) -> int:
        """Blocks of products in a group."""
        return len(self.pairs) // self.n_groups

    @property
    def n_sums(self) -> int:
        """Rows of numbers (K,) that a program sums: products or squares, coordinates, and the
        count and the log-likelihood, alone in their rows."""
        return self.in_group * self.block**2 + (1 + self.squares) * self.width + 2


def plan_of(n_features: int, n_components: int, second_order: int) -> Plan | None:
    """The sizes of a pass, or None where it is better made otherwise.

    Args:
        n_features: D.
        n_components: K.
        second_order: 2 with products of all pairs of coordinates, 1 with their squares only, 0
            with the coordinates alone.
    """
    width = max(SHORTEST, power_of_two(n_features))
    columns = max(SHORTEST, power_of_two(n_components))
    block = min(BLOCK, max(4, power_of_two(n_features)))
    n_blocks = -(-n_features // block) if second_order == 2 else 0
    pairs = [(i, j) for i in range(n_blocks) for j in range(i, n_blocks)]
    always = (TILE + width * (2 if second_order == 1 else 1)) * columns
    of_pair = block**2 * columns
    left = MOST_SUMS - always
    if left < (of_pair if pairs else 0):
        return None
    n_groups = max(1, -(-len(pairs) // max(1, left // of_pair)))
    if n_groups > MOST_GROUPS:
        return None
    in_group = -(-len(pairs) // n_groups)
    # What isn't a block has no coordinates.
    pairs += [(n_blocks, n_blocks)] * (in_group * n_groups - len(pairs))
    few = always + in_group * of_pair <= FEW_SUMS
    return Plan(
        n_features,
        n_components,
        width,
        columns,
        block,
        tuple(pairs),
        second_order == 1,
        n_groups,
        FEW_WARPS if few else MOST_WARPS,
        PROGRAMS_OF_FEW if few else PROGRAMS_OF_MOST,
    )


class Logits(NamedTuple):
    """Logits -½ zᵀ P z + bᵀ z + c of K components.

    Attributes:
        precisions: P (K, D, D), or the diagonals (K, D) where all else is zero, or not wanted.
        slopes: b (K, D).
        constants: c (K,).
    """

    precisions: Array
    slopes: Array
    constants: Array


def fused_moments(
    plan: Plan,
    how: str,
    x: Array,
    weights: Array,
    frame: tuple[Array, Array, Array],
    logits: Logits,
) -> tuple[Array, ...]:
    """Moments of rows z = (x - center) / scale - origin under the responsibilities r of logits.

    Args:
        plan: the sizes.
        how: see `launch`.
        x: (N, D) float32, with fewer than 2³¹ numbers.
        weights: (N,); rows of weight 0 may hold anything.
        frame: center (D,), scale (D,) and origin (D,).
        logits: of K components, whose precisions are as the plan says.

    Returns:
        Σ w log Σ_k exp(logit_k): (), counts Σ r: (K,), Σ r z: (K, D), and Σ r z zᵀ (K, D, D) with
        products, Σ r z² (K, D) with squares, or no more.
    """
    n_rows = x.shape[0]
    n_tiles = -(-n_rows // TILE)
    n_splits = max(1, min(n_tiles, plan.n_programs // plan.n_groups))
    quadratic = _in_columns(plan, _quadratic(plan, logits.precisions))
    slopes = _in_columns(plan, jnp.pad(logits.slopes, [(0, 0), (0, plan.width - plan.n_features)]))
    # An infinity would become NaN where a number is split in two.
    finite = jnp.maximum(logits.constants, float(jnp.finfo(jnp.float32).min) / 4)
    constants = jnp.pad(finite, (0, plan.columns - plan.n_components))
    sums = launch(
        partial(_em_pass, plan, -(-n_tiles // n_splits), how),
        "em_pass",
        how,
        (n_splits, plan.n_groups),
        (n_splits, plan.n_groups, plan.n_sums, plan.columns),
        plan.n_warps,
        x,
        weights,
        jnp.stack(frame),
        _pairs(plan),
        quadratic,
        slopes,
        constants,
    )
    return _moments(plan, jnp.sum(sums, axis=0)[:, :, : plan.n_components])


def _in_columns(plan: Plan, rows: Array) -> Array:
    """(K, F) -> (F, columns)."""
    return jnp.pad(rows, [(0, plan.columns - plan.n_components), (0, 0)]).T


def _pairs(plan: Plan) -> Array:
    return jnp.asarray(np.array(plan.pairs or [(0, 0)], np.int32))


def _quadratic(plan: Plan, precisions: Array) -> Array:
    """Coefficients of products or squares: (K, F)."""
    k, d, block = plan.n_components, plan.n_features, plan.block
    if plan.squares:
        return jnp.pad(-precisions / 2, [(0, 0), (0, plan.width - d)])
    if not plan.pairs:
        return jnp.zeros((k, SHORTEST), jnp.float32)
    first, second = np.array(plan.pairs).T
    n_blocks = int(first.max()) + 1
    padded = jnp.pad(precisions, [(0, 0), *[(0, n_blocks * block - d)] * 2])
    blocks = padded.reshape(k, n_blocks, block, n_blocks, block).transpose(0, 1, 3, 2, 4)
    # Off the diagonal each product stands for two.
    half = np.where(first == second, 0.5, 1.0).astype(np.float32)
    return (blocks[:, first, second] * -jnp.asarray(half)[None, :, None, None]).reshape(k, -1)


def _moments(plan: Plan, sums: Array) -> tuple[Array, ...]:
    """From the sums of all programs: (groups, rows, K)."""
    n_products = plan.in_group * plan.block**2
    d = plan.n_features
    own, rest = sums[:, :n_products], sums[0, n_products:]
    count, log_likelihood = rest[-2], rest[-1, 0]
    first = rest[:d].T
    if plan.squares:
        return log_likelihood, count, first, rest[plan.width : plan.width + d].T
    if not plan.pairs:
        return log_likelihood, count, first
    number = {pair: i for i, pair in enumerate(plan.pairs)}
    coordinates = np.arange(d)
    i, j = np.minimum.outer(coordinates, coordinates), np.maximum.outer(coordinates, coordinates)
    (of_i, in_i), (of_j, in_j) = (divmod(at, plan.block) for at in (i, j))
    of_pair = np.vectorize(lambda a, b: number[a, b])(of_i, of_j)
    place = (of_pair * plan.block + in_i) * plan.block + in_j
    flat = own.reshape(-1, plan.n_components)
    return log_likelihood, count, first, jnp.moveaxis(flat[place], -1, 0)


def _em_pass(
    plan: Plan,
    tiles_of_program: int,
    how: str,
    x: Any,
    weights: Any,
    frame: Any,
    pairs: Any,
    quadratic: Any,
    slopes: Any,
    constants: Any,
    sums: Any,
) -> None:
    """The kernel, with references to what `fused_moments` passes."""
    from jax.experimental.pallas import triton

    n_rows, d = x.shape
    split, group = pl.program_id(0), pl.program_id(1)
    in_parts = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    precision = in_parts if how == TRITON else lax.Precision.HIGHEST
    dot = partial(jnp.dot, precision=precision, preferred_element_type=jnp.float32)
    components = lax.iota(jnp.int32, plan.columns)
    slope, constant = slopes[...], constants[...]

    def columns(rows: Array, present: Array, first: Array | int, width: int) -> Array:
        """Coordinates from the first on, of rows: (rows, width); 0 where there are none."""
        at = first + lax.iota(jnp.int32, width)
        exists = at < d
        at = jnp.minimum(at, d - 1)
        center, scale, origin = (
            triton.load(frame.at[i, at], mask=exists, other=float(i == 1)) for i in range(3)
        )
        mask = present[:, None] & exists[None]
        value = triton.load(x.at[rows[:, None], at[None]], mask=mask, other=0.0)
        return jnp.where(mask, (value - center[None]) / scale[None] - origin[None], 0)

    def products(rows: Array, present: Array, number: Array) -> Array:
        """A block of features: (rows, block²)."""
        first, second = (
            columns(rows, present, pairs[number, side] * plan.block, plan.block)
            for side in range(2)
        )
        return (first[:, :, None] * second[:, None, :]).reshape(TILE, plan.block**2)

    def add_tile(turn: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        log_likelihood, count, *totals = carry
        rows = (split * tiles_of_program + turn) * TILE + lax.iota(jnp.int32, TILE)
        inside = rows < n_rows
        rows = jnp.where(inside, rows, 0)
        weight = triton.load(weights.at[rows], mask=inside, other=0.0)
        present = inside & (weight != 0)
        z = columns(rows, present, 0, plan.width)
        logits = dot(z, slope) + constant[None]
        if plan.squares:
            logits += dot(z * z, quadratic[...])

        def add_block(number: Array, logits: Array) -> Array:
            block = pl.ds(number * plan.block**2, plan.block**2)
            return logits + dot(products(rows, present, number), quadratic[block, :])

        if plan.pairs:
            logits = lax.fori_loop(0, len(plan.pairs), add_block, logits)
        logits = jnp.where((components < plan.n_components)[None], logits, -jnp.inf)
        log_prob, responsibilities = _responsibilities(logits, weight, present)
        features = [z, z * z] if plan.squares else [z]
        features += [
            products(rows, present, group * plan.in_group + i) for i in range(plan.in_group)
        ]
        totals = [
            sum_so_far + dot(of_rows.T, responsibilities)
            for sum_so_far, of_rows in zip(totals, features, strict=True)
        ]
        return log_likelihood + log_prob, count + responsibilities, *totals

    widths = [plan.width] * (1 + plan.squares) + [plan.block**2] * plan.in_group
    zeros = [jnp.zeros((width, plan.columns), jnp.float32) for width in (TILE, *widths)]
    nothing = (jnp.zeros(TILE, jnp.float32), *zeros)
    log_likelihood, count, *totals = lax.fori_loop(0, tiles_of_program, add_tile, nothing)
    _write(plan, sums, (split, group), log_likelihood, count, totals)


def _responsibilities(logits: Array, weight: Array, present: Array) -> tuple[Array, Array]:
    """Weighted log densities (rows,), and responsibilities (rows, columns), of logits."""
    top = jnp.max(logits, axis=1)
    terms = jnp.exp(logits - top[:, None])
    total = jnp.sum(terms, axis=1)
    log_prob = jnp.where(present, weight * (jnp.log(total) + top), 0)
    return log_prob, terms * (weight / total)[:, None]


def _write(
    plan: Plan,
    sums: Any,
    program: tuple[Array, Array],
    log_likelihood: Array,
    count: Array,
    totals: list[Array],
) -> None:
    """A program's sums, as `_moments` reads them."""
    first_order = 1 + plan.squares
    start = 0
    # One index for each: Triton's backend takes no references to parts.
    for total in totals[first_order:] + totals[:first_order]:
        sums[*program, pl.ds(start, total.shape[0]), :] = total
        start += total.shape[0]
    sums[*program, start, :] = jnp.sum(count, axis=0)
    components = lax.iota(jnp.int32, plan.columns)
    sums[*program, start + 1, :] = jnp.where(components == 0, jnp.sum(log_likelihood), 0)
