"""What commands make of tables: which columns and rows they use, and what they say of others."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import assert_refused

import jaxgmm as jg
from jaxgmm.command_line import commands, main
from jaxgmm.files.tables import read_table
from jaxgmm.fits.ranking import ROW, Selection

RANDOM = np.random.default_rng(0)
HEIGHT = RANDOM.normal(170, 10, 60)
WEIGHT = RANDOM.normal(70, 1, 60)
AGE = RANDOM.normal(40, 5, 60)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a model of heights and weights, and a table of them."""
    monkeypatch.chdir(tmp_path)
    with jax.enable_x64(True):
        jg.save("model.npz", mixture(), feature_names=["height", "weight"])
        jg.save("nameless.npz", mixture())
    write("data.csv", height=HEIGHT, weight=WEIGHT)
    return tmp_path


def mixture():
    means = np.array([[160.0, 70.0], [180.0, 71.0]])
    return jg.GaussianMixture.create([0.5, 0.5], means, np.array([90.0, 1.5]), "tied_diag")


def write(path, header=True, **columns):
    names = ",".join(name.replace("_", " ") for name in columns)
    rows = (",".join(map(repr, row)) for row in np.stack([*columns.values()], axis=-1).tolist())
    with open(path, "w") as file:
        file.write("\n".join([*[names] * header, *rows]) + "\n")


def run(capsys, *arguments):
    """What a command prints on stdout, and on stderr."""
    assert main(arguments) == 0
    return capsys.readouterr()


def total(out):
    return float(next(line for line in out.splitlines() if "log-likelihood" in line).split()[-1])


@pytest.fixture
def fitted(monkeypatch):
    """Stands in for the sweep: keeps what it is asked to fit."""
    asked = []

    def select(key, x, counts, types, *, criterion, callback, **_):
        asked.append((np.asarray(x), counts, types))
        best = jg.GaussianMixture.create([1.0], x[:1], np.ones(x.shape[1]), "tied_diag")
        zero = jax.numpy.zeros(())
        result = jg.FitResult(best, zero, zero, zero + 7, zero, zero[None] > 0, zero, None)
        rows = [(k, name, 0, 1, k, k, k, 7, 0) for k in counts for name in types]
        return Selection(result, np.array(rows, ROW), criterion, False)

    monkeypatch.setattr(commands, "select", select)
    return asked


OTHER_ORDERS = {
    "reversed": ({"weight": WEIGHT, "height": HEIGHT}, []),
    "further": ({"age": AGE, "weight": WEIGHT, "height": HEIGHT}, []),
    "columns": ({"weight": WEIGHT, "age": AGE, "height": HEIGHT}, ["--columns", "weight,height"]),
    "numbers": ({"weight": WEIGHT, "age": AGE, "height": HEIGHT}, ["--columns", "0,2"]),
}


@pytest.mark.parametrize("case", OTHER_ORDERS)
def test_columns_of_a_model_are_found_by_name_in_any_order(capsys, case):
    columns, options = OTHER_ORDERS[case]
    write("other.csv", **columns)
    with jax.enable_x64(True):
        expected = float(jg.log_likelihood(mixture(), np.stack([HEIGHT, WEIGHT], axis=-1)))
    out, err = run(capsys, "score", "model.npz", "other.csv", *options)
    assert total(out) == pytest.approx(expected, abs=1e-3)
    assert "60 rows, 2 columns (height, weight)" in out and err == ""
    labels = run(capsys, "predict", "model.npz", "other.csv", *options).out
    assert labels == run(capsys, "predict", "model.npz", "data.csv").out


@pytest.mark.parametrize("model", ["model.npz", "nameless.npz"])
def test_columns_without_names_stand_as_the_model_has_them(capsys, model):
    write("bare.csv", header=False, height=HEIGHT, weight=WEIGHT)
    expected = total(run(capsys, "score", "model.npz", "data.csv").out)
    assert total(run(capsys, "score", model, "bare.csv").out) == expected
    np.save("bare.npy", np.stack([WEIGHT, HEIGHT], axis=-1))
    out = run(capsys, "score", model, "bare.npy", "--columns", "1,0").out
    assert total(out) == pytest.approx(expected)


