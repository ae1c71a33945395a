"""Tables: what is read, and how what can't be read is refused."""

import bz2
import gzip
import io
import lzma
import os
import sys
import threading
import zipfile

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from jaxgmm.files.table_columns import NotANumberError, TableError
from jaxgmm.files.tables import old_faithful, read_blocks, read_table

pytestmark = pytest.mark.quick


@pytest.fixture
def written(tmp_path):
    def write(content, name="table.csv"):
        path = tmp_path / name
        if isinstance(content, dict):
            pyarrow.parquet.write_table(pyarrow.table(content), path)
        elif isinstance(content, np.ndarray):
            np.save(path, content, allow_pickle=True)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(path, columns=None):
    with pytest.raises(TableError) as caught:
        read_table(path, columns)
    return str(caught.value).removeprefix(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n1,2\n3,4.5\n",
        "a,b\r\n1,2\r\n3,4.5",
        "a,b\r1,2\r3,4.5\r",
        "a;b\n1;2\n3;4.5\n",
        "a\tb\n1\t2\n3\t4.5\n",
        "\ufeffa,b\n1,2\n3,4.5\n",
        "\n\na, b\n\n 1, 2\n3 ,4.5e0\n\n",
        '"a","b"\n"1","2"\n3,4.5\n',
    ],
)
def test_dialects_of_csv_read_the_same(written, text):
    names, rows = read_table(written(text))
    assert names == ["a", "b"]
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(rows, [[1, 2], [3, 4.5]])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1,2\n3,4\n", ["column 0", "column 1"]),
        ("1,b\n3,4\n", ["1", "b"]),
        ("b,\n3,4\n", ["b", "column 1"]),
        ("１,２\n3,4\n", ["１", "２"]),
        ("1_1,1_2\n3,4\n", ["1_1", "1_2"]),
        ("# a,b\n3,4\n", ["a", "b"]),
        ('"a;b;c",d\n3,4\n', ["a;b;c", "d"]),
        ('"a\tb;c",d\n3,4\n', ["a\tb;c", "d"]),
        ('"a ""x"";y",d\n3,4\n', ['a "x";y', "d"]),
        ("length, mm;width, mm\n3;4\n", ["length, mm", "width, mm"]),
    ],
)
def test_header_is_there_if_first_line_has_a_cell_that_is_no_number(written, text, names):
    assert read_table(written(text))[0] == names


TEXT = "größe,b\n" + "1,2\n" * 3000 + "3,4.5\n"


def zipped(content, name="table.csv"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("__MACOSX/._table.csv", b"anything")
    return buffer.getvalue()


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress, zipped])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("name", ["table.csv", "table.csv.gz"])
def test_compressed_text_and_other_encodings_read_the_same(written, compress, encoding, name):
    text = TEXT if encoding != "utf-16-le" else TEXT.replace("ö", "o")
    names, rows = read_table(written(compress(text.encode(encoding)), name))
    assert names == [text[:5], "b"]
    assert rows.shape == (3001, 2)
    np.testing.assert_array_equal(rows[-2:], [[1, 2], [3, 4.5]])


def test_short_text_is_text(written):
    for text in ("5", "5\n", "15"):
        np.testing.assert_array_equal(read_table(written(text))[1], [[float(text)]])


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zipped])
def test_compressed_text_is_read_from_a_pipe(tmp_path, compress):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=[compress(b"a,b\n1,2\n")])
    writer.start()
    np.testing.assert_array_equal(read_table(path)[1], [[1, 2]])
    writer.join()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("größe,b\n1,2\n".encode("latin-1"), " is not UTF-8 (it holds the byte 0xf6, perhaps of"),
        ("a,b\n1,2\n".encode("utf-16")[:-1], " is not UTF-16"),
        (
            gzip.compress(b"1,2\n" * 99, mtime=0)[:-20],
            " can't be decompressed: Compressed file ended",
        ),
        (lzma.compress(b"1,2\n" * 99)[:-20], " can't be decompressed: "),
        (b"PK\x03\x04 and more", " can't be decompressed: "),
        (zipped(b"", "array.npy"), " is an archive of arrays; save one of them with numpy.save"),
        (zipped(b"", "[Content_Types].xml"), " is an Excel workbook; save its table as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", " is an Excel workbook; save its table as CSV"),
        (b"\x28\xb5\x2f\xfd and more", " is compressed by Zstandard; decompress it first"),
        (b"PAR1\x15\x04\x15", " is a Parquet file; it must be a file whose name ends in .parquet"),
        (b"\x93NUMPY\x01\x00", " is a NumPy array; it must be a file whose name ends in .npy"),
    ],
)
def test_what_is_no_text_is_called_by_its_name(written, content, message):
    assert refusal(written(content)).startswith(message)


