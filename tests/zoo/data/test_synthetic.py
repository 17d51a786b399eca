"""Synthetic rows: their bytes and targets, which depend on split and index alone."""

import re

import numpy as np
import pytest

from trainers.config.base import base
from zoo.data.text import dataset as text
from zoo.data.text import tokenizers
from zoo.data.text.special_tokens import FIRST_WORD
from zoo.errors import UsageError


def load(name, length, **changes):
    data = base().data.to_dict()
    data.update(
        {"source": f"synthetic:{name}", "tokenizer": "byte", "sequence_length": length, **changes}
    )
    return text.language_modeling(data, {"name": "clm"})


def bytes_of(dataset, split, index):
    return bytes((dataset.splits[split]["tokens"][index] - FIRST_WORD).tolist())


def test_duplication_repeats_the_symbols_and_asks_for_the_copy():
    dataset = load("duplication", 20)
    row, targets = bytes_of(dataset, "train", 5), dataset.splits["train"]["is_target"][5]
    assert len(row) == len(targets) == 21
    first, word, copy = row[0], row[1:10], row[11:20]
    assert word == copy
    assert (first, row[10], row[20]) == (0, 0, 0)
    assert targets.tolist() == [False] * 11 + [True] * 9 + [False]
    symbols = dataset.splits["train"]["tokens"][np.arange(200)][:, 1:10] - FIRST_WORD
    assert (symbols.min(), symbols.max()) == (1, 127)


@pytest.mark.parametrize("length", [55, 200])
def test_needle_asks_for_the_value_of_each_pair(length):
    dataset = load("needle", length)
    for index in range(20):
        row, targets = bytes_of(dataset, "test", index), dataset.splits["test"]["is_target"][index]
        assert len(row) == len(targets) == length + 1
        hidden, questions = row[:-28], row[-28:]
        pairs = dict(re.findall(rb"([A-Z]{2}):([\x80-\xff]{4})", hidden, re.DOTALL))
        assert len(pairs) == 4
        assert dict(re.findall(rb"([A-Z]{2})=([\x80-\xff]{4})", questions, re.DOTALL)) == pairs
        assert re.fullmatch(rb"([a-z ]|[A-Z]{2}:[\x80-\xff]{4})*", hidden, re.DOTALL)
        asked = np.frombuffer(row, np.uint8)[targets]
        assert bytes(asked) == b"".join(re.findall(rb"=(.{4})", questions, re.DOTALL))


@pytest.mark.parametrize("name", ["duplication", "needle"])
def test_a_row_depends_on_its_split_and_index_alone(name):
    dataset, other = load(name, 64), load(name, 64)
    index = np.array([7, 3, 7])
    for array in ("tokens", "is_target"):
        rows = dataset.splits["train"][array]
        assert (
            rows[index] == np.stack([other.splits["train"][array][int(i)] for i in index])
        ).all()
        assert rows[index].shape == (3, *rows.shape[1:])
        assert rows[index].dtype == rows.dtype
        assert rows[2:4].shape[0] == 2
    firsts = [bytes_of(dataset, split, 0) for split in ("train", "validation", "test")]
    assert len(set(firsts)) == 3
    assert bytes_of(dataset, "train", 1) != firsts[0]
    assert dataset.fingerprint == other.fingerprint != load(name, 66).fingerprint


def test_the_tokenizer_of_a_work_directory_gives_the_same_rows(tmp_path):
    dataset = load("needle", 64)
    dataset.tokenizer.save(tmp_path / "tokenizer.json")
    again = load("needle", 64, tokenizer=str(tmp_path))
    assert again.fingerprint == dataset.fingerprint
    assert again.tokenizer.fingerprint == dataset.tokenizer.fingerprint
    tokenizers.train("character", ["a"]).save(tmp_path / "tokenizer.json")
    with pytest.raises(UsageError, match="requires data.tokenizer=byte"):
        load("needle", 64, tokenizer=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("needles", {}, "No synthetic source is named 'needles'. Did you mean 'needle'"),
        (
            "needle",
            {"sequence_length": 54},
            "must be at least 55 for synthetic:needle. Received: 54",
        ),
        ("duplication", {"sequence_length": 9}, "a multiple of 2 for synthetic:dup.*Received: 9"),
        ("needle", {"tokenizer": "character"}, "requires data.tokenizer=byte.*'character'"),
        ("needle", {"manual_dir": "/tmp"}, "no data.manual_dir. Received: .*'/tmp'"),
    ],
)
def test_a_wrong_request_is_refused(name, changes, words):
    with pytest.raises(UsageError, match=words):
        load(name, 64, **changes)