@pytest.mark.parametrize("command", ["score", "predict"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "other.csv has no column 'weight', which the model was fitted to; its columns are"),
        (["--columns", "height,age"], "has no column 'weight', which the model was fitted to"),
        (["--columns", "1,0"], "has no column 'weight', which the model was fitted to"),
    ],
)
def test_column_that_is_missing_is_named(capsys, command, options, message):
    write("other.csv", height=HEIGHT, age=AGE)
    assert main([command, "model.npz", "other.csv", *options]) == 1
    assert_refused(capsys, message)


def test_fit_writes_names_that_show_and_sample_give_back(capsys, fitted):
    write("data.csv", age=AGE, weight=WEIGHT, height=HEIGHT)
    run(capsys, "fit", "data.csv", "--columns", "height,weight")
    with jax.enable_x64(True):
        assert jg.load("fit.npz", return_feature_names=True)[1] == ["height", "weight"]
    lines = run(capsys, "show", "fit.npz").out.splitlines()
    assert sum(line.strip().startswith("height ") for line in lines) == 2
    assert run(capsys, "sample", "fit.npz", "-n", "0").out == "height,weight\n"
    run(capsys, "sample", "fit.npz", "-n", "2", "--labels", "--output", "draws.parquet")
    assert read_table("draws.parquet")[0] == ["height", "weight", "label"]


@pytest.mark.parametrize(
    "names", [["0", "1"], ["NA", "None"], [" a ", "#b"], ['"quoted"; x', "two\nlines"], ["é", "身"]]
)
def test_draws_are_read_with_any_names(capsys, names):
    with jax.enable_x64(True):
        jg.save("odd.npz", mixture(), feature_names=names)
    expected = None
    for ending in ("csv", "parquet", "npy"):
        run(capsys, "sample", "odd.npz", "-n", "9", "--output", f"draws.{ending}")
        out = run(capsys, "score", "odd.npz", f"draws.{ending}").out
        assert f"draws.{ending}: 9 rows" in out
        expected = expected or total(out)
        assert total(out) == expected


def test_label_has_a_name_of_its_own(capsys):
    with jax.enable_x64(True):
        jg.save("labels.npz", mixture(), feature_names=["label", "label_"])
    out = run(capsys, "sample", "labels.npz", "-n", "0", "--labels").out
    assert out == "label,label_,label__\n"


@pytest.mark.parametrize(
    ("options", "names"), [([], None), (["--columns", "2,0"], ["column 2", "column 0"])]
)
def test_model_of_a_table_without_names_remembers_where_columns_stood(
    capsys, fitted, options, names
):
    write("bare.csv", header=False, age=AGE, weight=WEIGHT, height=HEIGHT)
    run(capsys, "fit", "bare.csv", *options)
    with jax.enable_x64(True):
        assert jg.load("fit.npz", return_feature_names=True)[1] == names
    (x, *_) = fitted[0]
    first = run(capsys, "score", "fit.npz", "bare.csv", "--output", "scores.npy").out
    assert f"60 rows, {x.shape[1]} columns" in first
    with jax.enable_x64(True):
        expected = jg.load("fit.npz").log_prob(x)
    np.testing.assert_allclose(np.load("scores.npy"), expected, rtol=1e-12)


def test_columns_with_the_same_name_leave_a_model_without_names(capsys, fitted):
    with open("twice.csv", "w") as file:
        file.write("a,a\n1,2\n3,5\n4,1\n")
    _, err = run(capsys, "fit", "twice.csv", "--components", "1")
    assert "the model has no names of features, as several columns are named 'a'" in err
    with jax.enable_x64(True):
        assert jg.load("fit.npz", return_feature_names=True)[1] is None


def test_columns_with_commas_are_named_in_quotes(capsys, fitted):
    with open("commas.csv", "w") as file:
        file.write('"length, mm",b,c\n1,2,x\n3,5,y\n4,1,z\n')
    run(capsys, "fit", "commas.csv", "--components", "1", "--columns", 'b, "length, mm"')
    np.testing.assert_array_equal(fitted[0][0], [[2, 1], [5, 3], [1, 4]])


