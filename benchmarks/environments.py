"""Environments for the libraries that can't share the one this runs in.

    python benchmarks/environments.py [folder]

builds them ahead of a benchmark, which otherwise does it itself.
"""

import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

FOLDER = Path(__file__).parent / ".environments"


def requirements() -> dict[str, list[str]]:
    """What each environment has; gmmx runs on the JAX that jaxgmm runs on."""
    return {
        "gmmx": ["gmmx==0.7", f"jax=={metadata.version('jax')}"],
        "onedal": ["daal4py==2024.7.0", "scikit-learn==1.5.2", "packaging"],
        "torch": ["numpy<2", "torch==2.13.0", "pomegranate==1.1.2", "gmm-gpu==0.2.8"],
    }


def interpreter(environment: Path) -> Path:
    """Its Python."""
    folder, name = ("Scripts", "python.exe") if sys.platform == "win32" else ("bin", "python")
    return environment / folder / name


def run(*command: str | Path) -> None:
    """Runs a command; a RuntimeError has the last line it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        errors = [line for line in said if line.startswith("ERROR")]
        raise RuntimeError((errors or said)[-1])


def build(name: str, folder: Path = FOLDER) -> Path:
    """The interpreter of an environment, built unless it is there already.

    Args:
        name: a key of `requirements()`.
        folder: where environments are kept.

    Raises:
        RuntimeError: it can't be built; the message says why.
    """
    wanted = "\n".join(requirements()[name]) + "\n"
    environment = folder.resolve() / name
    # Written last, so that what was built only in part is built again.
    stamp = environment / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        run(sys.executable, "-m", "venv", "--clear", environment)
        run(interpreter(environment), "-m", "pip", "install", *requirements()[name])
        stamp.write_text(wanted)
    return interpreter(environment)


def build_all(
    folder: Path = FOLDER, names: Iterable[str] | None = None
) -> tuple[dict[str, Path], dict[str, str]]:
    """Interpreters of the environments that could be built, and reasons for the others."""
    interpreters, reasons = {}, {}
    for name in requirements() if names is None else names:
        try:
            interpreters[name] = build(name, folder)
        except RuntimeError as error:
            reasons[name] = f"environment not built: {error}"
    return interpreters, reasons


if __name__ == "__main__":
    built, missing = build_all(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    for name, python in built.items():
        print(f"{name}: {python}")
    for name, reason in missing.items():
        print(f"{name}: {reason}")
