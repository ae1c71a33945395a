"""The data of many fits, which they may share, and how many are fitted at a time."""

from typing import Any, NamedTuple

import jax
from jax import Array

from jaxgmm.arrays.budgets import budget
from jaxgmm.execution.tasks import slots_for, take
from jaxgmm.steps.features import PRODUCTS
from jaxgmm.steps.problem import Problem


class Problems(NamedTuple):
    """The data of M models, which they may share, and each of which is fitted R times.

    Attributes:
        problem: with a leading axis M on all leaves; without it on x or on weights where these are
            the same for all models, or on all leaves where everything is.
        n_restarts: R. Fit t is one of model t // R.
    """

    problem: Problem
    n_restarts: int

    @property
    def shared(self) -> bool:
        """Whether all fits are to the same data."""
        return self.problem.regularization.ndim == 1

    @property
    def axes(self) -> Any:
        """For `vmap`: 0 or None for each leaf of a problem."""
        of_others = None if self.shared else 0
        axes = jax.tree.map(lambda _: of_others, self.problem)
        of_x = None if self.problem.rows.x.ndim == 2 else 0
        of_weights = None if self.problem.rows.weights.ndim == 1 else 0
        log_prior = self.problem.rows.log_prior
        of_prior = None if log_prior is None or log_prior.ndim == 2 else 0
        rows = axes.rows._replace(x=of_x, weights=of_weights, log_prior=of_prior)
        return axes._replace(rows=rows)

    def of(self, task: Array | int) -> Problem:
        """The problem of a fit, or those of several: (), or (S,)."""
        return take(self.problem, self.axes, task // self.n_restarts)

    def n_slots(self, n_tasks: int, n_components: int, refilled: bool = False) -> int:
        """The number of fits at a time, in slots that are refilled or in blocks."""
        n_rows, n_features = self.problem.rows.x.shape[-2:]
        if self.problem.extent is None:
            return slots_for(n_tasks, n_rows * n_components * n_features, refilled)
        in_pass = n_rows * (PRODUCTS.count(n_features) + n_components)
        return int(min(budget().side_by_side, slots_for(n_tasks, in_pass, refilled)))
