"""The options of the command line."""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from jaxgmm import __version__
from jaxgmm.covariances.structures import STRUCTURES, SWEPT, structure_named
from jaxgmm.fits.ranking import CRITERIA

EPILOG = """\
FILE is CSV (with or without a header, compressed or not), NPY or Parquet; without one, the
eruptions of the Old Faithful geyser are fitted. Examples:

  jaxgmm fit
  jaxgmm fit data.csv --components 2,4,8 --covariance-type full,tied --columns height,weight
"""
KINDS = ".csv, .npy, .parquet or .pq"
MOST_COMPONENTS = 10_000


class UsageError(ValueError):
    """Options that can't be meant."""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are raised, and printed like every other."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parser() -> Parser:
    """The options, which `--help` explains."""
    top = Parser("jaxgmm", description="Gaussian mixtures in JAX.")
    top.add_argument("--version", action="version", version=f"jaxgmm {__version__}")
    top.set_defaults(float32=False)
    commands = top.add_subparsers(metavar="COMMAND", dest="command", required=True)
    _add_fit(commands)
    _add_score(commands)
    _add_predict(commands)
    _add_sample(commands)
    _add_show(commands)
    return top


def _add_fit(commands: Any) -> None:
    command = commands.add_parser(
        "fit",
        help="fit mixtures to a file and choose the best",
        description="Fits mixtures of several sizes and covariance types and chooses the best.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("file", nargs="?", type=Path, metavar="FILE", help="the data, a row for each sample")
    add(
        "--components",
        type=_components,
        default="1:9",
        metavar="K",
        help="numbers of components to try: 3, or 1:9 (both included), or 2,4,8 (default: 1:9)",
    )
    add(
        "--covariance-type",
        type=_covariance_types,
        default="all",
        metavar="TYPE",
        help=f"some of {','.join(STRUCTURES)}, of which a saved VEI reads as diag; or all, the "
        "default, which are the first six",
    )
    add("--criterion", choices=CRITERIA, default="bic", help="what to choose by (default: bic)")
    add("--n-init", type=_positive, default=10, metavar="N", help="restarts per fit (default: 10)")
    add("--seed", type=_natural, default=0, metavar="N", help="of the random starts (default: 0)")
    _add_columns(add, "columns to use, by name or number from 0 (default: all but an index)")
    _add_drop_missing(add, "leave out rows with missing values")
    add(
        "--output",
        type=Path,
        default=Path("fit.npz"),
        metavar="PATH",
        help="where to save the best mixture, for jaxgmm.load (default: fit.npz)",
    )
    add(
        "--plot",
        type=Path,
        metavar="PATH",
        help="where to draw it: .png, .pdf, .svg or .jpg (default: fit.png)",
    )
    _add_float32(add)


def _add_score(commands: Any) -> None:
    add = _adder(
        commands,
        "score",
        "say how well a model describes a file",
        "Prints the log-likelihood of a file's rows, in nats, and the criteria AIC and BIC.",
    )
    _add_data(add)
    add("--output", type=Path, metavar="PATH", help=f"where to write log_prob of each row: {KINDS}")


def _add_predict(commands: Any) -> None:
    add = _adder(
        commands,
        "predict",
        "say which component each row of a file is from",
        "Gives the most probable component of each of a file's rows, a number from 0.",
    )
    _add_data(add)
    add(
        "--responsibilities",
        action="store_true",
        help="the probabilities of all components, a column for each, rather than labels",
    )
    _add_output(add)


def _add_sample(commands: Any) -> None:
    add = _adder(
        commands,
        "sample",
        "draw rows from a model",
        "Draws rows from a model. The same seed gives the same rows, and more of them begin so.",
    )
    add("-n", type=_natural, required=True, metavar="N", help="how many rows")
    add("--seed", type=_natural, default=0, metavar="N", help="of the draws (default: 0)")
    add("--labels", action="store_true", help="also a column of the components they are from")
    _add_output(add)


def _add_show(commands: Any) -> None:
    _adder(
        commands,
        "show",
        "print a model's parameters",
        "Prints what a model is, and its weights, means and covariances.",
    )


def _adder(commands: Any, name: str, summary: str, description: str) -> Callable[..., Any]:
    """What adds arguments to a new command, which takes a model."""
    add: Callable[..., Any]
    add = commands.add_parser(name, help=summary, description=description).add_argument
    add("model", type=Path, metavar="MODEL", help="what jaxgmm fit or jaxgmm.save wrote")
    return add


def _add_data(add: Callable[..., Any]) -> None:
    add("file", type=Path, metavar="FILE", help="a row for each sample: CSV, NPY or Parquet")
    _add_columns(
        add, "columns to use, by name or number from 0 (default: those that the model names)"
    )
    _add_drop_missing(add, "leave out rows with missing values; in outputs, their place is empty")
    _add_float32(add)


def _add_output(add: Callable[..., Any]) -> None:
    add(
        "--output",
        type=Path,
        metavar="PATH",
        help=f"where to write them: {KINDS} (default: CSV to the terminal)",
    )


def _add_columns(add: Callable[..., Any], summary: str) -> None:
    add("--columns", type=_columns, metavar="A,B", help=summary)


def _add_drop_missing(add: Callable[..., Any], summary: str) -> None:
    add("--drop-missing", action="store_true", help=summary)


def _add_float32(add: Callable[..., Any]) -> None:
    add("--float32", action="store_true", help="compute in float32 rather than float64")


def _components(text: str) -> list[int]:
    counts: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition(":")
        try:
            low, high = int(first), int(last if ":" in part else first)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"expected numbers such as 3, 1:9 or 2,4,8, got {text!r}"
            ) from None
        if not 1 <= low <= high <= MOST_COMPONENTS:
            raise argparse.ArgumentTypeError(
                f"numbers must ascend from 1 at least to {MOST_COMPONENTS} at most, got {text!r}"
            )
        counts.update(range(low, high + 1))
    return sorted(counts)


def _covariance_types(text: str) -> list[str]:
    if text == "all":
        return list(SWEPT)
    try:
        names = [structure_named(name).name for name in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected all, or some types: {error}") from None
    return list(dict.fromkeys(names))


def _columns(text: str) -> list[str]:
    """Names, in quotes if they hold commas, as in the header of a file."""
    try:
        row = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise argparse.ArgumentTypeError(
            f"expected names as in CSV, got {text!r}: {error}"
        ) from None
    return [name.strip() for name in row]


def _positive(text: str) -> int:
    return _integer(text, 1)


def _natural(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, smallest: int) -> int:
    largest = 2**31 - 1
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not smallest <= number <= largest:
        raise argparse.ArgumentTypeError(
            f"expected an integer from {smallest} to {largest}, got {text!r}"
        )
    return number
