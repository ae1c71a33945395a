"""The fits that a sweep is made of: those whose covariances the data and the memory can hold."""

from collections.abc import Sequence

import numpy as np

from jaxgmm.command_line.messages import counted, say
from jaxgmm.covariances.structures import STRUCTURES
from jaxgmm.fits.ranking import Selection, at_edge, ranking

# Of the covariances of one fit: 80 MB in float64. A sweep holds those of several restarts, and
# several of each.
MOST_NUMBERS = 10_000_000

# Numbers of components, and the covariance types that are fitted with each of them.
Part = tuple[list[int], list[str]]


def planned(counts: Sequence[int], types: Sequence[str], n_rows: int, n_columns: int) -> list[Part]:
    """The parts of a sweep; says what is left out.

    Left out are types with full covariances, if all of them are singular because there are no more
    rows than columns, unless there is no other type; and fits whose covariances are too large.

    Args:
        counts: numbers of components to try, ascending.
        types: covariance types to try.
        n_rows: N.
        n_columns: D.

    Raises:
        ValueError: nothing is left.
    """
    matrices = [name for name in types if STRUCTURES[name].full_second_moment]
    singular = matrices if n_rows <= n_columns and len(matrices) < len(types) else []
    if singular:
        say(
            f"left out {', '.join(singular)}: with {counted(n_rows, 'row')} all covariances of "
            f"{counted(n_columns, 'column')} are singular"
        )
    parts: dict[tuple[int, ...], list[str]] = {}
    for name in types:
        if name in singular:
            continue
        fitting = [k for k in counts if n_numbers(name, k, n_columns) <= MOST_NUMBERS]
        if len(fitting) < len(counts):
            smallest = next(k for k in counts if k not in fitting)
            say(
                f"left out {name} with {counted(smallest, 'component')}"
                f"{' and more' * (smallest < counts[-1])}: its covariances of {n_columns} columns "
                f"are more than {MOST_NUMBERS:,} numbers"
            )
        if fitting:
            parts.setdefault((*fitting,), []).append(name)
    if not parts:
        raise ValueError(
            f"covariances of {counted(n_columns, 'column')} are too large; choose others with "
            "--covariance-type diag,spherical, or fewer columns with --columns"
        )
    return [([*some], names) for some, names in parts.items()]


def n_numbers(covariance_type: str, n_components: int, n_columns: int) -> int:
    """The number of entries of a fit's covariances."""
    size = 1
    for axis in STRUCTURES[covariance_type].shape(n_components, n_columns):
        size *= axis
    return size


def joined(selections: Sequence[Selection]) -> Selection:
    """The outcome of a sweep in parts."""
    if len(selections) == 1:
        return selections[0]
    table = np.concatenate([selection.table for selection in selections])
    criterion = selections[0].criterion
    ranked = ranking(table, criterion)
    part = np.repeat(np.arange(len(selections)), [len(one.table) for one in selections])
    best = selections[part[ranked[0]]].best
    return Selection(best, table, criterion, at_edge(table, int(ranked[0])))