@pytest.mark.parametrize(
    ("cell", "remedy"),
    [
        ("1,5", "write numbers without commas, and with a point before decimals"),
        ("1,000.5", "write numbers without commas, and with a point before decimals"),
        ("1 2.5", "separate cells by commas, semicolons or tabs"),
        ("x,y", ""),
        ("a 2", ""),
    ],
)
def test_numbers_in_another_notation_are_explained(written, cell, remedy):
    with pytest.raises(NotANumberError) as caught:
        read_table(written(f"a;b\n{cell};1\n"))
    assert caught.value.remedy == remedy
    assert caught.value.numeric == ["b"]


def with_index(**columns):
    return pandas.DataFrame({"a": [1.5, 2.5, 0], "b": [3.5, 4.5, 0]}).assign(**columns)


INDEXED = {
    "filtered": (with_index().set_index(pandas.Index([7, 3, 4])), "__index_level_0__", "column 0"),
    "named": (with_index().set_index(pandas.Index([7, 3, 4], name="id")), "id", None),
    "text": (
        with_index().set_index(pandas.Index(["x", "y", "z"])),
        "__index_level_0__",
        "column 0",
    ),
    "two": (
        with_index().set_index([pandas.Index([7, 3, 4]), pandas.Index([1, 2, 2])]),
        "__index_level_0__', '__index_level_1__",
        "column 0', 'column 1",
    ),
    "numbered": (with_index(), None, "column 0"),
}


@pytest.mark.parametrize("case", INDEXED)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_index_of_a_data_frame_is_left_out_and_named(tmp_path, case, ending):
    frame, *names_of_index = INDEXED[case]
    left_out = names_of_index[ending == "csv"]
    path, said = tmp_path / f"table.{ending}", []
    (frame.to_csv if ending == "csv" else frame.to_parquet)(path)
    if ending == "csv" and case == "named":
        # A column like others, as far as a file without types says.
        assert read_table(path)[0] == ["id", "a", "b"]
        return
    names, rows = read_table(path, notify=said.append)
    assert names == ["a", "b"]
    np.testing.assert_array_equal(rows, [[1.5, 3.5], [2.5, 4.5], [0, 0]])
    assert [f"left out '{left_out}', an index of the rows" in one for one in said] == (
        [True] * (left_out is not None)
    )


@pytest.mark.parametrize(
    "text",
    [
        '"","a","b"\n"1",1,2\n"2",3,4.5\n',
        "Unnamed: 0,a,b\n0,1,2\n1,3,4.5\n",
        ",Unnamed: 0,a,b\n0,x,1,2\n1,y,3,4.5\n",
        "a,__index_level_0__,b\n1,9,2\n3,9,4.5\n",
    ],
)
def test_index_of_other_programs_is_left_out(written, text):
    said = []
    names, rows = read_table(written(text), notify=said.append)
    assert names == ["a", "b"] and len(said) == 1
    np.testing.assert_array_equal(rows, [[1, 2], [3, 4.5]])


def test_frame_without_names_and_index_has_a_header_of_numbers(written):
    """Two of them might as well be data."""
    names, rows = read_table(written("0,1,2\n5,1,2\n1,3,4.5\n"))
    assert (names, rows.tolist()) == (["0", "1", "2"], [[5, 1, 2], [1, 3, 4.5]])
    assert read_table(written("0,1\n5,1\n"))[1].tolist() == [[0, 1], [5, 1]]


