"""Names and notes as they are printed, on terminals of any encoding."""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MOST_LISTED = 10
LONGEST_NAME = 60


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey rather than show."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def shown(name: str) -> str:
    """A name as it is shown: printable, and not too long for a line."""
    name = printable(name)
    half = (LONGEST_NAME - 3) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}...{name[-half:]}"


def listed(names: Sequence[str]) -> str:
    """The first of many names, as they are shown."""
    return ", ".join(map(shown, names[:MOST_LISTED])) + ", ..." * (len(names) > MOST_LISTED)


def counted(n: int, noun: str) -> str:
    """A number and the noun that it counts."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def say(sentence: str) -> None:
    """Tells something that is no result, on stderr."""
    print(f"jaxgmm: {printable(sentence)}", file=sys.stderr, flush=True)


@contextmanager
def escaping_output() -> Iterator[None]:
    """Characters that the encoding of stdout doesn't have are printed as escapes."""
    with _configured(errors="backslashreplace"):
        yield


@contextmanager
def data_output() -> Iterator[None]:
    """What is printed is read by programs, as UTF-8, unless it goes to a terminal."""
    if sys.stdout.isatty():
        yield
    else:
        with _configured(encoding="utf-8", errors="strict"):
            yield


@contextmanager
def _configured(*, encoding: str | None = None, errors: str) -> Iterator[None]:
    """Other options of stdout for a while, if it is one that has any."""
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper):
        yield
        return
    before = stdout.encoding, stdout.errors
    stdout.reconfigure(encoding=encoding or before[0], errors=errors)
    try:
        yield
    finally:
        stdout.reconfigure(encoding=before[0], errors=before[1])
