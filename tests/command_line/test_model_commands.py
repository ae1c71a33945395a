"""What the command line does with fitted models: score, predict, sample and show."""

import os
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_refused

import jaxgmm as jg
from jaxgmm.command_line import commands, main
from jaxgmm.files.table_writing import write_blocks
from jaxgmm.files.tables import read_table

ROWS = np.random.default_rng(0).normal(size=(40, 2)) + 9 * (np.arange(40) % 2)[:, None]
FORMATS = ["csv", "npy", "parquet"]


@pytest.fixture
def x64():
    """The command line computes in float64, and so do comparisons with it."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True)
def folder(x64, tmp_path, monkeypatch):
    """A folder with a model, a table in three formats, and one with a column more."""
    monkeypatch.chdir(tmp_path)
    jg.save("model.npz", mixture())
    columns = [*ROWS.T]
    for ending in FORMATS:
        write_blocks(f"table.{ending}", ["a", "b"], [columns])
    write_blocks("wide.csv", ["a", "x", "b"], [[columns[0], columns[0], columns[1]]])
    return tmp_path


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(commands, "BLOCK_ROWS", 7)


def mixture(dtype=np.float64):
    parameters = ([0.25, 0.75], [[0.0, 0.1], [9.0, 9.0]], [[[1.0, 0.3], [0.3, 2.0]], np.eye(2)])
    return jg.GaussianMixture.create(*(np.array(part, dtype) for part in parameters))


def run(capsys, *arguments):
    """What a command prints."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def table_of(text):
    """Names and values of CSV."""
    header, *lines = text.splitlines()
    return header.split(","), np.array(
        [[float(cell) for cell in line.split(",")] for line in lines]
    )


def figure(out, name):
    line = next(line for line in out.splitlines() if line.strip().startswith(name))
    return float(line.split()[-1])


@pytest.mark.parametrize("ending", FORMATS)
def test_score_of_blocks_is_that_of_the_whole(small_blocks, capsys, ending):
    out = run(capsys, "score", "model.npz", f"table.{ending}")
    total = float(jg.log_likelihood(mixture(), ROWS))
    assert out.startswith(f"table.{ending}: 40 rows, 2 columns (")
    assert figure(out, "log-likelihood") == pytest.approx(total, abs=1e-3)
    assert figure(out, "mean per row") == pytest.approx(total / 40, abs=1e-6)
    assert figure(out, "free parameters") == 11
    assert figure(out, "AIC") == pytest.approx(float(jg.aic(mixture(), ROWS)), abs=1e-3)
    assert figure(out, "BIC") == pytest.approx(float(jg.bic(mixture(), ROWS)), abs=1e-3)


@pytest.mark.parametrize("ending", FORMATS)
def test_score_writes_the_log_density_of_each_row(small_blocks, capsys, ending):
    out = run(capsys, "score", "model.npz", "table.csv", "--output", f"scores.{ending}")
    assert out.endswith(f"\nwritten  scores.{ending}\n")
    names, values = read_table(f"scores.{ending}")
    assert ending == "npy" or names == ["log_prob"]
    np.testing.assert_allclose(values[:, 0], mixture().log_prob(ROWS), rtol=1e-12)


def test_points_whose_density_is_zero_have_log_density_minus_infinity(capsys):
    write_blocks("far.csv", ["a", "b"], [[np.array([1e200, 0.0])] * 2])
    out = run(capsys, "score", "model.npz", "far.csv", "--output", "scores.csv")
    assert figure(out, "log-likelihood") == -np.inf
    with open("scores.csv") as file:
        assert file.read().splitlines()[1] == "-inf"


