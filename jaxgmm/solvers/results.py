"""Results of fits, and how they say whether they worked."""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.arrays.host import is_concrete
from jaxgmm.arrays.validation import check_known
from jaxgmm.covariances.storage import is_diagonal, is_isotropic
from jaxgmm.mixtures.mixture import GaussianMixture, pick, sizes_in_words
from jaxgmm.solvers.convergence import CONFIRMATIONS


class Status(IntEnum):
    """The status of a fit. If several hold: NON_FINITE, then DEGENERATE, then MAX_ITER."""

    CONVERGED = 0
    MAX_ITER = 1
    NON_FINITE = 2
    DEGENERATE = 3

    def __str__(self) -> str:
        return self.name


FEWER = (
    "use fewer components, a simpler covariance_type, another start (n_init, key), or raise "
    "reg_covar"
)
ADVICE = {
    Status.MAX_ITER: (
        "stopped after {iterations}, {gain}; raise max_iter (result.mixture can be the start)"
    ),
    Status.NON_FINITE: (
        "met NaN or infinity after {iterations}, and its mixture, the last that was finite, means "
        "nothing; check data, weights and log_prior for NaN and infinity, then raise reg_covar"
    ),
    Status.DEGENERATE: (
        "ended with degenerate components {components}: empty, held up by the regularization "
        "alone, or twins of one another; {advice}"
    ),
}
# In every component: differences in standard deviations of what is the same, and in correlations
# of what is a multiple.
SAME, MULTIPLE = 1e-3, 1e-4


