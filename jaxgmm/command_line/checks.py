"""Checks of a command's options before anything is computed."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxgmm.command_line.messages import counted
from jaxgmm.command_line.options import UsageError


def check_places(sources: Mapping[str, Path | None], places: Sequence[Path]) -> None:
    """Refuses files that can't be written, or not without harm to what is read or each other.

    Args:
        sources: files that are read, by what they are.
        places: files to write.

    Raises:
        UsageError: two places are the same.
        ValueError: a place can't be written, or is one of the sources.
    """
    if len({place.resolve() for place in places}) < len(places):
        raise UsageError(f"--output and --plot are the same file, {places[0]}")
    for place in places:
        if place.is_dir():
            raise ValueError(f"{place} is a directory, expected the name of a file to write")
        for what, source in sources.items():
            if source and source.exists() and place.exists() and place.samefile(source):
                raise ValueError(f"{place} would overwrite the {what}")
        try:
            tempfile.TemporaryFile(dir=place.parent).close()
        except OSError as error:
            raise ValueError(f"{place} can't be written: {error.strerror}") from None


def check_components(counts: Sequence[int], n_rows: int) -> None:
    """ValueError if the largest of the counts is more than there are rows."""
    if counts[-1] > n_rows:
        raise ValueError(
            f"{counted(counts[-1], 'component')} can't be fitted to {counted(n_rows, 'row')}; try "
            f"--components {f'1:{n_rows}' if n_rows > 1 else '1'}"
        )
