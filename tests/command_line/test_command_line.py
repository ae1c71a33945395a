"""The command line: what it writes, what it says, and how it refuses."""

import os
import subprocess
import sys
import tempfile

import jax
import matplotlib
import numpy as np
import pytest
from helpers import assert_refused

import jaxgmm as jg
from jaxgmm.command_line import commands, main
from jaxgmm.command_line.options import parser
from jaxgmm.files.tables import old_faithful
from jaxgmm.fits.ranking import ROW, Selection

SMALL = ["--components", "1:2", "--covariance-type", "tied", "--n-init", "1"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def table(folder):
    """A file of 40 rows in two clusters."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 3)) + 9 * (np.arange(40) % 2)[:, None]
    path = folder / "table.csv"
    np.savetxt(path, rows, delimiter=",", header="a,b,c", comments="")
    return path


@pytest.fixture
def no_fitting(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("nothing may be fitted")

    monkeypatch.setattr(commands, "select", fail)


@pytest.fixture
def invented(monkeypatch):
    """Stands in for the sweep: a selection with the statuses given, made without fitting."""

    def invent(*statuses, at_edge=False):
        def select(key, x, counts, types, *, criterion, callback, **_):
            mixture = jg.GaussianMixture.create([1.0], np.zeros((1, 2)), np.eye(2), "tied")
            zero = jax.numpy.zeros(())
            rows = [
                (k, types[0], 0, 1, k, k, k, 7, s) for k, s in zip(counts, statuses, strict=True)
            ]
            for row in rows:
                callback(np.array(row, ROW))
            result = jg.FitResult(
                mixture, zero, zero, zero + 7, zero + statuses[0], zero[None] > -1, zero, None
            )
            return Selection(result, np.array(rows, ROW), criterion, at_edge)

        monkeypatch.setattr(commands, "select", select)

    return invent


def test_best_model_of_old_faithful_is_reported_saved_and_drawn(folder, capsys):
    assert main(["fit", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Old Faithful: 272 rows, 2 columns (eruptions, waiting)" in out
    assert "1. tied, 2 components" in out
    assert "converged" in out
    assert "--components 1:4" in out
    assert sorted(os.listdir(folder)) == ["fit.npz", "fit.png"]
    with jax.enable_x64(True):
        mixture = jg.load("fit.npz")
        assert mixture.means.dtype == np.float64
        names, x = old_faithful()
        assert f"{float(jg.log_likelihood(mixture, x)):.3f}" in out
    for name, mean in zip(names, np.asarray(mixture.means).T, strict=True):
        line = next(line for line in out.splitlines() if line.startswith(f"  {name} "))
        np.testing.assert_allclose([float(cell) for cell in line.split()[1:]], mean, rtol=1e-5)


def test_float32_saves_float32(table, capsys):
    assert main(["fit", str(table), *SMALL, "--components", "1", "--float32"]) == 0
    assert jg.load("fit.npz").means.dtype == np.float32


@pytest.mark.parametrize(("options", "dtype"), [([], "float64"), (["--float32"], "float32")])
def test_precision_is_set_for_the_fits_and_restored(monkeypatch, capsys, options, dtype):
    seen = []

    def record(key, x, *_, **__):
        seen.append((x.dtype, jax.numpy.asarray(x).dtype))
        raise ValueError("enough")

    monkeypatch.setattr(commands, "select", record)
    before = jax.config.jax_enable_x64
    assert main(["fit", *options]) == 1
    assert seen == [(dtype, dtype)]
    assert jax.config.jax_enable_x64 == before


def test_columns_criterion_and_places_are_as_asked_for(invented, folder, table, capsys):
    invented(0, 0)
    (folder / "out").mkdir()
    places = ["--output", "out/model", "--plot", "out/picture.svg"]
    options = ["--columns", "c,a", "--criterion", "icl"]
    assert main(["fit", str(table), *SMALL, *places, *options]) == 0
    out = capsys.readouterr().out
    assert "table.csv: 40 rows, 2 columns (c, a)" in out
    assert "ICL, lower is better" in out
    assert sorted(os.listdir(folder / "out")) == ["model", "picture.svg"]
    assert sorted(os.listdir(folder)) == ["out", "table.csv"]


def test_held_out_log_likelihood_is_a_criterion(table, capsys):
    assert main(["fit", str(table), *SMALL, "--components", "1:2", "--criterion", "cv"]) == 0
    out = capsys.readouterr().out
    assert "CV, log-likelihood of a row that was held out, higher is better" in out
    values = [float(line.split()[-1]) for line in out.splitlines() if line[:4] in ("  1.", "  2.")]
    assert len(values) == 2 and values[0] > values[1]


@pytest.mark.parametrize(
    ("text", "counts"),
    [("3", [3]), ("1:4", [1, 2, 3, 4]), ("2,8,4", [2, 4, 8]), ("1:3,2:4,9", [1, 2, 3, 4, 9])],
)
def test_components_are_numbers_ranges_or_lists(text, counts):
    options = parser().parse_args(["fit", "--components", text])
    assert options.components == counts


def test_defaults_are_a_full_sweep():
    options = parser().parse_args(["fit"])
    assert options.components == list(range(1, 10))
    assert len(options.covariance_type) == 6
    assert (options.criterion, options.n_init, options.seed) == ("bic", 10, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["guess"], "invalid choice: 'guess'"),
        (["fit", "a.csv", "b.csv"], "unrecognized arguments: b.csv"),
        (["fit", "--components", "0"], "from 1"),
        (["fit", "--components", "3:1"], "ascend"),
        (["fit", "--components", "two"], "expected numbers such as 3, 1:9 or 2,4,8, got 'two'"),
        (["fit", "--components", "1:"], "expected numbers such as"),
        (["fit", "--components", ""], "expected numbers such as"),
        (["fit", "--components", "1:999999999"], "10000 at most"),
        (["fit", "--covariance-type", "round"], "must be one of full, tied, diag"),
        (["fit", "--criterion", "dic"], "invalid choice: 'dic'"),
        (["fit", "--n-init", "0"], "expected an integer from 1 to 2147483647, got '0'"),
        (["fit", "--n-init", "1.5"], "expected an integer from 1"),
        (["fit", "--seed", "-1"], "expected an integer from 0"),
        (["fit", "--seed", "99999999999"], "expected an integer from 0"),
        (["fit", "--output", "a.png", "--plot", "./a.png"], "are the same file"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(no_fitting, folder, capsys, arguments, message):
    assert main(arguments) == 2
    assert_refused(capsys, message)
    assert os.listdir(folder) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.csv"], "none.csv: no such file"),
        (["."], ". is a directory, expected a file"),
        (["table.csv", "--columns", "d"], "has no column 'd'; its columns are a, b, c"),
        (["--columns", "2"], "has no column '2'; its columns are eruptions, waiting"),
        (["bad.csv"], "bad.csv, line 2, column 'b': 'x' is not a number"),
        (["few.csv"], "9 components can't be fitted to 2 rows; try --components 1:2"),
        (["huge.csv", "--components", "1", "--float32"], "too large for float32"),
        (["--output", "nowhere/fit.npz"], "nowhere/fit.npz can't be written: No such file"),
        (["--output", "few.csv/fit.npz"], "few.csv/fit.npz can't be written: Not a directory"),
        (["--output", "."], ". is a directory"),
        (["--plot", "nowhere/fit.png"], "nowhere/fit.png can't be written"),
        (["--plot", "fit.docx"], "must end in .png, .pdf, .svg, .jpg; got fit.docx"),
        (["table.csv", "--output", "table.csv"], "table.csv would overwrite the data"),
    ],
)
def test_failure_is_one_line_and_code_1_before_fitting(
    no_fitting, folder, table, capsys, arguments, message
):
    (folder / "bad.csv").write_text("a,b\n1,x\n")
    (folder / "few.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "huge.csv").write_text("1e300\n2\n")
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    assert main(["fit", *arguments]) == 1
    assert_refused(capsys, message)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_folder_without_permission_is_refused_before_fitting(no_fitting, monkeypatch, capsys):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert main(["fit"]) == 1
    assert_refused(capsys, "fit.npz can't be written: Permission denied")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (MemoryError(), "MemoryError"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED:\nout of memory"), "EXHAUSTED: out of"),
    ],
)
def test_failure_while_fitting_is_one_line(folder, monkeypatch, capsys, failure, message):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(commands, "select", fail)
    assert main(["fit"]) == 1
    assert_refused(capsys, message)
    assert os.listdir(folder) == []


def test_report_is_printed_though_the_model_cannot_be_saved(invented, monkeypatch, capsys):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    invented(0, 0)
    monkeypatch.setattr(commands, "save", fail)
    assert main(["fit", *SMALL]) == 1
    out, err = capsys.readouterr()
    assert "Best by BIC" in out
    assert err == "jaxgmm: error: [Errno 28] No space left on device\n"


def test_interrupt_is_one_line_and_code_130(folder, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "select", interrupt)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "jaxgmm: interrupted\n"
    assert os.listdir(folder) == []


def test_reader_that_went_away_is_met_with_silence(no_fitting, monkeypatch, capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["fit"]) == 141
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("status", "mark", "footnote", "outcome"),
    [
        (jg.Status.MAX_ITER, "~", "stopped before it converged", "stopped after 7 iterations"),
        (jg.Status.NON_FINITE, "!", "met NaN or infinity", "met NaN or infinity after 7"),
        (jg.Status.DEGENERATE, "*", "has degenerate components", "degenerate components: 1 ("),
    ],
)
def test_unhealthy_fits_are_marked_and_explained(invented, capsys, status, mark, footnote, outcome):
    invented(status, status)
    assert main(["fit", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"1  1.00{mark}" in lines
    assert any(line.startswith(f"{mark} {footnote}") for line in lines)
    assert any(line.startswith(f"  {outcome}") for line in lines)


def test_healthy_fits_have_no_marks(invented, capsys):
    invented(0, 0)
    assert main(["fit", *SMALL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1  1.00" in lines
    assert not any(line.startswith(("~", "!", "*")) for line in lines)


@pytest.mark.parametrize(
    ("components", "wider"), [("1:2", None), ("1,3", None), ("2,3", "1:3"), ("4:5", "1:5")]
)
def test_winner_at_the_edge_suggests_a_wider_sweep(invented, capsys, components, wider):
    invented(0, 0, at_edge=wider is not None)
    assert main(["fit", *SMALL, "--components", components]) == 0
    suggestion = f"edge of the sweep: --components {wider} may find a better one"
    assert (suggestion in capsys.readouterr().out) == (wider is not None)


def test_progress_is_one_line_that_vanishes(invented, monkeypatch, capsys):
    invented(0, 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["fit", *SMALL]) == 0
    err = capsys.readouterr().err
    shown = [text.strip() for text in err.split("\r")]
    assert "\n" not in err
    assert shown[1:4] == ["0 of 2 fits", "1 of 2 fits", "2 of 2 fits"]
    assert not any(shown[4:])


@pytest.fixture
def without_matplotlib(monkeypatch):
    monkeypatch.delitem(sys.modules, "jaxgmm.plot", raising=False)
    for name in [name for name in sys.modules if name.split(".")[0] == matplotlib.__name__]:
        monkeypatch.setitem(sys.modules, name, None)


def test_without_matplotlib_there_is_no_picture_but_advice(
    without_matplotlib, invented, folder, capsys
):
    invented(0, 0)
    assert main(["fit", *SMALL]) == 0
    assert "no picture: jaxgmm.plot needs matplotlib: pip install 'jaxgmm[plot]'" in (
        capsys.readouterr().out
    )
    assert os.listdir(folder) == ["fit.npz"]


def test_without_matplotlib_a_picture_asked_for_is_refused(without_matplotlib, no_fitting, capsys):
    assert main(["fit", "--plot", "fit.png"]) == 2
    assert_refused(capsys, "pip install 'jaxgmm[plot]'")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([command, "--help"] for command in ("fit", "score", "predict", "sample", "show")),
    ],
)
def test_help_and_version_exit_with_0(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 0
    assert "jaxgmm" in capsys.readouterr().out


def test_module_runs_as_a_program():
    ran = subprocess.run(
        [sys.executable, "-m", "jaxgmm", "--help"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("usage: jaxgmm")
    assert ran.stderr == ""