def test_frame_without_names_has_a_header_of_numbers(written):
    said = []
    names, rows = read_table(written(",0,1\n0,1,2\n1,3,4.5\n"), notify=said.append)
    assert names == ["0", "1"] and len(said) == 1
    np.testing.assert_array_equal(rows, [[1, 2], [3, 4.5]])


def test_index_is_used_if_it_is_asked_for(written, tmp_path):
    with_index().set_index(pandas.Index([7, 3, 4], name="id")).to_parquet(
        tmp_path / "table.parquet"
    )
    path = written(",a\n7,1.5\n3,2.5\n4,0\n")
    for file, columns in [
        (tmp_path / "table.parquet", ["id", "a"]),
        (path, ["column 0", "a"]),
        (path, ["0", "1"]),
    ]:
        np.testing.assert_array_equal(read_table(file, columns)[1], [[7, 1.5], [3, 2.5], [4, 0]])


def test_table_of_nothing_but_an_index_is_refused(tmp_path):
    pandas.DataFrame(index=[7, 3, 4]).to_parquet(tmp_path / "table.parquet")
    message = " has no columns but an index of rows, '__index_level_0__'"
    assert refusal(tmp_path / "table.parquet") == message


def test_index_that_is_left_out_is_a_warning_by_default(written):
    with pytest.warns(UserWarning, match="left out 'column 0', an index"):
        read_table(written(",a\n0,1\n"))


def read_expecting(path, expected, columns=None):
    names, blocks = read_blocks(path, columns, 9, expected=expected, notify=str)
    return names, np.concatenate([*blocks])


@pytest.mark.parametrize(
    ("content", "expected", "columns", "values"),
    [
        ("b,x,a\n2,y,1\n", ["a", "b"], None, [1, 2]),
        ("b,x,a\n2,y,1\n", ["a", "b"], ["b", "a"], [1, 2]),
        ("b,x,a\n2,y,1\n", ["a", "b"], ["0", "2"], [1, 2]),
        ("1,2\n", ["a", "b"], None, [1, 2]),
        ("2019,2018\n1,2\n", ["2018", "2019"], None, [2, 1]),
        ("None,x,NA\n1,2,3\n", ["NA", "None"], None, [3, 1]),
        ("#1, a\n1,2\n", [" a ", "#1"], None, [2, 1]),
        ("1,2,3\n", ["a", "b"], ["2", "0"], [3, 1]),
        (",a\n7,1\n", ["a", "column 0"], None, [1, 7]),
        ("1,2,3\n", ["column 2", "column 0"], None, [3, 1]),
        ("1,2\n", ["column 0", "column 1"], None, [1, 2]),
        ("column 0,column 2\n1,3\n", ["column 2", "column 0"], None, [3, 1]),
        ("x,y,z\n1,2,3\n", ["column 2", "column 0"], ["z", "x"], [3, 1]),
        ("1,3\n", ["column 0", "column 2"], ["0", "1"], [1, 3]),
    ],
)
def test_columns_are_matched_with_those_expected(written, content, expected, columns, values):
    assert read_expecting(written(content), expected, columns)[1].tolist() == [values]


@pytest.mark.parametrize(
    ("content", "expected", "columns", "message"),
    [
        ("a,x\n1,2\n", ["a", "b", "c"], None, " has no column 'b', 'c', which the model was fitte"),
        ("a,b\n1,2\n", ["a", "b"], ["a"], "has no column 'b', .*; the chosen columns are a$"),
        ("a,b,c\n1,2,3\n", ["a", "b"], ["a", "b", "c"], "not fitted to 'c' of .*, but to a, b$"),
        ("a,b,b\n1,2,3\n", ["a", "b"], None, "has 2 columns named 'b'"),
        ("1,2\n", ["column 2", "column 0"], None, "with --columns where .* --columns 0,1 if they"),
        ("1,2\n", ["column 2", "column 5", "column 0"], None, "has no column '2'"),
    ],
)
def test_columns_that_do_not_match_are_refused(written, content, expected, columns, message):
    with pytest.raises(TableError, match=message):
        read_expecting(written(content), expected, columns)