class FitError(RuntimeError):
    """A fit that did not converge, raised by `FitResult.check`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """A fitted mixture and the truth about the fit. All leaves are arrays; a batch leads with B.

    Attributes:
        mixture: the fitted `GaussianMixture`.
        log_likelihood: () of that mixture, weighted total over samples, in nats.
        objective: () log-likelihood plus the regularization's term: what EM climbs, and what
            restarts are compared by.
        n_iter: () int, steps done from the last start: of EM, of Newton's method, or updates of an
            optimizer.
        status: () int, a `Status`.
        degenerate: (K,) bool, true for components that are empty, that owe more than half of
            their covariance in some direction to regularization or rounding, or that are twins.
        remaining_gain: () extrapolated gain of the objective still to come, per unit of weight;
            infinite where that can't be told. A fit has converged when it was below `tol` five
            times in a row, so that it can be below with the status MAX_ITER.
        history: (max_iter,) objective after each step, padded with the last value; None where it
            was not asked for.
    """

    mixture: GaussianMixture
    log_likelihood: Array
    objective: Array
    n_iter: Array
    status: Array
    degenerate: Array
    remaining_gain: Array
    history: Array | None

    @property
    def converged(self) -> Array:
        """() bool: the status is `Status.CONVERGED`."""
        return self.status == Status.CONVERGED

    def __repr__(self) -> str:
        """The status in words, or those of a batch with their numbers, and what was fitted."""
        status, what = self.status, sizes_in_words(self.mixture)
        is_status = isinstance(status, (jax.Array, np.ndarray, np.generic))
        if what is None or not is_status or not jnp.issubdtype(status.dtype, jnp.integer):
            return f"FitResult(status={status!r}, mixture={self.mixture!r})"
        if not is_concrete(status, self.n_iter, self.log_likelihood):
            how = f"traced, status {status.shape}"
        elif status.ndim:
            how = f"{status.size} fits: {_counted(np.ravel(status))}"
        else:
            log_likelihood = f"log-likelihood {float(self.log_likelihood):.7g}"
            after = "1 iteration" if self.n_iter == 1 else f"{self.n_iter} iterations"
            how = f"{Status(int(status)).name} after {after}, {log_likelihood}"
        return f"FitResult({how}, {what})"

    def __getitem__(self, index: int) -> Self:
        """One fit of a batch."""
        return pick(self, self.status.shape, index)

    def check(self) -> Self:
        """This result, if it converged. To be called outside of transformations.

        Raises:
            FitError: it did not; the message says what happened and what to try next, in a batch
                for the first fit of each kind of failure.
            TypeError: the result is being traced.
        """
        check_known("check", self)
        statuses = np.atleast_1d(np.asarray(self.status)).ravel()
        kinds = [status for status in np.unique(statuses) if status != Status.CONVERGED]
        if not kinds:
            return self
        if self.status.ndim == 0:
            raise FitError(f"{Status(kinds[0]).name}: the fit {self._failure(0)}")
        failed = statuses[statuses != Status.CONVERGED]
        firsts = [int(np.flatnonzero(statuses == kind)[0]) for kind in kinds]
        parts = [f"fit {first} {self._failure(first)}" for first in firsts]
        count = f"{failed.size} of {statuses.size} fits failed"
        raise FitError(f"{_counted(failed)}: {count}: {'; '.join(parts)}")

    def _failure(self, number: int) -> str:
        """The failure of one of the fits, in the order of all axes, and what to try next."""
        n_axes = self.status.ndim
        one = jax.tree.map(
            lambda leaf: np.reshape(np.asarray(leaf), (-1, *leaf.shape[n_axes:]))[number], self
        )
        gain = "too early to estimate what is still to gain"
        if np.isfinite(one.remaining_gain):
            gain = (
                f"with an estimated {one.remaining_gain:.2g} of log-likelihood per sample still to "
                f"gain, and {CONFIRMATIONS} such estimates in a row have to be below tol; if this "
                "one isn't, a larger tol would do"
            )
        every = bool(np.all(one.degenerate))
        return ADVICE[Status(int(one.status))].format(
            iterations="1 iteration" if one.n_iter == 1 else f"{one.n_iter} iterations",
            gain=gain,
            components=np.flatnonzero(one.degenerate).tolist(),
            advice=_about_features(one.mixture) if every else FEWER,
        )


def _counted(statuses: np.ndarray) -> str:
    """Statuses (M,) by name, with their numbers."""
    kinds, counts = np.unique(statuses, return_counts=True)
    names = (Status(int(kind)).name for kind in kinds)
    return ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))


def _about_features(mixture: GaussianMixture) -> str:
    """Advice where every component is degenerate, as it is if a feature tells nothing new."""
    found = []
    covariance = jax.tree.map(lambda leaf: leaf.astype(float), mixture.covariance)
    if mixture.n_components > 1 and not is_isotropic(covariance):
        scale = jax.tree.leaves(covariance)[0]
        deviations = np.sqrt(np.sum(scale**2, axis=-1)) if scale.ndim == 3 else scale
        apart = np.ptp(mixture.means, axis=0) <= SAME * deviations.min(axis=0)
        constant = apart & (np.ptp(deviations, axis=0) <= SAME * deviations.min(axis=0))
        found += [f"feature {d} is the same in all of them" for d in np.flatnonzero(constant)]
        if not is_diagonal(covariance):
            rows = scale / deviations[:, :, None]
            correlations = np.abs(rows @ np.swapaxes(rows, 1, 2)).min(axis=0)
            pairs = np.argwhere(np.triu(correlations > 1 - MULTIPLE, 1))
            found += [f"features {i} and {j} are multiples of one another" for i, j in pairs]
    hint = f": {', '.join(found)}" if found else ""
    return (
        "where that is every component, a feature may be constant, or a linear combination of "
        f"others, and should be left out{hint}; or {FEWER}"
    )


def in_unit_of_weights(result: FitResult, unit: Array) -> FitResult:
    """A fit to weights of which so many are one, as one to the weights themselves.

    Programs compute with weights of which the largest is between 1 and 4, so that sums of them
    neither overflow nor vanish, and give what is linear in weights in the unit that these came in.
    It is a power of two, by which nothing is rounded, and a constant to differentiation: whatever
    it is, the product of both is the same.

    Args:
        result: one, or several that lead with the same axes.
        unit: () or of these axes, see `in_own_unit`.
    """
    unit = jnp.broadcast_to(unit, result.objective.shape)
    history = result.history
    return replace(
        result,
        log_likelihood=unit * result.log_likelihood,
        objective=unit * result.objective,
        history=None if history is None else unit[..., None] * history,
    )


def with_places(result: FitResult, max_iter: int) -> FitResult:
    """A result with a history of so many places, of as many or more."""
    history = result.history
    if history is None or history.shape[-1] == max_iter:
        return result
    return replace(result, history=history[..., :max_iter])
