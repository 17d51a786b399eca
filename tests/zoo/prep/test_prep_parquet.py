"""Tests damaged Parquet files, and files that expand to far more than their size."""

import os
import random
import resource

import pytest

from tests import pages

pytest.importorskip("trafilatura", reason="needs the extra `prep`")

import pyarrow
from pyarrow import parquet

from zoo.prep.document import Tally
from zoo.prep.reading import parquet as zoo_parquet
from zoo.prep.reading import read, unpack


def write(path, text, rows=1, **options):
    """Writes a string in all rows, or a column, compressed to less than 100 kB."""
    if isinstance(text, str):
        value, places = pyarrow.array([text]), pyarrow.array([0] * rows, pyarrow.int32())
        text = pyarrow.DictionaryArray.from_arrays(places, value)
    table = pyarrow.table({"text": text})
    parquet.write_table(table, path, compression="zstd", **options)
    assert path.stat().st_size < 100_000


def understate_size(path):
    """Changes the footer to declare an uncompressed column size of one byte."""

    def varint(value):
        encoded = bytearray()
        while value > 127:
            encoded.append(value & 127 | 128)
            value >>= 7
        return bytes([*encoded, value])

    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    column = parquet.read_metadata(path).row_group(0).column(0)
    size = varint(2 * column.total_uncompressed_size)
    assert data.count(size, footer) == 2
    one = b"\x82" + b"\x80" * (len(size) - 2) + b"\0"
    path.write_bytes(data[:footer] + data[footer:].replace(size, one))
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
    ("name", "understated"),
    [(name, false) for name in BOMBS for false in (False, True) if not (false and "rows" in name)],
)
def test_a_bomb_is_refused_in_little_memory(tmp_path, name, understated):
    path = tmp_path / "a.parquet"
    BOMBS[name](path)
    if understated:
        understate_size(path)
    # Python does not trace the allocations of pyarrow; the kernel counts them.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    count, total, tally = 0, 0, Tally()
    shard = {"files": [{"path": str(path), "kind": "parquet"}], "stripe": 0, "stripes": 1}
    for document in read.documents(shard, pages.settings(), tally):
        count, total = count + 1, total + len(document.text)
        assert total < 100 << 20, "read more than the limit of the file"
    assert tally.unreadable["files: bomb"] == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_a_text_that_many_rows_share_is_not_a_bomb(tmp_path):
    write(tmp_path / "a.parquet", "a text of some words " * 100, 5000)
    documents, unreadable = pages.read_all(tmp_path)
    assert (len(documents), unreadable) == (5000, {})


def test_a_column_of_lists_is_not_text(tmp_path):
    write(tmp_path / "a.parquet", pyarrow.array([["a"] * 1_000_000]))
    assert pages.read_all(tmp_path) == ([], {"records without text": 1})


def test_a_damaged_row_group_costs_only_itself(tmp_path):
    texts = [f"text {number}" for number in range(30)]
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": texts})
    parquet.write_table(table, path, row_group_size=10, use_dictionary=False)
    column = parquet.read_metadata(path).row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    documents, unreadable = pages.read_all(tmp_path)
    assert [document.text for document in documents] == texts[:10] + texts[20:]
    assert unreadable == {"row groups damaged": 1}


def write_groups(path, **options):
    """Writes three row groups; returns the bytes of the file and the offset of the footer."""
    table = pyarrow.table({"text": [f"text {number}" for number in range(30)]})
    parquet.write_table(table, path, row_group_size=10, **options)
    data = path.read_bytes()
    return bytearray(data), len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def test_a_flipped_bit_crashes_nothing_and_loses_no_row_silently(tmp_path):
    """Some flips made pyarrow crash the process or skip a row group without an error."""
    path = tmp_path / "a.parquet"
    good, footer = write_groups(path, compression="none")
    draw = random.Random(4)
    places = [*range(footer, len(good)), *draw.choices(range(footer), k=100)]
    for place in places:
        data = bytearray(good)
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        documents, unreadable = pages.read_all(path)
        assert len(documents) == 30 or unreadable, place


def test_a_damaged_page_is_detected_by_its_checksum(tmp_path):
    path = tmp_path / "a.parquet"
    options = {"use_dictionary": False, "compression": "none", "write_page_checksum": True}
    data, _ = write_groups(path, **options)
    place = data.index(b"text 14")
    data[place + 5 : place + 7] = b"99"
    path.write_bytes(data)
    documents, unreadable = pages.read_all(path)
    assert [document.text for document in documents] == [
        f"text {i}" for i in (*range(10), *range(20, 30))
    ]
    assert unreadable == {"row groups damaged": 1}


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_every_encoding_of_text_is_read(tmp_path, encoding):
    path = tmp_path / "a.parquet"
    write_groups(path, use_dictionary=False, column_encoding={"text": encoding})
    documents, unreadable = pages.read_all(path)
    assert [document.text for document in documents] == [f"text {number}" for number in range(30)]
    assert not unreadable


def test_a_prefix_that_many_rows_share_takes_no_memory(tmp_path, monkeypatch):
    """Delta encoded, each row is what the one before it was, and nothing more."""
    path, free = tmp_path / "a.parquet", 4 << 20
    monkeypatch.setattr(unpack, "FREE_BYTES", free)
    monkeypatch.setattr(zoo_parquet, "FREE_BYTES", free)
    for kind in ("string", "large_binary"):
        value = pyarrow.array(["a" * (1 << 20)] * 100).cast(kind)
        encoding = {"text": "DELTA_BYTE_ARRAY"}
        table = pyarrow.table({"text": value})
        parquet.write_table(table, path, use_dictionary=False, column_encoding=encoding)
        del value, table
        before = pyarrow.total_allocated_bytes()
        shard = {"files": [{"path": str(path), "kind": "parquet"}], "stripe": 0, "stripes": 1}
        tally, most = Tally(), 0
        for _ in read.documents(shard, pages.settings(), tally):
            most = max(most, pyarrow.total_allocated_bytes() - before)
        assert tally.unreadable == {"files: bomb": 1}
        assert 0 < most < 20 << 20


def test_a_date_without_a_known_time_zone_costs_no_text(tmp_path):
    dates = pyarrow.array([1], pyarrow.timestamp("us", "Mars/Olympus"))
    parquet.write_table(pyarrow.table({"text": ["one"], "date": dates}), tmp_path / "a.parquet")
    (document,), unreadable = pages.read_all(tmp_path)
    assert (document.text, document.date, unreadable) == ("one", "", {})


def test_a_file_without_rows_holds_no_records(tmp_path):
    empty = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    parquet.write_table(empty, tmp_path / "a.parquet")
    assert pages.read_all(tmp_path) == ([], {"files: no records": 1})


@pytest.mark.parametrize("kind", ["parquet", "warc", "jsonl", "html", "text"])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_file_that_became_a_pipe_is_not_waited_for(tmp_path, kind, ending):
    os.mkfifo(tmp_path / f"a{ending}")
    tally = Tally()
    file = {"path": str(tmp_path / f"a{ending}"), "kind": kind}
    shard = {"files": [file], "stripe": 0, "stripes": 1}
    assert not list(read.documents(shard, pages.settings(), tally))
    assert tally.unreadable == {"files: cannot be read": 1}