def test_index_of_a_data_frame_is_left_out_and_named(capsys, fitted):
    with open("frame.csv", "w") as file:
        file.write(",a,b\n0,1,2\n1,3,5\n2,4,1\n")
    out, err = run(capsys, "fit", "frame.csv", "--components", "1")
    np.testing.assert_array_equal(fitted[0][0], [[1, 2], [3, 5], [4, 1]])
    assert "3 rows, 2 columns (a, b)" in out
    assert err == (
        "jaxgmm: frame.csv: left out 'column 0', an index of the rows; to use it, name it in "
        "--columns\n"
    )
    _, err = run(capsys, "fit", "frame.csv", "--components", "1", "--columns", "0,a")
    np.testing.assert_array_equal(fitted[1][0], [[0, 1], [1, 3], [2, 4]])
    assert err == ""


@pytest.fixture
def gaps():
    """Ten rows, of which four miss something."""
    with open("gaps.csv", "w") as file:
        file.write("height,name,weight\n")
        for i in range(10):
            height = ["NA", HEIGHT[i]][i not in (2, 3)]
            weight = ["", WEIGHT[i]][i not in (3, 7, 9)]
            file.write(f"{height},Bob,{weight}\n")
    return np.isin(np.arange(10), [2, 3, 7, 9])


@pytest.mark.parametrize(
    "arguments",
    [["fit", "gaps.csv", "--columns", "height,weight"], ["predict", "model.npz", "gaps.csv"]],
)
def test_missing_value_points_to_what_can_be_done(capsys, gaps, arguments):
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "gaps.csv, line 4, column 'height': the value is missing ('NA'); leave such rows" in err
    assert "--drop-missing" in err and "--columns" in err


def test_column_of_text_points_to_columns_of_numbers(capsys, gaps):
    assert main(["fit", "gaps.csv"]) == 1
    message = "'Bob' is not a number; choose columns of numbers with --columns, such as --columns "
    assert_refused(capsys, message + "height,weight")


def test_rows_with_missing_values_are_not_fitted_and_counted(capsys, fitted, gaps):
    options = ["--columns", "height,weight", "--components", "1"]
    out, err = run(capsys, "fit", "gaps.csv", "--drop-missing", *options)
    assert err == "jaxgmm: dropped 4 of 10 rows, for missing values\n"
    assert "6 rows, 2 columns" in out
    x = np.stack([HEIGHT, WEIGHT], axis=-1)[:10][~gaps]
    np.testing.assert_array_equal(fitted[0][0], x)


@pytest.mark.parametrize("block_rows", [1, 4, 100])
def test_outputs_keep_a_place_for_rows_with_missing_values(capsys, monkeypatch, gaps, block_rows):
    monkeypatch.setattr(commands, "BLOCK_ROWS", block_rows)
    x = np.stack([HEIGHT, WEIGHT], axis=-1)[:10][~gaps]
    write("complete.csv", height=x[:, 0], weight=x[:, 1])
    for arguments in (["score"], ["predict"], ["predict", "--responsibilities"]):
        command, *options = arguments
        run(capsys, command, "model.npz", "complete.csv", *options, "--output", "complete.npy")
        for ending in ("npy", "csv", "parquet"):
            options = [*arguments[1:], "--drop-missing", "--output", f"out.{ending}"]
            out, err = run(capsys, command, "model.npz", "gaps.csv", *options)
            assert err == "jaxgmm: dropped 4 of 10 rows, for missing values\n"
            assert command == "predict" or "6 rows, 2 columns" in out
            _, values = read_table(f"out.{ending}", allow_missing=True)
            assert np.isnan(values[gaps]).all()
            np.testing.assert_allclose(values[~gaps].squeeze(), np.load("complete.npy"), rtol=1e-12)
    text = run(capsys, "predict", "model.npz", "gaps.csv", "--drop-missing").out
    assert [line == '""' for line in text.splitlines()[1:]] == gaps.tolist()


@pytest.mark.parametrize("command", [["fit"], ["score", "model.npz"]])
def test_table_without_a_complete_row_is_refused(capsys, command):
    with open("none.csv", "w") as file:
        file.write("height,weight\n1,\n,2\n")
    assert main([*command, "none.csv", "--drop-missing"]) == 1
    err = capsys.readouterr().err
    assert "dropped 2 of 2 rows" in err
    assert "error: no row is without missing values; choose columns with --columns" in err