@pytest.mark.parametrize("name", ["table.csv", "table.npy", "table.parquet"])
def test_missing_values_are_nan_where_they_are_allowed(written, name):
    content = {
        "table.csv": "1,2\n,4\nNA,nan\n7, ?\n",
        "table.npy": np.array([[1, 2], [np.nan, 4], [np.nan, np.nan], [7, np.nan]]),
        "table.parquet": {"a": [1, None, None, 7], "b": [2.0, 4.0, float("nan"), None]},
    }[name]
    _, rows = read_table(written(content, name), allow_missing=True)
    nan = np.nan
    np.testing.assert_array_equal(rows, [[1, 2], [nan, 4], [nan, nan], [7, nan]])


def test_empty_cell_of_a_single_column_is_a_row_and_an_empty_line_is_none(written):
    _, rows = read_table(written('a\n1\n""\n\n  \n3\n'), allow_missing=True)
    np.testing.assert_array_equal(rows, [[1], [np.nan], [3]])


@pytest.mark.parametrize("name", ["table.csv", "table.npy", "table.parquet"])
def test_infinity_is_no_missing_value(written, name):
    content = {
        "table.csv": "1,inf\n",
        "table.npy": np.array([[1, np.inf]]),
        "table.parquet": {"a": [1], "b": [np.inf]},
    }[name]
    with pytest.raises(TableError, match="inf"):
        read_table(written(content, name), allow_missing=True)


def test_numbers_in_text_are_read_exactly(written):
    values = np.random.default_rng(0).normal(size=(50, 3)) * 10.0 ** np.arange(-200, 101, 150)
    text = "\n".join(",".join(map(repr, row)) for row in values.tolist())
    np.testing.assert_array_equal(read_table(written(text))[1], values)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.uint8, np.float16, np.float32, np.float64])
def test_npy_of_every_real_dtype(written, dtype):
    values = np.arange(6).reshape(3, 2).astype(dtype)
    names, rows = read_table(written(np.asfortranarray(values), "table.npy"))
    assert names == ["column 0", "column 1"]
    assert rows.dtype == np.float64
    np.testing.assert_array_equal(rows, values)


def test_npy_with_one_axis_is_one_column(written):
    assert read_table(written(np.arange(4.0), "table.npy"))[1].shape == (4, 1)


def test_parquet_of_every_kind_of_number(written):
    columns = {"a": [1, 2], "b": [0.5, 1.5], "c": [True, False]}
    names, rows = read_table(written(columns, "table.parquet"))
    assert names == ["a", "b", "c"]
    np.testing.assert_array_equal(rows, [[1, 0.5, 1], [2, 1.5, 0]])


