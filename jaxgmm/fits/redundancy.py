"""Features that say nothing of their own: constant ones, copies, and sums of others.

Every component has a singular covariance because of them, whatever the mixture is like otherwise.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax import Array

from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.solvers.results import Status
from jaxgmm.solvers.settings import default_reg_covar

# Of the features that are compared with all earlier ones: their correlations take 32 MB.
MOST_CORRELATED = 2000
CHUNK_NUMBERS = 2**20
LISTED = 10


class Redundancy(NamedTuple):
    """Why a feature is redundant.

    Attributes:
        feature: its number.
        sources: numbers of the features that it follows from; none if it is constant.
        is_copy: whether it is equal to the one feature that it follows from.
    """

    feature: int
    sources: tuple[int, ...] = ()
    is_copy: bool = False


def redundant_features(
    x: np.ndarray, weights: np.ndarray | None = None, *, linear: bool = True
) -> list[Redundancy]:
    """Features that are constant, or linear functions of earlier ones, in ascending order.

    With N ≤ D rows, or no more different ones, every feature is a linear function of others; as
    with more than 2000 features, only exact copies count then.

    Args:
        x: (N, D) finite numbers of a dtype in which a fit computes, on the host.
        weights: (N,) sample weights; rows of weight 0 are left out.
        linear: whether linear functions count; only types with full covariances suffer from them.
    """
    if weights is not None:
        x, weights = x[weights > 0], weights[weights > 0]
    low, high = x.min(axis=0).astype(np.float64), x.max(axis=0).astype(np.float64)
    magnitude = np.maximum(np.abs(low), np.abs(high))
    with np.errstate(over="ignore"):
        spread = high - low
    # Numbers that were meant to be equal, and went through a few operations.
    is_constant = spread <= 8 * float(np.finfo(x.dtype).eps) * magnitude
    constant = [Redundancy(int(i)) for i in np.flatnonzero(is_constant)]
    # Not where numbers are so far apart that their difference is infinite.
    varying = np.flatnonzero(~is_constant & np.isfinite(spread))
    if not linear or varying.size < 2:
        return constant
    if varying.size < len(x) and varying.size <= MOST_CORRELATED:
        dependent = _dependent(x, weights, varying, spread[varying], magnitude[varying])
        if not dependent or _has_distinct_rows(x, varying):
            return sorted(constant + dependent)
    return sorted(constant + _copies(x, varying))


def described(
    found: Sequence[Redundancy], name_of: Callable[[int], str], *, most: int = LISTED
) -> str:
    """Why features are redundant, in words: "a is constant, b is a copy of c".

    Args:
        found: them.
        name_of: the name of a feature by its number.
        most: so many are listed, and as many sources of each.
    """

    def reason(redundancy: Redundancy) -> str:
        if not redundancy.sources:
            return "is constant"
        sources = ", ".join(map(name_of, redundancy.sources[:most]))
        sources += ", ..." * (len(redundancy.sources) > most)
        return f"is a copy of {sources}" if redundancy.is_copy else f"follows from {sources}"

    listed = [f"{name_of(one.feature)} {reason(one)}" for one in found[:most]]
    return ", ".join(listed) + (f", and {len(found) - most} more" if len(found) > most else "")


def warn_of_redundancy(table: np.ndarray, x: Array, weights: np.ndarray) -> None:
    """A warning if features, rather than components, make all fits of some types degenerate.

    Args:
        table: of a `Selection`.
        x: (N, D) data of the fits.
        weights: (N,) sample weights.
    """
    names = dict.fromkeys(table["covariance_type"].tolist())
    unhealthy = [
        name
        for name in names
        if not STRUCTURES[name].isotropic
        and np.all(table["status"][table["covariance_type"] == name] == Status.DEGENERATE)
    ]
    if unhealthy:
        linear = any(STRUCTURES[name].full_second_moment for name in unhealthy)
        found = redundant_features(np.asarray(x), weights, linear=linear)
        if found:
            warnings.warn(
                f"every fit of type {', '.join(unhealthy)} is degenerate because features of x are "
                f"redundant: {described(found, 'feature {}'.format)}; leave them out",
                stacklevel=3,
            )


def _copies(x: np.ndarray, features: np.ndarray) -> list[Redundancy]:
    """Features that are equal to an earlier one in every row."""
    first: dict[bytes, int] = {}
    found = []
    for i in features.tolist():
        earlier = first.setdefault(hashlib.sha256(x[:, i].tobytes()).digest(), i)
        if earlier != i:
            found.append(Redundancy(i, (earlier,), True))
    return found


def _has_distinct_rows(x: np.ndarray, features: np.ndarray) -> bool:
    """Whether more rows differ than there are features; usually some of the first ones do."""
    for n_rows in (10 * features.size, len(x)):
        if len(np.unique(x[:n_rows, features], axis=0)) > features.size:
            return True
    return False


def _dependent(
    x: np.ndarray,
    weights: np.ndarray | None,
    features: np.ndarray,
    spread: np.ndarray,
    magnitude: np.ndarray,
) -> list[Redundancy]:
    """Features that are linear functions of earlier ones.

    A Cholesky decomposition of the correlations goes from feature to feature. Its pivot is the
    part r² of a feature's variance that earlier ones leave over, of which b are the coefficients.
    Regularization λ and rounding add (λ + D·eps)(1 + |b|²) to the variance in this direction: less
    than that is what makes a component degenerate. And r may be as large as the rounding errors of
    the numbers themselves, eps/2 of each.
    """
    n_features, eps = features.size, float(np.finfo(x.dtype).eps)
    by_covariance = default_reg_covar(x.dtype) + n_features * eps

    def judged(step: int) -> tuple[np.ndarray, np.ndarray, float]:
        """Correlations in one row of several, the rounding of the data, and a clear pivot."""
        some = None if weights is None else weights[::step]
        correlation, deviation = _correlations(x[::step], some, features, spread)
        by_rounding = eps / 2 * magnitude / deviation
        clear = max(1e-6, 100 * by_covariance, min(1, 200 * float(np.max(by_rounding))) ** 2)
        return correlation, by_rounding, clear

    # What is no linear function in some of the rows is none in all.
    for step in sorted({max(1, len(x) // (20 * n_features)), 1}, reverse=True):
        correlation, by_rounding, clear = judged(step)
        if _is_clear(correlation, clear):
            return []
    kept: list[int] = []
    found = []
    factor = np.zeros((n_features, n_features))
    for j in range(n_features):
        row = factor[j, : len(kept)]
        column = correlation[j:, j] - factor[j:, : len(kept)] @ row
        if column[0] < clear:
            b = _solve_transposed(factor[kept, : len(kept)], row)
            tolerance = by_covariance * (1 + b @ b)
            tolerance += (by_rounding[j] + np.abs(b) @ by_rounding[kept]) ** 2
            if column[0] <= tolerance:
                strong = np.abs(b) > eps**0.5 * np.max(np.abs(b), initial=0)
                sources = tuple(int(i) for i in features[kept][strong])
                same = len(sources) == 1 and np.array_equal(x[:, features[j]], x[:, sources[0]])
                found.append(Redundancy(int(features[j]), sources, same))
                continue
        factor[j:, len(kept)] = column / np.sqrt(column[0])
        kept.append(j)
    return found


def _is_clear(correlation: np.ndarray, clear: float) -> bool:
    """Whether all pivots are larger than that."""
    try:
        return bool(np.min(np.diagonal(np.linalg.cholesky(correlation)) ** 2) > clear)
    except np.linalg.LinAlgError:
        return False


def _correlations(
    x: np.ndarray, weights: np.ndarray | None, features: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations (d, d) of some features in float64, and their standard deviations (d,)."""
    shares = np.ones(len(x)) if weights is None else weights.astype(np.float64)
    shares /= shares.sum()
    origin = x[0, features].astype(np.float64)
    n_rows = max(1, CHUNK_NUMBERS // features.size)

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(x), n_rows):
            rows = slice(start, start + n_rows)
            yield shares[rows], (x[rows][:, features] - origin) / spread

    mean = np.sum([share @ z for share, z in chunks()], axis=0)
    covariance = np.zeros((features.size, features.size))
    for share, z in chunks():
        covariance += ((z - mean) * share[:, None]).T @ (z - mean)
    deviation = np.sqrt(np.maximum(np.diagonal(covariance), np.finfo(np.float64).tiny))
    return covariance / np.outer(deviation, deviation), deviation * spread


def _solve_transposed(factor: np.ndarray, right_side: np.ndarray) -> np.ndarray:
    """b of Lᵀ b = l, for lower triangular L (m, m)."""
    b = np.zeros_like(right_side)
    for i in reversed(range(b.size)):
        b[i] = (right_side[i] - factor[i + 1 :, i] @ b[i + 1 :]) / factor[i, i]
    return b