@pytest.mark.parametrize("ending", FORMATS)
def test_predict_gives_labels(small_blocks, capsys, ending):
    expected = np.asarray(mixture().predict(ROWS))
    text = run(capsys, "predict", "model.npz", f"table.{ending}")
    assert text == "label\n" + "".join(f"{label}\n" for label in expected)
    run(capsys, "predict", "model.npz", "table.csv", "--output", f"labels.{ending}")
    np.testing.assert_array_equal(read_table(f"labels.{ending}")[1][:, 0], expected)


def test_labels_in_npy_are_integers_that_index(capsys):
    run(capsys, "predict", "model.npz", "table.npy", "--output", "labels.npy")
    labels = np.load("labels.npy")
    assert labels.shape == (40,)
    assert labels.dtype.kind == "i"


@pytest.mark.parametrize("ending", FORMATS)
def test_predict_gives_responsibilities(small_blocks, capsys, ending):
    expected = np.asarray(mixture().responsibilities(ROWS))
    arguments = ["predict", "model.npz", f"table.{ending}", "--responsibilities"]
    names, values = table_of(run(capsys, *arguments))
    assert names == ["component 0", "component 1"]
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    run(capsys, *arguments, "--output", f"sizes.{ending}")
    np.testing.assert_array_equal(read_table(f"sizes.{ending}")[1], values)


@pytest.mark.parametrize(
    ("command", "arguments"), [("score", ["--output", "out.csv"]), ("predict", [])]
)
def test_columns_are_chosen_by_name(capsys, command, arguments):
    expected = run(capsys, command, "model.npz", "table.csv", *arguments)
    out = run(capsys, command, "model.npz", "wide.csv", "--columns", "a,b", *arguments)
    assert out == expected.replace("table.csv", "wide.csv")


@pytest.mark.parametrize("kind", [[], ["--responsibilities"]])
def test_float32_is_quiet_and_close(capsys, kind):
    _, expected = table_of(run(capsys, "predict", "model.npz", "table.npy", *kind))
    _, values = table_of(run(capsys, "predict", "model.npz", "table.npy", *kind, "--float32"))
    np.testing.assert_allclose(values, expected, atol=1e-5)
    total = figure(run(capsys, "score", "model.npz", "table.npy"), "log-likelihood")
    out = run(capsys, "score", "model.npz", "table.npy", "--float32", "--output", "scores.npy")
    assert np.load("scores.npy").dtype == np.float32
    assert figure(out, "log-likelihood") == pytest.approx(total, rel=1e-5)


def test_models_in_float32_score_in_float64(capsys):
    jg.save("single.npz", mixture(np.float32))
    run(capsys, "score", "single.npz", "table.csv", "--output", "scores.npy")
    scores = np.load("scores.npy")
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, mixture(np.float32).log_prob(ROWS), rtol=1e-12)


def test_draws_are_from_the_mixture(capsys):
    names, values = table_of(run(capsys, "sample", "model.npz", "-n", "4000", "--labels"))
    assert names == ["column 0", "column 1", "label"]
    labels = values[:, 2]
    assert set(labels) == {0, 1}
    assert np.mean(labels) == pytest.approx(0.75, abs=5 * np.sqrt(0.25 * 0.75 / 4000))
    for k in range(2):
        x = values[labels == k, :2]
        np.testing.assert_allclose(x.mean(axis=0), mixture().means[k], atol=10 / len(x) ** 0.5)
        np.testing.assert_allclose(np.cov(x.T), mixture().covariances[k], atol=20 / len(x) ** 0.5)


def test_blocks_of_draws_differ_and_more_rows_begin_with_the_same(small_blocks, capsys):
    few = run(capsys, "sample", "model.npz", "-n", "9")
    many = run(capsys, "sample", "model.npz", "-n", "25")
    assert many.startswith(few)
    _, rows = table_of(many)
    assert len(rows) == len(np.unique(rows, axis=0)) == 25
    assert len(few.splitlines()) == 1 + 9


def test_seed_decides_the_draws(capsys):
    draws = [run(capsys, "sample", "model.npz", "-n", "3", "--seed", seed) for seed in "001"]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] == run(capsys, "sample", "model.npz", "-n", "3")


