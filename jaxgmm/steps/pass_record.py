"""The record of passes: in which form each was made, for whoever asks where the time goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclass
class PassRecord:
    """E-steps while it was open, in no order: one for each iteration of each fit.

    Attributes:
        n_components: K of each.
        n_logits_apart: of each, how many components' logits matrix products would have lost, and
            were made by differences; all, where a pass is too short for products to be worth it.
        n_moments_apart: of each, how many of these had their moments made by differences, too.
    """

    n_components: list[int] = field(default_factory=list)
    n_logits_apart: list[int] = field(default_factory=list)
    n_moments_apart: list[int] = field(default_factory=list)

    def add(self, n_components: Array, n_logits: Array, n_moments: Array) -> None:
        """One more."""
        self.n_components.append(int(n_components))
        self.n_logits_apart.append(int(n_logits))
        self.n_moments_apart.append(int(n_moments))

    @property
    def n_passes(self) -> int:
        """How many there were."""
        return len(self.n_components)

    @property
    def share_of_passes(self) -> float:
        """Share of the passes that products made alone; NaN without any pass."""
        return float(np.mean(np.array(self.n_logits_apart) == 0)) if self.n_passes else np.nan

    @property
    def share_of_components(self) -> float:
        """Share of the components, over all passes, that products made alone; NaN without any."""
        kept = sum(self.n_components) - sum(self.n_logits_apart)
        return kept / sum(self.n_components) if self.n_passes else np.nan


_open_record: ContextVar[PassRecord | None] = ContextVar("record", default=None)


@contextmanager
def record_passes() -> Iterator[PassRecord]:
    """A context in which it is written down in which form each pass over data is made.

    For finding out why an iteration takes as long as it does: programs are compiled anew on the way
    in, with calls of the host in them, and on the way out, without. Derivatives, Newton steps and
    what `fit_gradient` does are passes, too.

    Yields:
        A `PassRecord`, complete when the context is left.

    Example:
        >>> import jaxgmm as jg
        >>> x = [[0.0], [1.0], [2.0], [9.0], [10.0], [11.0]]
        >>> start = jg.GaussianMixture.create([0.5, 0.5], [[0.0], [9.0]], [[1.0], [1.0]], "diag")
        >>> with jg.record_passes() as record:
        ...     result = jg.em(start, x)
        >>> record.n_passes == int(result.n_iter)
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


def write_down(logits_apart: Array, moments_apart: Array) -> None:
    """To the record that is open, if any: which components, (K,) bool, products don't make."""
    record = _open_record.get()
    if record is not None:
        numbers = (jnp.sum(logits_apart), jnp.sum(moments_apart))
        jax.debug.callback(record.add, logits_apart.size, *numbers)
