"""Tokenized records of text files: lossless, cached, and errors that name files."""

import numpy as np
import pytest

from trainers.config.base import base
from zoo.data.text import dataset as text
from zoo.data.text import tokenizers
from zoo.errors import RunError, UsageError

BOOK = "\n".join(f"Line {i} of a book, naïve and 🙂, says {i * i}." for i in range(400))


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(BOOK)
    return path


def load(path, **changes):
    data = base().data.to_dict()
    data.update({"source": f"text:{path}", "tokenizer": "byte", "sequence_length": 32, **changes})
    return text.language_modeling(data, {"name": "clm"})


@pytest.mark.parametrize("kind", ["byte", "character", "bpe"])
def test_stream_holds_the_text_and_its_ends(book, kind):
    dataset = load(
        book, **{"tokenizer": kind} | ({"vocabulary_size": 300} if kind == "bpe" else {})
    )
    parts = []
    for split in ("train", "validation"):
        stream = dataset.splits[split]["tokens"].stream[:]
        assert [stream[0], stream[-1]] == [2, 3]
        parts.append(dataset.tokenizer.decode(stream))
    assert "".join(parts).replace("\n", "") == BOOK.replace("\n", "")
    assert dataset.facts["Tokenizer"]["kind"] == kind
    assert dataset.facts["Data"]["train"] == len(dataset.splits["train"]["tokens"])


def test_best_fit_rows_hold_the_text(book):
    dataset = load(book, packing="best_fit")
    arrays = dataset.splits["train"]
    assert arrays["tokens"].shape[1] == arrays["segments"].shape[1] == 33
    tokens, segments = arrays["tokens"][:], arrays["segments"][:]
    counted = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    stream = load(book).splits["train"]["tokens"].stream[:]
    assert counted.sum() == len(stream) - 1
    assert sorted(tokens[:, 1:][counted]) == sorted(stream[1:])


def test_records_are_made_once(book, cache, monkeypatch):
    first = load(book)
    files = sorted((p, p.stat().st_mtime_ns) for p in cache.rglob("*") if p.is_file())
    monkeypatch.setattr(tokenizers, "train", None)
    monkeypatch.setattr(tokenizers.Tokenizer, "encode_documents", None)
    again = load(book)
    assert again.fingerprint == first.fingerprint
    assert sorted((p, p.stat().st_mtime_ns) for p in cache.rglob("*") if p.is_file()) == files


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": "character"},
        {"normalization": "NFKC"},
        {"packing": "best_fit"},
    ],
)
def test_another_preparation_is_another_data_set(book, changes):
    assert load(book).fingerprint != load(book, **changes).fingerprint


def test_another_text_is_another_data_set(book):
    before = load(book).fingerprint
    book.write_text(BOOK.replace("naïve", "naive"))
    assert load(book).fingerprint != before


def test_a_damaged_shard_is_named(book, cache):
    load(book)
    shard = max(cache.rglob("records/**/*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(RunError, match=shard.name):
        load(book)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": "words"}, "data.tokenizer must be one of"),
        ({"sequence_length": 0}, "data.sequence_length must be at least 2"),
        ({"packing": "best"}, "data.packing must be one of stream, best_fit"),
        ({"tokenizer": "bpe"}, "vocabulary"),
    ],
)
def test_a_wrong_value_is_refused(book, changes, words):
    with pytest.raises(UsageError, match=words):
        load(book, **changes)


def test_an_empty_file_is_refused_by_name(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    with pytest.raises(RunError, match=r"empty\.txt"):
        load(tmp_path / "empty.txt")


def test_a_split_without_tokens_is_named(tmp_path):
    path = tmp_path / "blank.txt"
    path.write_text("some words here\n" * 20 + "\n" * 400)
    with pytest.raises(RunError, match="The validation split of .* has no tokens of"):
        load(path, tokenizer="wordpiece", vocabulary_size=30)


def test_nul_bytes_and_broken_utf8_are_read_and_counted(tmp_path, capfd):
    path = tmp_path / "odd.txt"
    path.write_bytes(b"a\x00b \xff\xfe c\n" * 300)
    dataset = load(path)
    assert "odd.txt" in capfd.readouterr().err
    stream = dataset.splits["train"]["tokens"].stream[:]
    words = dataset.tokenizer.decode(stream)
    assert words.startswith("a\x00b \ufffd")


def test_a_vocabulary_larger_than_the_text_supports_shrinks_and_says_so(book, capfd):
    dataset = load(book, tokenizer="bpe", vocabulary_size=20_000)
    assert dataset.tokenizer.vocabulary_size < 20_000
    assert len(capfd.readouterr().err.strip().splitlines()) == 1


@pytest.mark.slow
def test_one_endless_line_of_50_megabytes(tmp_path):
    path = tmp_path / "line.txt"
    generator = np.random.default_rng(0)
    path.write_bytes(generator.integers(97, 123, 50_000_000).astype(np.uint8).tobytes())
    dataset = load(path)
    stream = dataset.splits["train"]["tokens"].stream
    assert len(stream) + len(dataset.splits["validation"]["tokens"].stream) >= 50_000_000