@pytest.mark.parametrize(
    ("content", "name", "columns"),
    [
        ("a,b,c\nx,1,2\ny,3,4\n", "table.csv", ["c", "b"]),
        ("1,2,\n3,4,NA\n", "table.csv", ["1", "0"]),
        ({"a": ["x", "y"], "b": [1, 3], "c": [2, 4]}, "table.parquet", ["c", "b"]),
        ("a,b,c\nx,1,2\ny,3,4\n", "table.csv", ["2", "1"]),
        ("0,2,a\nx,1,2\ny,3,4\n", "table.csv", ["a", "2"]),
        ("a,a,b\n1,2,x\n3,4,x\n", "table.csv", ["1", "0"]),
        ({"a": ["x", "y"], "b": [1, 3], "c": [2, 4]}, "table.parquet", ["2", "1"]),
        (np.array([[0, 1, 2], [np.nan, 3, 4]]), "table.npy", ["2", "1"]),
    ],
)
def test_selected_columns_come_in_the_order_asked_for(written, content, name, columns):
    np.testing.assert_array_equal(read_table(written(content, name), columns)[1], [[2, 1], [4, 3]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", " is empty"),
        ("\n \n", " is empty"),
        ("a,b\n", " holds no rows of data"),
        ("a,b\n1,2\n3,x\n", ", line 3, column 'b': 'x' is not a number"),
        ("\n\na,b\n\n1,2\n3,x\n", ", line 6, column 'b': 'x' is not a number"),
        ("1,2\n3,x\n", ", line 2, column 'column 1': 'x' is not a number"),
        ("a;b\n1,5;2,5\n", ", line 2, column 'a': '1,5' is not a number"),
        ("a,b\n1,2\n,3\n", ", line 3, column 'a': the value is missing ('')"),
        ("1,NA\n2,3\n", ", line 1, column 'column 1': the value is missing ('NA')"),
        ("a,b\n1,2\n1,nan\n", ", line 3, column 'b': the value is missing ('nan')"),
        ("a,b\n-inf,2\n", ", line 2, column 'a': '-inf' is not finite"),
        ("a,b\n1_2,2\n", ", line 2, column 'a': '1_2' is not a number"),
        ("a,b\n1,２\n", ", line 2, column 'b': '２' is not a number"),
        ("1\n٣\n", ", line 2, column 'column 0': '٣' is not a number"),
        ("a,b\n1,2\n1\n", ", line 3: the row has 1 cell, expected 2"),
        ("a,b\n1,2\n1,2,3\n", ", line 3: the row has 3 cells, expected 2"),
        ('a,b\n1,"2\n', " can't be read as CSV: unexpected end of data"),
        (
            b"\x89PNG\x00\xff\xfe",
            " is not text; arrays must be named .npy and Parquet files .parquet",
        ),
    ],
)
def test_defects_of_text_are_named_by_their_place(written, text, message):
    assert refusal(written(text)) == message


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 2, 2)), " must hold rows and columns, it holds shape (2, 2, 2)"),
        (np.ones(()), " must hold rows and columns, it holds shape ()"),
        (np.ones((0, 3)), " holds no rows of data"),
        (np.ones((3, 0)), " holds no rows of data"),
        (np.array(["a", "b"]), " must hold real numbers, it holds <U1"),
        (np.ones(2, complex), " must hold real numbers, it holds complex128"),
        (np.array([[1.0, 2.0], [3.0, np.inf]]), ", row 1 (from 0), column 'column 1': inf"),
    ],
)
def test_defects_of_npy_are_named(written, array, message):
    assert refusal(written(array, "table.npy")) == message


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", np.array([object(), 1]), b"\x93NUMPY\x01\x00\x10\x00{"]
)
def test_npy_that_is_truncated_or_foreign_or_pickled_is_refused(written, content):
    assert "can't be read as an NPY file" in refusal(written(content, "table.npy"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": [1.0, None]}, ", row 1 (from 0), column 'a': the value is missing"),
        ({"a": [1.0, float("nan")]}, ", row 1 (from 0), column 'a': nan"),
        ({"a": [1.0], "b": ["x"]}, ", column 'b': string is not a type of number"),
        ({"a": pyarrow.array([], pyarrow.float64())}, " holds no rows of data"),
    ],
)
def test_defects_of_parquet_are_named(written, content, message):
    assert refusal(written(content, "table.parquet")) == message


def test_foreign_parquet_is_refused(written):
    assert "can't be read as Parquet" in refusal(written("a,b\n1,2\n", "table.parquet"))


def test_parquet_without_pyarrow_says_what_to_install(written, monkeypatch):
    path = written({"a": [1.0]}, "table.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in refusal(path)


@pytest.mark.parametrize("name", ["none.csv", "none.npy", "none.parquet"])
def test_file_that_is_not_there_is_named(tmp_path, name):
    assert refusal(tmp_path / name) == ": no such file"


def test_directory_is_no_table(tmp_path):
    assert refusal(tmp_path) == " is a directory, expected a file"


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("a,b\n1,2\n", ["c"], " has no column 'c'; its columns are a, b"),
        ("a,b\n1,2\n", ["2"], " has no column '2'; its columns are a, b"),
        ("a,b\n1,2\n", ["-1"], " has no column '-1'; its columns are a, b"),
        ("a,b\n1,2\n", ["１"], " has no column '１'; its columns are a, b"),
        ("1,2\n3,4\n", ["2"], " has no column '2'; its columns are 0, 1"),
        ("a,a\n1,2\n", ["a"], " has 2 columns named 'a'"),
    ],
)
def test_unknown_columns_are_refused_with_a_list(written, content, columns, message):
    assert refusal(written(content), columns) == message


