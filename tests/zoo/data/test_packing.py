"""Packing: every token is a target once, and documents stay separate."""

import gzip
import os
import re
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from zoo.data.text.packing import best_fit, best_fit_decreasing, stream
from zoo.errors import UsageError

ROWS = [(seed, length) for seed in range(12) for length in (2, 3, 7, 32)]


def documents(seed, count=60, longest=90):
    """Documents with distinct tokens from 10 on: a token identifies its document and position."""
    numbers = np.random.default_rng(seed)
    # Short and long ones, empty ones and exact multiples of the length.
    lengths = np.floor(np.exp(numbers.uniform(0, np.log(longest), count))).astype(int)
    lengths[::7], lengths[3::9] = 0, 32
    ends = np.cumsum(lengths)
    return [np.arange(end - n, end) + 10 for n, end in zip(lengths, ends, strict=True)]


def pack(source, length, start_id=None, end_id=None, **options):
    chunks = list(best_fit(source, length, start_id=start_id, end_id=end_id, **options))
    tokens, segments = (np.concatenate(part) for part in zip(*chunks, strict=True))
    assert (tokens.dtype, segments.dtype) == (np.int32, np.int32)
    assert tokens.shape == segments.shape == (len(tokens), length)
    return tokens, segments


def runs(tokens, segments):
    """Returns the pieces in the rows."""
    for row, numbers in zip(tokens, segments, strict=True):
        for number in range(1, numbers.max() + 1):
            yield row[numbers == number]


@pytest.mark.parametrize(("seed", "length"), ROWS)
def test_every_token_but_a_documents_first_is_a_target_once(seed, length):
    source = documents(seed)
    tokens, segments = pack(source, length, buffer=9)
    target = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    # The token before a target is its input: neighbors in the document.
    np.testing.assert_array_equal(tokens[:, 1:][target], tokens[:, :-1][target] + 1)
    expected = np.concatenate([document[1:] for document in source])
    np.testing.assert_array_equal(np.sort(tokens[:, 1:][target]), expected)


@pytest.mark.parametrize(("seed", "length"), ROWS)
def test_the_documents_can_be_put_together_again(seed, length):
    source = [document for document in documents(seed) if len(document)]
    pieces = {piece[0]: piece for piece in runs(*pack(source, length, buffer=9))}
    restored = []
    for document in source:
        parts = [pieces.pop(document[0])]
        while len(parts[-1]) == length and parts[-1][-1] in pieces:
            parts.append(pieces.pop(parts[-1][-1]))
        assert all(len(part) == length for part in parts[:-1])
        assert all(len(part) > 1 for part in parts[1:])  # a piece has at least one target
        restored.append(np.concatenate([parts[0], *(part[1:] for part in parts[1:])]))
    assert not pieces
    for document, again in zip(source, restored, strict=True):
        np.testing.assert_array_equal(document, again)


@pytest.mark.parametrize(("seed", "length"), ROWS)
def test_a_segment_holds_one_document_and_padding_is_at_the_end(seed, length):
    source = documents(seed)
    owner = np.repeat(np.arange(len(source)), [len(document) for document in source])
    tokens, segments = pack(source, length, buffer=9)
    for piece in runs(tokens, segments):
        assert len(set(owner[piece - 10])) == 1
        np.testing.assert_array_equal(np.diff(piece), 1)
    assert (tokens[segments == 0] == 0).all()
    assert (tokens[segments > 0] >= 10).all()
    # 1, 2, 3 … from the left without gaps, then padding.
    assert (segments[:, 0] == 1).all()
    step = np.diff(segments, axis=1)
    assert np.isin(step[segments[:, 1:] > 0], (0, 1)).all()
    assert (segments[:, 1:][segments[:, :-1] == 0] == 0).all()


def test_start_and_end_frame_each_document_once():
    source = documents(0)
    tokens, segments = pack(source, 16, start_id=1, end_id=2)
    nonempty = [document for document in source if len(document)]
    assert (np.count_nonzero(tokens == 1), np.count_nonzero(tokens == 2)) == (
        len(nonempty),
        len(nonempty),
    )
    pieces = list(runs(tokens, segments))
    assert {piece[1] for piece in pieces if piece[0] == 1} == {document[0] for document in nonempty}
    assert {piece[-2] for piece in pieces if piece[-1] == 2 and len(piece) > 2} <= {
        document[-1] for document in nonempty
    }
    target = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    assert target.sum() == sum(len(document) + 1 for document in nonempty)