@pytest.mark.parametrize("labels", [[], ["--labels"]])
@pytest.mark.parametrize("ending", FORMATS)
def test_draws_in_a_file_are_those_on_the_terminal(small_blocks, capsys, ending, labels):
    names, values = table_of(run(capsys, "sample", "model.npz", "-n", "20", *labels))
    arguments = ["sample", "model.npz", "-n", "20", *labels, "--output", f"draws.{ending}"]
    assert run(capsys, *arguments) == f"written  draws.{ending}\n"
    read_names, read_values = read_table(f"draws.{ending}")
    np.testing.assert_array_equal(read_values, values)
    assert ending == "npy" or read_names == names


def test_no_draws_are_a_header(capsys):
    assert run(capsys, "sample", "model.npz", "-n", "0") == "column 0,column 1\n"
    run(capsys, "sample", "model.npz", "-n", "0", "--labels", "--output", "none.npy")
    assert np.load("none.npy").shape == (0, 3)


def test_show_says_what_a_model_is(capsys):
    lines = run(capsys, "show", "model.npz").splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["covariance", "type", "full"],
        ["components", "2"],
        ["features", "2"],
        ["free", "parameters", "11"],
        ["dtype", "float64"],
    ]
    cells = [line.split() for line in lines]
    assert ["weight", "0.25", "0.75"] in cells
    assert ["column", "1", "0.1", "9"] in cells
    assert ["column", "1", "0.3", "2"] in cells


def test_show_lays_parameters_out_as_fit_does(capsys):
    assert main(["fit", "table.csv", "--components", "2", "--covariance-type", "tied"]) == 0
    fitted = capsys.readouterr().out
    shown = run(capsys, "show", "fit.npz")
    parameters = shown[shown.index("weight") :].replace("column 0", "a").replace("column 1", "b")
    assert parameters.split() == fitted[fitted.index("weight") : fitted.index("model ")].split()


