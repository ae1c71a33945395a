"""The record of passes: in which form each was made, for whoever asks where the time goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgmm.mixtures.mixture import GaussianMixture
from jaxgmm.steps.forms import Forms


class Pass(NamedTuple):
    """An E-step: how many components it had, and how many of them had what apart from products.

    Attributes:
        n_components: K.
        n_logits_apart: whose logits matrix products would have lost, and were made by differences
            of the rows that may have a share in them.
        n_moments_apart: likewise whose moments.
        n_apart: whose logits or moments.
    """

    n_components: int
    n_logits_apart: int
    n_moments_apart: int
    n_apart: int


@dataclass
class PassRecord:
    """The E-steps that were made while it was open, in no order.

    One for each iteration of each fit, on each device that its rows are spread over; in a batch
    also those of members that have ended already and only wait for others. Log-likelihoods alone
    aren't E-steps.

    Attributes:
        passes: each of them. One that is too short for products to be worth compiling has all its
            components apart.
    """

    passes: list[Pass] = field(default_factory=list)

    @property
    def share_of_passes(self) -> float:
        """Share of the passes that products made alone; NaN without any pass."""
        alone = [one.n_apart == 0 for one in self.passes]
        return float(np.mean(alone)) if alone else np.nan

    @property
    def share_of_components(self) -> float:
        """Share of the components, over all passes, that products made alone; NaN without any."""
        total = sum(one.n_components for one in self.passes)
        return 1 - sum(one.n_apart for one in self.passes) / total if total else np.nan


_open_record: ContextVar[PassRecord | None] = ContextVar("record", default=None)


@contextmanager
def record_passes() -> Iterator[PassRecord]:
    """A context in which it is written down in which form each pass over data is made.

    For finding out why an iteration takes as long as it does: all programs are compiled anew, with
    calls of the host in them, and once more afterwards, without. Derivatives, Newton steps and what
    `fit_gradient` does are E-steps, too.

    Yields:
        A `PassRecord`, complete when the context is left.

    Example:
        >>> import jaxgmm as jg
        >>> x = [[0.0], [1.0], [2.0], [9.0], [10.0], [11.0]]
        >>> start = jg.GaussianMixture.create([0.5, 0.5], [[0.0], [9.0]], [[1.0], [1.0]], "diag")
        >>> with jg.record_passes() as record:
        ...     result = jg.em(start, x)
        >>> len(record.passes) == int(result.n_iter)
        True
    """
    record = PassRecord()
    jax.clear_caches()
    token = _open_record.set(record)
    try:
        yield record
        jax.effects_barrier()
    finally:
        _open_record.reset(token)
        jax.clear_caches()


def write_down(mixture: GaussianMixture, forms: Forms | None) -> None:
    """A pass, to the record that is open, if any.

    Args:
        mixture: K components.
        forms: of the pass; None where it is made by differences.
    """
    record = _open_record.get()
    if record is None:
        return

    def add(log_weights: Array, *numbers: Array) -> None:
        record.passes.append(Pass(log_weights.size, *(int(number) for number in numbers)))

    numbers: list[Any] = [mixture.n_components] * 3
    if forms is not None:
        masks = (forms.logits_apart, forms.moments_apart, forms.apart)
        numbers = [jnp.sum(mask) for mask in masks]
    # In a batch once for each member, as its log weights are.
    jax.debug.callback(add, mixture.log_weights, *numbers)
