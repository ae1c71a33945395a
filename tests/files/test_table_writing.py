"""Tables that are written: exact, whole or not at all, and a block at a time."""

import io
import os
import sys

import numpy as np
import pytest

from jaxgmm.files.table_columns import TableError
from jaxgmm.files.table_writing import write_blocks, write_text
from jaxgmm.files.tables import read_table

NAMES = ["a", "b, c"]
FILES = ["table.csv", "table.npy", "table.parquet", "table.pq", "TABLE.CSV"]


def blocks_of(*lengths, dtype=np.float64):
    """Blocks with two columns, of numbers of all sizes."""
    rng = np.random.default_rng(0)
    return [
        [(rng.normal(size=n) * 10.0 ** rng.integers(-20, 20, n)).astype(dtype) for _ in NAMES]
        for n in lengths
    ]


def rows_of(blocks):
    return np.concatenate([np.stack(block, axis=-1) for block in blocks])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("lengths", [(1,), (3, 3, 2), (9, 2), (700, 700)], ids=str)
@pytest.mark.parametrize("file", FILES)
def test_numbers_come_back_exactly(tmp_path, file, lengths, dtype):
    blocks = blocks_of(*lengths, dtype=dtype)
    write_blocks(tmp_path / file, NAMES, blocks)
    names, rows = read_table(tmp_path / file)
    assert names == (["column 0", "column 1"] if file.endswith("npy") else NAMES)
    np.testing.assert_array_equal(rows, rows_of(blocks))
    assert os.listdir(tmp_path) == [file]


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float32, np.float64])
def test_npy_keeps_the_dtype_and_gives_a_single_column_one_axis(tmp_path, dtype):
    column = np.arange(5).astype(dtype)
    write_blocks(tmp_path / "one.npy", ["a"], [[column[:2]], [column[2:]]])
    write_blocks(tmp_path / "two.npy", ["a", "b"], [[column, column]])
    one, two = np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy")
    assert one.dtype == two.dtype == dtype
    np.testing.assert_array_equal(one, column)
    np.testing.assert_array_equal(two, np.stack([column, column], axis=-1))


def test_columns_of_different_dtypes_keep_theirs_where_there_is_room(tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    block = [np.array([0.5, 1.5]), np.array([1, 2])]
    for file in ("table.csv", "table.npy", "table.pq"):
        write_blocks(tmp_path / file, NAMES, [block])
    assert (tmp_path / "table.csv").read_text() == 'a,"b, c"\n0.5,1\n1.5,2\n'
    assert np.load(tmp_path / "table.npy").dtype == np.float64
    types = pyarrow.read_schema(tmp_path / "table.pq").types
    assert [str(kind) for kind in types] == ["double", "int64"]


@pytest.mark.parametrize("file", FILES)
def test_table_without_rows_is_a_table(tmp_path, file):
    write_blocks(tmp_path / file, NAMES, blocks_of(0))
    with pytest.raises(TableError, match="holds no rows of data"):
        read_table(tmp_path / file)


def test_infinities_are_words_in_text():
    text = io.StringIO()
    write_text(text, ["a"], [[np.array([-np.inf, 1.0])]])
    assert text.getvalue() == "a\n-inf\n1.0\n"


@pytest.mark.parametrize("file", FILES)
def test_block_is_written_before_the_next_is_made(tmp_path, file):
    """A file that grows while its blocks are made isn't held in memory."""
    sizes = []

    def blocks():
        for block in blocks_of(*[60_000] * 4):
            yield block
            sizes.append(max(entry.stat().st_size for entry in os.scandir(tmp_path)))

    write_blocks(tmp_path / file, NAMES, blocks())
    assert sizes[0] > 100_000
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("file", FILES)
def test_failure_on_the_way_leaves_what_was_there(tmp_path, file):
    (tmp_path / file).write_text("before")

    def blocks():
        yield from blocks_of(5)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_blocks(tmp_path / file, NAMES, blocks())
    assert os.listdir(tmp_path) == [file]
    assert (tmp_path / file).read_text() == "before"


@pytest.mark.parametrize("file", ["table", "table.xlsx"])
def test_unknown_ending_is_refused_with_a_list(tmp_path, file):
    with pytest.raises(TableError, match=r"must end in \.csv, \.npy, \.parquet, \.pq; got .*table"):
        write_blocks(tmp_path / file, NAMES, blocks_of(1))
    assert os.listdir(tmp_path) == []


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TableError, match="pip install pyarrow"):
        write_blocks(tmp_path / "table.pq", NAMES, blocks_of(1))
    assert os.listdir(tmp_path) == []