def test_redundant_columns_are_left_out_and_named(capsys, fitted):
    year, twice = np.full(60, 2020.0), HEIGHT.copy()
    columns = {"year": year, "height": HEIGHT, "weight": WEIGHT}
    write("data.csv", **columns, again=twice, both=HEIGHT + 2 * WEIGHT)
    out, err = run(capsys, "fit", "data.csv", "--components", "1:2")
    assert err == (
        "jaxgmm: left out 3 columns: 'year' is constant, 'again' is a copy of 'height', 'both' "
        "follows from 'height', 'weight'\n"
    )
    assert "60 rows, 2 columns (height, weight)" in out
    np.testing.assert_array_equal(fitted[0][0], np.stack([HEIGHT, WEIGHT], axis=-1))
    assert "2 columns (height, weight)" in run(capsys, "score", "fit.npz", "data.csv").out


def test_copies_are_kept_where_no_covariance_suffers_from_them(capsys, fitted):
    write("data.csv", height=HEIGHT, again=HEIGHT, year=np.full(60, 2020.0))
    _, err = run(capsys, "fit", "data.csv", "--covariance-type", "diag,spherical")
    assert fitted[0][0].shape == (60, 2)
    assert err == "jaxgmm: left out 1 column: 'year' is constant\n"


def test_nothing_but_constant_columns_is_refused(capsys, fitted):
    write("data.csv", year=np.full(60, 2020.0), zero=np.zeros(60))
    assert main(["fit", "data.csv"]) == 1
    assert_refused(capsys, "every column is constant in all of 60 rows (year, zero)")


def test_best_fit_is_that_without_the_constant_and_the_copied_column(capsys):
    rows = RANDOM.normal(size=(90, 2)) + 9 * (np.arange(90) % 3)[:, None]
    a, b = rows.T
    options = ["--components", "2:3", "--covariance-type", "full,spherical", "--n-init", "2"]
    write("plain.csv", a=a, b=b)
    write("more.csv", a=a, b=b, year=np.full(90, 2020.0), again=a)
    plain = run(capsys, "fit", "plain.csv", *options).out.splitlines()
    more = run(capsys, "fit", "more.csv", *options).out.splitlines()
    assert more[1:] == plain[1:]


def test_columns_that_are_as_many_as_rows_are_fitted_without_matrices(capsys, fitted):
    np.save("wide.npy", RANDOM.normal(size=(9, 9)))
    _, err = run(capsys, "fit", "wide.npy", "--components", "1:2")
    assert [types for _, _, types in fitted] == [
        ["diag", "spherical", "tied_diag", "tied_spherical"]
    ]
    assert err == (
        "jaxgmm: left out full, tied: with 9 rows all covariances of 9 columns are singular\n"
    )
    run(capsys, "fit", "wide.npy", "--components", "1", "--covariance-type", "full")
    assert fitted[1][2] == ["full"]


def test_covariances_that_are_too_large_are_left_out(capsys, monkeypatch, fitted):
    monkeypatch.setattr("jaxgmm.command_line.plan.MOST_NUMBERS", 2 * 30**2)
    np.save("wide.npy", RANDOM.normal(size=(40, 30)))
    out, err = run(capsys, "fit", "wide.npy", "--components", "1,2,3,4")
    assert [(counts, types) for _, counts, types in fitted] == [
        ([1, 2], ["full"]),
        ([1, 2, 3, 4], ["tied", "diag", "spherical", "tied_diag", "tied_spherical"]),
    ]
    assert err == (
        "jaxgmm: left out full with 3 components and more: its covariances of 30 columns are more "
        "than 1,800 numbers\n"
    )
    cells = [line.split() for line in out.splitlines() if line[:2] in ("2 ", "3 ")]
    assert cells == [["2", *["2.00"] * 6], ["3", "-", *["3.00"] * 5]]
    monkeypatch.setattr("jaxgmm.command_line.plan.MOST_NUMBERS", 30**2 - 1)
    assert main(["fit", "wide.npy", "--covariance-type", "full,tied"]) == 1
    assert "covariances of 30 columns are too large; choose others" in capsys.readouterr().err


def test_best_of_the_parts_of_a_sweep_is_the_best(capsys, monkeypatch):
    monkeypatch.setattr("jaxgmm.command_line.plan.MOST_NUMBERS", 4)
    rows = RANDOM.normal(size=(60, 2)) + 9 * (np.arange(60) % 2)[:, None]
    np.save("two.npy", rows)
    options = ["--components", "1:2", "--n-init", "1"]
    out, _ = run(capsys, "fit", "two.npy", "--covariance-type", "full,spherical", *options)
    assert "1. spherical, 2 components" in out
    assert "\nspherical, 2 components\n" in out
    assert "edge of the sweep: --components 1:4" in out