def test_show_keeps_float32(capsys):
    jg.save("single.npz", mixture(np.float32))
    assert "float32" in run(capsys, "show", "single.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score"], "required: MODEL, FILE"),
        (["score", "model.npz"], "required: FILE"),
        (["predict", "model.npz"], "required: FILE"),
        (["sample"], "required: MODEL, -n"),
        (["sample", "model.npz", "-n", "-1"], "argument -n: expected an integer from 0"),
        (["sample", "model.npz", "-n", "many"], "argument -n: expected an integer from 0"),
        (["sample", "model.npz", "-n", "1", "--seed", "x"], "argument --seed: expected an integer"),
        (["show"], "required: MODEL"),
        (["show", "model.npz", "--float32"], "unrecognized arguments: --float32"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(capsys, arguments, message):
    assert main(arguments) == 2
    assert_refused(capsys, message)


REFUSED = [
    (["score", "none.npz", "table.csv"], "none.npz can't be read: No such file or directory"),
    (["score", ".", "table.csv"], ". can't be read: Is a directory"),
    (["score", "table.csv", "model.npz"], "table.csv is not a jaxgmm file, or is truncated"),
    (["score", "model.npz", "none.csv"], "none.csv: no such file"),
    (["score", "model.npz", "bad.csv"], "bad.csv, line 3, column 'b': 'x' is not a number"),
    (["score", "model.npz", "huge.csv", "--float32"], "too large for float32; leave out"),
    (["score", "huge.npz", "table.csv", "--float32"], "huge.npz doesn't fit in float32, leave out"),
    (["score", "model.npz", "table.csv", "--columns", "c"], "has no column 'c'"),
    (
        ["predict", "model.npz", "wide.csv"],
        "wide.csv gives 3 columns (a, x, b), but model.npz has 2 features; choose as many with "
        "--columns",
    ),
    (["predict", "model.npz", "wide.csv", "--columns", "x"], "gives 1 column (x), but model.npz"),
    (["score", "batch.npz", "table.csv"], "batch.npz holds a batch of mixtures of shape (3,)"),
    (["show", "batch.npz"], "save one of them with jaxgmm.save(path, mixture[b])"),
    (["sample", "batch.npz", "-n", "1"], "expected a single one"),
]
OUTPUTS = [
    (["--output", "table.csv"], "table.csv would overwrite the data"),
    (["--output", "link.npy"], "link.npy would overwrite the model"),
    (["--output", "folder.csv"], "folder.csv is a directory"),
    (["--output", "nowhere/out.csv"], "nowhere/out.csv can't be written: No such file"),
    (["--output", "out.txt"], "must end in .csv, .npy, .parquet, .pq; got out.txt"),
]


@pytest.fixture
def trouble(folder):
    """Files to be refused."""
    (folder / "bad.csv").write_text("a,b\n1,2\n3,x\n")
    (folder / "huge.csv").write_text("1e300,1\n2,3\n")
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), mixture())
    jg.save("batch.npz", batch)
    jg.save("huge.npz", jg.GaussianMixture.create([1.0], [[1e300, 0.0]], [1.0], "spherical"))
    (folder / "link.npy").symlink_to("model.npz")
    (folder / "folder.csv").mkdir()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *REFUSED,
        *((["score", "model.npz", "table.csv", *output], message) for output, message in OUTPUTS),
        *((["predict", "model.npz", "table.csv", *output], message) for output, message in OUTPUTS),
        *(
            (["sample", "model.npz", "-n", "1", *output], message)
            for output, message in OUTPUTS[1:]
        ),
    ],
)
def test_failure_is_one_line_and_code_1_and_prints_nothing(
    trouble, folder, capfd, arguments, message
):
    before = contents(folder)
    assert main(arguments) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("jaxgmm: error: ")
    assert err.count("\n") == 1
    assert message in err
    assert contents(folder) == before


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("command", ["score", "predict"])
@pytest.mark.parametrize("ending", FORMATS)
def test_defect_far_down_leaves_no_output(trouble, small_blocks, folder, capsys, command, ending):
    lines = ["1,2\n"] * 30
    (folder / "late.csv").write_text("".join([*lines, "3,x\n"]))
    before = contents(folder)
    assert main([command, "model.npz", "late.csv", "--output", f"out.{ending}"]) == 1
    assert_refused(capsys, "late.csv, line 31, column 'column 1': 'x' is not a number")
    assert contents(folder) == before


def test_labels_come_before_the_rest_of_the_file_is_read(small_blocks, folder, capsys):
    (folder / "late.csv").write_text("9,9\n" * 7 + "x,y\n" * 3)
    assert main(["predict", "model.npz", "late.csv", "--columns", "0,1"]) == 1
    out, err = capsys.readouterr()
    assert out == "label\n" + "1\n" * 7
    assert "line 8" in err


def test_large_models_are_given_smaller_blocks():
    means = np.zeros((5000, 1))
    large = jg.GaussianMixture.create(np.full(5000, 1 / 5000), means, np.ones(5000), "spherical")
    assert commands._block_rows(mixture()) == 65_536
    assert commands._block_rows(large) == 512


@pytest.mark.parametrize(
    "arguments",
    [["score", "model.npz", "table.csv"], ["sample", "model.npz", "-n", "30000"]],
)
def test_reader_that_went_away_is_met_with_silence(monkeypatch, capfd, arguments):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(arguments) == 141
    assert capfd.readouterr().err == ""


def test_interrupt_leaves_no_output(folder, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_of_rows", interrupt)
    before = contents(folder)
    assert main(["predict", "model.npz", "table.csv", "--output", "labels.csv"]) == 130
    assert capsys.readouterr().err == "jaxgmm: interrupted\n"
    assert contents(folder) == before
