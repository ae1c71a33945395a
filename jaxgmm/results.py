"""What a fit returns, and how it says whether it worked."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Self

import jax
import numpy as np
from jax import Array

from jaxgmm.mixture import GaussianMixture, pick


class Status(IntEnum):
    """How a fit ended. Where several hold: NON_FINITE, then DEGENERATE, then MAX_ITER."""

    CONVERGED = 0
    MAX_ITER = 1
    NON_FINITE = 2
    DEGENERATE = 3


ADVICE = {
    Status.MAX_ITER: (
        "stopped after {iterations} with an estimated {gain:.2g} of log-likelihood per "
        "sample still to gain; raise max_iter (result.mixture can be the start), or accept a "
        "larger tol"
    ),
    Status.NON_FINITE: (
        "met NaN or infinity after {iterations}, and its mixture, the last that was finite, means "
        "nothing; check data and weights for NaN and infinity, then raise reg_covar"
    ),
    Status.DEGENERATE: (
        "ended with degenerate components {components}: empty, held up by the regularization "
        "alone, or twins of one another; use fewer components, a simpler covariance_type, another "
        "start (n_init, key), or raise reg_covar; constant or duplicated features degenerate "
        "every component"
    ),
}


class FitError(RuntimeError):
    """A fit that did not converge, raised by `FitResult.check`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class FitResult:
    """A fitted mixture and the truth about the fit. All leaves are arrays; a batch leads with B.

    Attributes:
        mixture: the fitted `GaussianMixture`.
        log_likelihood: () of that mixture, weighted total over samples, in nats.
        objective: () log-likelihood plus the regularization's term: what EM climbs, and what
            restarts are compared by.
        n_iter: () int, steps done: of EM, of Newton's method, or updates of an optimizer.
        status: () int, a `Status`.
        degenerate: (K,) bool, true for components that are empty, that owe more than half of
            their covariance in some direction to regularization or rounding, or that are twins.
        remaining_gain: () extrapolated gain of the objective still to come, per unit of weight.
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

    def __getitem__(self, index: int) -> Self:
        """One fit of a batch."""
        return pick(self, self.status.shape, index)

    def check(self) -> Self:
        """This result, if it converged.

        Raises:
            FitError: it did not; the message says what happened and what to try next.
        """
        statuses = np.atleast_1d(np.asarray(self.status))
        failed = np.flatnonzero(statuses.ravel() != Status.CONVERGED)
        if failed.size == 0:
            return self
        first = failed[0]
        status = Status(int(statuses.ravel()[first]))
        n_components = self.degenerate.shape[-1]
        n_iter = int(np.ravel(self.n_iter)[first])
        components = np.flatnonzero(np.reshape(self.degenerate, (-1, n_components))[first])
        message = ADVICE[status].format(
            iterations="1 iteration" if n_iter == 1 else f"{n_iter} iterations",
            gain=np.ravel(self.remaining_gain)[first],
            components=components.tolist(),
        )
        who = (
            "the fit"
            if self.status.ndim == 0
            else f"{failed.size} of {statuses.size} fits failed: fit {first}"
        )
        raise FitError(f"{status.name}: {who} {message}")