def test_many_columns_are_reported_in_part_and_not_drawn(capsys, fitted, folder):
    np.save("wide.npy", RANDOM.normal(size=(10, 1000)))
    out, _ = run(capsys, "fit", "wide.npy", "--components", "1")
    assert "no picture: 1000 features are more than the 300 that can be drawn" in out
    assert "and 950 more features, which jaxgmm show prints" in out
    assert len(out.splitlines()) < 150
    assert not (folder / "fit.png").exists()
    assert "  column 999 " in run(capsys, "show", "fit.npz").out
    assert main(["fit", "wide.npy", "--components", "1", "--plot", "fit.png"]) == 1
    assert "--plot: 1000 features are more than the 300" in capsys.readouterr().err


def test_thousands_of_columns_are_read_matched_and_shown(capsys, fitted):
    """In the memory and the time of the numbers themselves."""
    n_columns = 30_000
    x = RANDOM.normal(size=(4, n_columns)).round(3)
    x[:, 7], x[:, 9] = 1.5, x[:, 3]
    names = [f"g{i}" for i in range(n_columns)]
    with open("wide.csv", "w") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in [names, *x.tolist()])
    _, err = run(capsys, "fit", "wide.csv", "--components", "1")
    assert "left out 2 columns: 'g7' is constant, 'g9' is a copy of 'g3'" in err
    kept = [i for i in range(n_columns) if i not in (7, 9)]
    np.testing.assert_array_equal(fitted[0][0], x[:, kept])
    assert len(run(capsys, "show", "fit.npz").out.splitlines()) > 2 * len(kept)
    header = run(capsys, "sample", "fit.npz", "-n", "0").out
    assert header.split(",")[-1] == "g29999\n"


def test_terminal_escapes_in_names_are_shown_and_not_obeyed(capsys, fitted):
    names = ["\x1b[31mred", "a\x07\u202eb", "x" * 5000, "µ $x^^$"]
    rows = RANDOM.normal(size=(9, 4)).tolist()
    with open("odd.csv", "w", encoding="utf-8") as file:
        file.writelines(",".join(map(str, row)) + "\n" for row in [names, *rows])
    out, err = run(capsys, "fit", "odd.csv", "--components", "1")
    assert err == "" and os.path.exists("fit.png")
    assert "(\\x1b[31mred, a\\x07\\u202eb, xxx" in out and "µ $x^^$" in out
    assert max(map(len, out.splitlines())) < 250
    with jax.enable_x64(True):
        assert jg.load("fit.npz", return_feature_names=True)[1] == names
    assert main(["fit", "odd.csv", "--columns", "\x1b[32m"]) == 1
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\\x1b[31mred" in err


PROGRAM = """
import sys
from jaxgmm.command_line import main
sys.exit(main(sys.argv[1:]))
"""


def test_names_that_the_output_cannot_encode_are_escaped():
    with jax.enable_x64(True):
        jg.save("model.npz", mixture(), feature_names=["身長", "weight"])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(
        [sys.executable, "-c", PROGRAM, "show", "model.npz"], capture_output=True, env=environment
    )
    assert shown.returncode == 0 and shown.stderr == b""
    assert rb"\u8eab\u9577" in shown.stdout
    drawn = subprocess.run(
        [sys.executable, "-c", PROGRAM, "sample", "model.npz", "-n", "0"],
        capture_output=True,
        env=environment,
    )
    assert drawn.stdout.decode("utf-8") == "身長,weight\n"


INTERRUPTED = """
import atexit, sys
import jaxgmm.__main__
from jaxgmm.command_line import commands
def interrupt(*_, **__):
    raise KeyboardInterrupt
atexit.register(print, "taken apart")
commands.COMMANDS[sys.argv[1]] = interrupt
sys.argv[2:] = ["model.npz", "data.csv"] if sys.argv[1] == "predict" else []
print("printed before")
jaxgmm.__main__.main()
"""


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_interrupted_program_ends_without_taking_the_interpreter_apart(command):
    """Under threads that still compute it would crash, and it would wait for them."""
    ran = subprocess.run([sys.executable, "-c", INTERRUPTED, command], capture_output=True)
    assert ran.returncode == 130
    assert ran.stdout == b"printed before\n"
    assert ran.stderr == b"jaxgmm: interrupted\n"