@pytest.mark.parametrize("columns", [[], ["a", "a"]])
def test_selection_must_name_different_columns(written, columns):
    assert "expected different columns" in refusal(written("a,b\n1,2\n"), columns)


def test_old_faithful_has_272_eruptions():
    names, rows = old_faithful()
    assert names == ["eruptions", "waiting"]
    assert rows.shape == (272, 2)
    np.testing.assert_allclose(rows.mean(axis=0), [3.487783, 70.897059], atol=1e-6)


def test_old_faithful_gives_single_columns():
    assert old_faithful(["waiting"])[1].shape == (272, 1)


ROWS = np.random.default_rng(1).normal(size=(10, 2))
FORMATS = {
    "table.csv": "a,b\n\n" + "\n".join(",".join(map(repr, row)) for row in ROWS.tolist()),
    "table.npy": ROWS,
    "table.parquet": {"a": ROWS[:, 0], "b": ROWS[:, 1]},
}
BROKEN = {
    "table.csv": ("a,b\n1,2\n\n3,4\n5,6\n7,x\n", ", line 6, column 'b': 'x' is not a number"),
    "table.npy": (
        np.array([[1, 2], [3, 4], [5, 6], [7, np.nan]]),
        ", row 3 (from 0), column 'column 1': nan",
    ),
    "table.parquet": (
        {"a": [1, 3, 5, 7], "b": [2.0, 4.0, 6.0, None]},
        ", row 3 (from 0), column 'b': the value is missing",
    ),
    "table.pq": (
        {"a": [1, 3, 5, 7], "b": [2, 4, 6, np.inf]},
        ", row 3 (from 0), column 'b': inf",
    ),
}


@pytest.mark.parametrize("block_rows", [1, 4, 5, 100])
@pytest.mark.parametrize("name", FORMATS)
def test_blocks_behind_each_other_are_the_table(written, name, block_rows):
    names, blocks = read_blocks(written(FORMATS[name], name), None, block_rows)
    blocks = list(blocks)
    assert names == (["column 0", "column 1"] if name.endswith("npy") else ["a", "b"])
    assert [len(block) for block in blocks[:-1]] == [block_rows] * (len(blocks) - 1)
    assert all(block.dtype == np.float64 for block in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks), ROWS)


@pytest.mark.parametrize("name", FORMATS)
def test_blocks_hold_the_selected_columns(written, name):
    columns = ["1", "0"] if name.endswith("npy") else ["b", "a"]
    _, blocks = read_blocks(written(FORMATS[name], name), columns, 3)
    np.testing.assert_array_equal(np.concatenate(list(blocks)), ROWS[:, ::-1])


@pytest.mark.parametrize("name", BROKEN)
def test_blocks_come_before_the_rest_is_read_and_defects_keep_their_place(written, name):
    content, message = BROKEN[name]
    path = written(content, name)
    _, blocks = read_blocks(path, None, 2)
    np.testing.assert_array_equal(next(blocks), [[1, 2], [3, 4]])
    with pytest.raises(TableError) as caught:
        next(blocks)
    assert str(caught.value) == str(path) + message
    assert refusal(path) == message


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("a,b\nx,y\n", ["c"], "has no column 'c'"),
        ({"a": ["x"]}, None, "string is not a type of number"),
        (np.ones((2, 2, 2)), None, "must hold rows and columns"),
        ("", None, "is empty"),
    ],
)
def test_what_the_head_of_a_file_shows_is_refused_before_any_block(
    written, content, columns, message
):
    name = {dict: "table.pq", np.ndarray: "table.npy"}.get(type(content), "table.csv")
    with pytest.raises(TableError, match=message):
        read_blocks(written(content, name), columns, 2)


def test_text_is_read_as_it_comes(tmp_path):
    """From a pipe that nobody has closed yet."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    holder = os.open(path, os.O_RDWR)
    os.write(holder, b"a,b\n" + b"1.25,2.5\n" * 3000)
    _, blocks = read_blocks(path, None, 2)
    np.testing.assert_array_equal(next(blocks), [[1.25, 2.5]] * 2)
    os.close(holder)
