"""Parquet files that declare or hold far more than their bytes, and damaged ones."""

import os
import resource

import pytest

from tests import pages

pytest.importorskip("trafilatura", reason="needs the extra `prep`")

import pyarrow
from pyarrow import parquet

from zoo.prep.document import Tally
from zoo.prep.reading import read


def write(path, text, rows=1, **options):
    """Writes one value in all rows, or a column; Zstandard, so that repetitions take no space."""
    if isinstance(text, str):
        value, places = pyarrow.array([text]), pyarrow.array([0] * rows, pyarrow.int32())
        text = pyarrow.DictionaryArray.from_arrays(places, value)
    table = pyarrow.table({"text": text})
    parquet.write_table(table, path, compression="zstd", **options)
    assert path.stat().st_size < 100_000


def understated(path):
    """Makes the footer say that the data of the column take one byte."""

    def varint(value):
        made = bytearray()
        while value > 127:
            made.append(value & 127 | 128)
            value >>= 7
        return bytes([*made, value])

    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    column = parquet.read_metadata(path).row_group(0).column(0)
    said = varint(2 * column.total_uncompressed_size)
    assert data.count(said, footer) == 2
    said_now = b"\x82" + b"\x80" * (len(said) - 2) + b"\0"
    path.write_bytes(data[:footer] + data[footer:].replace(said, said_now))
    column = parquet.read_metadata(path).row_group(0).column(0)
    assert column.total_uncompressed_size == 1


BOMBS = {
    "one value in many rows": lambda path: write(path, "a" * (10 << 20), 3000),
    "a large value": lambda path: write(path, pyarrow.array(["a" * (90 << 20)])),
    "a large page": lambda path: write(
        path, pyarrow.array(["a" * (90 << 20)]), use_dictionary=False
    ),
    "millions of rows without a value": lambda path: write(
        path, pyarrow.nulls(2_000_000, pyarrow.string())
    ),
}


@pytest.mark.parametrize(
    ("name", "lies"),
    [(name, lies) for name in BOMBS for lies in (False, True) if not (lies and "rows" in name)],
)
def test_a_bomb_is_refused_in_little_memory(tmp_path, name, lies):
    path = tmp_path / "a.parquet"
    BOMBS[name](path)
    if lies:
        understated(path)
    # What pyarrow allocates is in no trace of Python's: the kernel counts it.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count, total, tally = 0, 0, Tally()
    shard = {"files": [{"path": str(path), "kind": "parquet"}], "stripe": 0, "stripes": 1}
    for document in read.documents(shard, pages.settings(), tally):
        count, total = count + 1, total + len(document.text)
        assert total < 100 << 20, "more was read than the file may hold"
    assert tally.unreadable["files: bomb"] == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_text_that_many_rows_share_is_no_bomb(tmp_path):
    write(tmp_path / "a.parquet", "a text of some words " * 100, 5000)
    found, unreadable = pages.read_all(tmp_path)
    assert (len(found), unreadable) == (5000, {})


def test_a_column_of_lists_is_no_text(tmp_path):
    write(tmp_path / "a.parquet", pyarrow.array([["a"] * 1_000_000]))
    assert pages.read_all(tmp_path) == ([], {"records without text": 1})


def test_a_damaged_row_group_costs_itself_alone(tmp_path):
    texts = [f"text {number}" for number in range(30)]
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": texts})
    parquet.write_table(table, path, row_group_size=10, use_dictionary=False)
    column = parquet.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    found, unreadable = pages.read_all(tmp_path)
    assert [document.text for document in found] == texts[:10] + texts[20:]
    assert unreadable == {"row groups damaged": 1}


@pytest.mark.parametrize("kind", ["parquet", "warc", "jsonl", "html", "text"])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_file_that_became_a_pipe_is_not_waited_for(tmp_path, kind, ending):
    os.mkfifo(tmp_path / f"a{ending}")
    tally = Tally()
    file = {"path": str(tmp_path / f"a{ending}"), "kind": kind}
    shard = {"files": [file], "stripe": 0, "stripes": 1}
    assert not list(read.documents(shard, pages.settings(), tally))
    assert tally.unreadable == {"files: cannot be read": 1}
