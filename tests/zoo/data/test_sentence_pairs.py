"""Sentences, pairs of sentences, and the data of the tasks nsp and mlm."""

import contextlib

import numpy as np
import pytest

from trainers.config.base import base
from zoo import registry
from zoo.data.text import tokenizers
from zoo.data.text.sentence_pairs import (
    NEXT,
    RANDOM,
    make_pairs,
    split_sentences,
    tokenized_sentences,
)
from zoo.errors import UsageError

START, SEPARATOR = 2, 4
SPAN = 10_000  # token 10,000 d + i is token i of document d


def documents(count=6, sentences=200, size=5):
    """Documents whose tokens encode their position."""
    return [
        [SPAN * (d + 1) + size * s + np.arange(size) for s in range(sentences)]
        for d in range(count)
    ]


def pairs(source, length=23, seed=0, **arguments):
    """All pairs at once; with 23 positions there is room for four whole sentences of five."""
    chunks = list(
        make_pairs(source, length, np.random.default_rng(seed), start_id=START,
                   separator_id=SEPARATOR, **arguments)
    )  # fmt: skip
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def parts(row):
    """Returns A and B of a row [start] A [separator] B [separator] padding."""
    end = np.count_nonzero(row)
    first, last = np.flatnonzero(row == SEPARATOR)
    assert row[0] == START
    assert last == end - 1
    assert not row[end:].any()
    return row[1:first], row[first + 1 : last]


@pytest.fixture(scope="module")
def many():
    return pairs(documents())


# --- pairs ----------------------------------------------------------------------------------------


def test_a_second_sentence_follows_or_is_from_another_document(many):
    assert len(many["label"]) > 300
    for row, label in zip(many["tokens"], many["label"], strict=True):
        a, b = parts(row)
        assert (np.diff(a) == 1).all()
        assert (np.diff(b) == 1).all()
        if label == NEXT:
            assert b[0] == a[-1] + 1
        else:
            assert a[0] // SPAN != b[0] // SPAN


def test_about_half_follow(many):
    labels = np.concatenate([pairs(documents(), seed=seed)["label"] for seed in range(8)])
    assert set(labels.tolist()) == {NEXT, RANDOM}
    # Slightly more than half are random, because a sentence that fills a pair has no next one.
    assert abs(labels.mean() - 0.51) < 4 * 0.5 / np.sqrt(len(labels))


def test_no_text_is_lost_or_read_twice(many):
    read = [
        token
        for row, label in zip(many["tokens"], many["label"], strict=True)
        for part in parts(row)[: 1 if label == RANDOM else 2]
        for token in part
    ]
    assert sorted(read) == sorted(np.concatenate([np.concatenate(d) for d in documents()]))


def test_types_tell_the_sentences(many):
    for row, types in zip(many["tokens"], many["types"], strict=True):
        a, b = parts(row)
        expected = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert types.tolist() == expected + [0] * (len(row) - len(expected))


def test_most_pairs_are_full_and_some_are_short(many):
    filled = (many["tokens"] > 0).sum(1)
    assert filled.max() == 23
    assert 0.8 < (filled == 23).mean() < 0.97


