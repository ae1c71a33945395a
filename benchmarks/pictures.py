"""The pictures of the README that need no measurement.

    python benchmarks/pictures.py

Writes `notebooks/old_faithful.png`, which is what the command `jaxgmm fit` draws, and
`notebooks/gallery.png`, what `jaxgmm.plot` can draw of one fit.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import jax
from matplotlib.figure import Figure

import jaxgmm as jg
from jaxgmm import plot
from jaxgmm.files.tables import old_faithful

PANELS = ("contours", "ellipses", "heat_map", "responsibilities", "history", "regression")
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def draw_command(path: Path) -> None:
    """What the command draws without a file."""
    command = [sys.executable, "-m", "jaxgmm", "fit", "--plot", str(path)]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--output", f"{folder}/fit.npz"], check=True)


def draw_gallery(path: Path) -> None:
    """Six panels of the fit that the command chooses."""
    names, x = old_faithful()
    result = jg.fit(jax.random.key(0), x, 3, covariance_type="tied", n_init=10, max_iter=5000)
    mixture = result.check().mixture
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = dict(zip(PANELS, figure.subplots(2, 3).flat, strict=True))
    for name, ax in panels.items():
        ax.set_title(f"plot.{name}", family="monospace", fontsize=10)
    plot.contours(mixture, x, panels["contours"], names=names)
    plot.ellipses(mixture, x, panels["ellipses"], names=names)
    plot.responsibilities(mixture, x, panels["responsibilities"], names=names)
    colors = plot.heat_map(mixture, x, panels["heat_map"], names=names)
    figure.colorbar(colors, label="-log density, nats")
    plot.history(result, panels.pop("history"))
    plot.regression(mixture, 0, 1, x, panels["regression"], names=names)
    for ax in panels.values():
        ax.set(xlim=(1.2, 5.5), ylim=(38, 100))
    figure.savefig(path, dpi=110)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    draw_gallery(NOTEBOOKS / "gallery.png")
    draw_command(NOTEBOOKS / "old_faithful.png")


if __name__ == "__main__":
    main()