def test_the_stream_is_the_documents_one_after_the_other():
    source = [np.array([5, 6]), np.array([], int), np.array([7], np.uint16), [8, 9]]
    counts = Counter()
    pieces = list(stream(source, start_id=1, end_id=None, counts=counts))
    assert np.concatenate(pieces).tolist() == [1, 5, 6, 1, 7, 1, 8, 9]
    assert {part.dtype for part in pieces} == {np.dtype(np.int32)}
    assert counts == {"documents": 3, "empty_documents": 1, "tokens": 8}
    pieces = np.concatenate(list(stream(source, start_id=None, end_id=2)))
    assert pieces.tolist() == [5, 6, 2, 7, 2, 8, 9, 2]
    assert np.concatenate(list(stream(source, start_id=None, end_id=None))).tolist() == [
        5, 6, 7, 8, 9,
    ]  # fmt: skip


def test_what_was_packed_is_counted():
    source, counts = documents(3), Counter()
    tokens, segments = pack(source, 32, start_id=1, end_id=2, buffer=9, counts=counts)
    empty = sum(not len(document) for document in source)
    assert empty > 5
    assert counts == {
        "documents": len(source) - empty,
        "empty_documents": empty,
        "tokens": sum(len(document) + 2 for document in source if len(document)),
        "rows": len(tokens),
        "padding": np.count_nonzero(segments == 0),
    }


@pytest.mark.parametrize("source", [[], [[], np.zeros(0)]])
def test_no_documents_are_no_rows(source):
    assert list(best_fit(source, 8, start_id=1, end_id=2)) == []


def test_documents_are_read_as_needed_and_rows_do_not_change():
    first = list(best_fit(documents(1), 16, start_id=None, end_id=None, buffer=8))
    again = list(best_fit(iter(documents(1)), 16, start_id=None, end_id=None, buffer=8))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    read = Counter()

    def endless():
        for number in range(20_000):
            read["documents"] += 1
            yield np.full(40 if number % 2 else 3, 7)

    rows = best_fit(endless(), 16, start_id=None, end_id=None, buffer=100)
    for _ in range(3):
        next(rows)
    assert read["documents"] <= 300
    # Rows of long documents are not held back until the buffer is full.
    source = (np.zeros(16 * 15 + 1, int) for _ in endless())
    read.clear()
    next(best_fit(source, 16, start_id=None, end_id=None))
    assert read["documents"] * 16 <= 1024 + 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"length": 1}, "length must be at least 2. Received: 1"),
        ({"buffer": 0}, "buffer must be at least 1. Received: 0"),
        ({"documents": [np.zeros(3)]}, r"Received: \(3,\) float64"),
        ({"documents": [np.zeros((3, 1), int)]}, r"Received: \(3, 1\) int64"),
    ],
)
def test_a_wrong_request_is_told(change, words):
    arguments = {"documents": [np.arange(3)], "length": 8, "start_id": None, "end_id": None}
    with pytest.raises(UsageError, match=words):
        list(best_fit(**(arguments | change)))


# --- best-fit-decreasing ------------------------------------------------------------------------


def rooms_one_by_one(lengths, capacity):
    """Textbook best-fit-decreasing; returns the room left in each bin."""
    rooms = []
    for size in sorted(lengths, reverse=True):
        fitting = [place for place, room in enumerate(rooms) if room >= size]
        if not fitting:
            fitting = [len(rooms)]
            rooms.append(capacity)
        rooms[min(fitting, key=rooms.__getitem__)] -= size
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(60))
def test_it_is_best_fit_decreasing(seed):
    numbers = np.random.default_rng(seed)
    capacity = int(numbers.integers(1, 60))
    top = int(numbers.integers(1, capacity + 1))
    lengths = numbers.integers(1, top + 1, numbers.integers(1, 150))
    bins = best_fit_decreasing(lengths, capacity)
    filled = np.bincount(bins, lengths)
    assert (filled > 0).all()  # numbered without gaps
    assert sorted(capacity - filled) == rooms_one_by_one(lengths.tolist(), capacity)


@pytest.mark.parametrize("length", [256, 512, 1024])
def test_real_articles_leave_little_padding(length):
    folder = Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere") / "wikipedia_en"
    files = sorted(folder.glob("*.gz"))[:4]
    if not files:
        pytest.skip("ZOO_DATA_DIR holds no wikipedia_en")
    source = []
    for file in files:
        with gzip.open(file, "rt", encoding="utf-8") as text:
            articles = re.findall(r"<doc [^>]*>(.*?)</doc>", text.read(), re.DOTALL)
        source += [[zlib.crc32(w.encode()) % 50_000 for w in a.split()] for a in articles]
    counts = Counter()
    _, segments = pack(source, length, start_id=1, end_id=2, counts=counts)
    assert counts["documents"] > 200
    assert np.mean(segments == 0) < 0.02