def test_random_sentences_come_from_everywhere():
    results = [pairs(documents(), seed=seed) for seed in range(4)]
    other = np.concatenate([
        [parts(row)[1][0] for row in f["tokens"][f["label"] == RANDOM]] for f in results
    ])  # fmt: skip
    assert set((other // SPAN).tolist()) == {1, 2, 3, 4, 5, 6}
    places = other % SPAN
    assert places.min() < 100
    assert places.max() > 900


@pytest.mark.parametrize("sizes", [(40, 3), (3, 40), (40, 40), (11, 10), (12, 9), (2, 50)])
def test_what_is_too_long_is_cut_at_either_end_of_the_longer_one(sizes):
    size_a, size_b = sizes
    starts = set()
    for seed in range(60):
        # The second sentence of a size is in the same document or in the other one.
        texts = [
            [SPAN + np.arange(size_a), 2 * SPAN + np.arange(size_b)],
            [5 * SPAN + np.arange(size_b)],
        ]
        a, b = parts(pairs(texts, seed=seed)["tokens"][0])
        assert (len(a), len(b)) == _one_by_one(size_a, size_b, 20)
        assert (np.diff(a) == 1).all()
        assert (np.diff(b) == 1).all()
        starts.add((int(a[0] % SPAN), int(b[0] % SPAN)))
    assert len(starts) > (2 if size_a + size_b > 22 else 1)


def _one_by_one(a, b, room):
    """Sizes by truncate_seq_pair of create_pretraining_data.py."""
    while a + b > room:
        if a > b:
            a -= 1
        else:
            b -= 1
    return a, b


def test_pairs_are_a_function_of_the_generator():
    one, again, other = pairs(documents()), pairs(documents()), pairs(documents(), seed=1)
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
    assert one["tokens"].shape != other["tokens"].shape or (one["tokens"] != other["tokens"]).any()


def test_few_documents_are_held_at_once():
    in_memory, most = 0, 0

    def counted():
        nonlocal in_memory, most
        for document in documents(count=9):
            in_memory += 1
            most = max(most, in_memory)
            yield document

    generator = make_pairs(
        counted(), 23, np.random.default_rng(0), start_id=START, separator_id=SEPARATOR, buffer=4
    )
    first_rows = next(generator)
    assert len(first_rows["label"]) > 0
    # The ninth document is alone in its group, so the random sentence is of the previous group.
    chunk = pairs(documents(count=9), buffer=4)
    last = [row for row in chunk["tokens"] if parts(row)[0][0] // SPAN == 9]
    assert len(last) > 30
    assert {parts(row)[1][0] // SPAN for row in last} == {5, 6, 7, 8, 9}


def test_one_document_is_refused():
    with pytest.raises(UsageError, match="at least two documents"):
        pairs(documents(count=1))


# --- sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        (" \n\n ", []),
        ("No end", ["No end"]),
        ("One. Two! Three? Four… Five", ["One.", "Two!", "Three?", "Four…", "Five"]),
        ("A title\nThe text. More.", ["A title", "The text.", "More."]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("(It is so.) Or not.", ["(It is so.)", "Or not."]),
        ("Dr. Who met J. S. Bach. They sang.", ["Dr. Who met J. S. Bach.", "They sang."]),
        ("The U.S. Army came, e.g. Smith et al. 1999.", None),
        ("Wait... what? Yes!! No.", ["Wait... what?", "Yes!!", "No."]),
        ("It is 3.14 or www.example.org today.", None),
        ("In 1998. 42 came.", ["In 1998.", "42 came."]),
        ("See no. 5 and Vol. 2. I said no. Then I left.", [
            "See no. 5 and Vol. 2.", "I said no.", "Then I left.",
        ]),
        ("این یک جمله است. آیا این هم هست؟ بله! پایان", [
            "این یک جمله است.", "آیا این هم هست؟", "بله!", "پایان",
        ]),
        ("یہ جملہ ہے۔ دوسرا", ["یہ جملہ ہے۔", "دوسرا"]),
        ("यह वाक्य है। दूसरा।", ["यह वाक्य है।", "दूसरा।"]),
        ("他说。“你好！”然后走了。", ["他说。", "“你好！”", "然后走了。"]),
    ],
)  # fmt: skip
def test_sentences(text, sentences):
    assert split_sentences(text) == ([text] if sentences is None else sentences)


def test_splitting_keeps_all_that_is_no_white_space():
    text = 'A "b." C! D\n\ne. F… (g.) H.\tI? J'
    assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


def test_sentences_keep_their_documents():
    texts = ["Aa. Bb. Cc.", "\n", "Dd.", "Ee. Ff."] * 50
    tokenizer = tokenizers.train("byte", texts)
    sentences = list(tokenized_sentences(texts, tokenizer))
    assert [[tokenizer.decode(s) for s in document] for document in sentences] == [
        ["Aa.", "Bb.", "Cc."], ["Dd."], ["Ee.", "Ff."],
    ] * 50  # fmt: skip


# --- datasets ------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path, cache):
    """Section `data` of a recipe for forty small texts."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for d in range(40):
        text = " ".join(f"Word{d} is number {i}." for i in range(30))
        (folder / f"{d:02d}.txt").write_text(text)
    section = base().data.to_dict()
    section.update(
        source=f"text:{folder}", tokenizer="word", vocabulary_size=200, sequence_length=32
    )
    return section


def test_pairs_of_ones_own_texts(data):
    dataset = registry.load_data(data, {"name": "nsp"})
    for arrays in dataset.splits.values():
        assert {name: (array.shape[1:], array.dtype.name) for name, array in arrays.items()} == {
            "tokens": ((32,), "uint16"), "types": ((32,), "uint8"), "label": ((), "int32"),
        }  # fmt: skip
    arrays = dataset.splits["train"]
    follows = other = 0
    for tokens, label in zip(arrays["tokens"][:], arrays["label"][:], strict=True):
        a, b = (dataset.tokenizer.decode(part).split() for part in parts(tokens))
        documents_of = [{w for w in part if w.startswith("Word")} for part in (a, b)]
        if label == NEXT and all(documents_of):
            assert documents_of[0] == documents_of[1]
            follows += 1
        elif all(documents_of):
            other += documents_of[0] != documents_of[1]
    assert min(follows, other) > 50
    again = registry.load_data(data, {"name": "nsp"})
    assert again.fingerprint == dataset.fingerprint
    longer = registry.load_data({**data, "sequence_length": 40}, {"name": "nsp"})
    assert longer.fingerprint != dataset.fingerprint


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_rows_of_ones_own_texts(data, packing):
    dataset = registry.load_data({**data, "packing": packing}, {"name": "mlm"})
    arrays = dataset.splits["train"]
    assert arrays["tokens"].shape[1] == 32
    row = np.asarray(arrays["tokens"][:1])[0]
    assert dataset.tokenizer.decode(row).startswith("Word")
    if packing == "best_fit":
        assert arrays["segments"].shape == arrays["tokens"].shape


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("nsp", {"sequence_length": 7}, "data.sequence_length must be at least 8 .*Received: 7"),
        ("mlm", {"sequence_length": 1}, "data.sequence_length must be at least 2. Received: 1"),
        ("mlm", {"packing": "bestfit"}, "data.packing must be one of stream, best_fit"),
        ("nsp", {"tokenizer": "letters"}, "data.tokenizer must be one of"),
        ("nsp", {"source": "text:one"}, "at least two documents"),
    ],
)
def test_what_does_not_fit_is_refused(data, tmp_path, task, changes, words):
    (tmp_path / "one.txt").write_text("A word. Two words.\n" * 50)
    with contextlib.chdir(tmp_path):
        if changes.get("source"):
            changes = {"source": "text:one.txt", "vocabulary_size": 12}
        with pytest.raises(UsageError, match=words):
            registry.load_data({**data, **changes}, {"name": task})
