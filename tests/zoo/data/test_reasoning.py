"""Questions of a known depth: their rows, answers, best guesses, and splits without leaks."""

import numpy as np
import pytest

from trainers.config.base import base
from zoo.data.text.special_tokens import FIRST_WORD
from zoo.data.text.synthetic.modular import MODULUS
from zoo.data.text.synthetic.reasoning import ARRAYS, KINDS, kind_of, questions, split_rows
from zoo.errors import UsageError


def load(name, depth=3, **changes):
    data = {**base().data.to_dict(), "source": f"synthetic:{name}", "tokenizer": "byte", **changes}
    return questions(data, {"depth": depth})


def rows_of(dataset, split, count):
    """Yields (bytes of the row without padding, {question: (places, answers, depth)})."""
    for index in range(count):
        tokens, answers, depths, numbers = (
            dataset.splits[split][name][index].astype(int) for name in ARRAYS
        )
        asked = {
            n: (
                np.flatnonzero(numbers == n),
                (answers[numbers == n] - FIRST_WORD).tolist(),
                int(depths[numbers == n][0]),
            )
            for n in sorted(set(numbers) - {0})
        }
        assert ((answers < 0) == (numbers == 0)).all()
        yield (tokens[tokens >= 0] - FIRST_WORD).tolist(), asked


def path_up(parents, node):
    path = []
    while node in parents:
        path.append(node := parents[node])
    return path


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("steps", [False, True])
def test_chase_asks_for_the_root(split, steps):
    depths = set()
    for row, asked in rows_of(load("chase" + "_steps" * steps), split, 10):
        edges = [row[i : i + 3] for i in range(0, len(row), 3) if row[i : i + 1] == [255]]
        levels = max(depth for _, _, depth in asked.values()) if not steps else None
        count = 4 * levels if levels else next(places[0] for places, _, _ in asked.values()) // 3
        parents = {child: parent for _, parent, child in edges[:count]}
        for places, answers, depth in asked.values():
            path = path_up(parents, row[places[0]])
            assert len(path) == depth
            assert answers == (path if steps else path[-1:])
            if steps:
                assert row[places[0] + 1 :] == path[:-1]
            depths.add(depth)
    assert max(depths) == (6 if split == "test" else 3) or steps


def test_trees_are_balanced_so_every_root_is_equally_likely():
    kind, _ = kind_of("synthetic:chase")
    for _, asked in rows_of(load("chase"), "train", 5):
        for depth in (1, 2, 3):
            roots = [answers[0] for _, answers, d in asked.values() if d == depth]
            assert len(roots) == len(set(roots)) == 1 / kind.guess(depth)


@pytest.mark.parametrize(("name", "modulus"), [("modular", MODULUS), ("parity", 2)])
@pytest.mark.parametrize("steps", [False, True])
def test_chains_ask_for_the_value_so_far(name, modulus, steps):
    final = []
    for row, asked in rows_of(load(name + "_steps" * steps, depth=8), "train", 100):
        operations = row[: row.index(255)] if steps else row
        value, values = 0, []
        for x in operations:
            value = (value + x if x < MODULUS else value * (x - MODULUS + 1)) % modulus
            values.append(value)
        answers = [x for _, chain, _ in asked.values() for x in chain]
        assert answers == values
        assert [d for _, _, d in asked.values()] == ([len(values)] if steps else list(range(1, 9)))
        final.append(value)
    assert np.bincount(final, minlength=modulus).max() < 100 * 2 / modulus


@pytest.mark.parametrize("steps", [False, True])
def test_sort_asks_for_ranks(steps):
    for row, asked in rows_of(load("sort" + "_steps" * steps, depth=6), "train", 30):
        depth = next(iter(asked.values()))[2]
        numbers = sorted(row[:depth])
        if steps:
            assert [chain for _, chain, _ in asked.values()] == [numbers]
        else:
            assert len(asked) == depth
            for (place,), (answer,), _ in asked.values():
                assert answer == numbers[row[place] - 128]
    guesses = [KINDS["sort"].guess(n) for n in (1, 4, 16)]
    assert guesses[0] == 1
    assert 1 / 4 < guesses[1] < 1
    assert guesses[2] < guesses[1]


@pytest.mark.parametrize("name", ["chase", "modular", "parity", "sort"])
def test_no_row_is_in_two_splits(name):
    """Contents of equal depth are compared, whatever the order of their edges or numbers."""
    contents = {}
    for split in ("train", "validation", "test"):
        arrays = split_rows(f"synthetic:{name}_steps", 8, split, 8, exact=True)
        rows = arrays["tokens"][np.arange(60)]
        contents[split] = {tuple(row[: 8 if name != "chase" else 96]) for row in rows}
        if name in ("chase", "sort"):
            contents[split] = {tuple(sorted(x)) for x in contents[split]}
    assert not contents["train"] & contents["test"]
    assert not contents["train"] & contents["validation"]
    assert not contents["validation"] & contents["test"]


def test_a_row_depends_on_split_and_index_alone():
    first, second = load("chase"), load("chase")
    assert first.fingerprint == second.fingerprint != load("chase", depth=4).fingerprint
    for name in ARRAYS:
        rows = first.splits["train"][name][np.array([5, 2])]
        np.testing.assert_array_equal(rows[1], second.splits["train"][name][2])
        assert (rows[0] != rows[1]).any() or name in ("questions",)


@pytest.mark.parametrize(
    ("name", "depth", "changes", "words"),
    [
        ("chess", 3, {}, "No source of questions is named 'chess'. Did you mean 'chase'"),
        ("chase", 40, {}, "task.depth must be from 1 to 31 for synthetic:chase. Received: 40"),
        ("chase", 3, {"tokenizer": "word"}, "requires data.tokenizer=byte.*'word'"),
        ("chase", 3, {"sequence_length": 9}, "data.sequence_length=0.*data.sequence_length=9"),
        ("parity", 1, {}, "no rows of depth . for the split '.*': increase task.depth"),
    ],
)
def test_a_wrong_request_is_refused(name, depth, changes, words):
    with pytest.raises(UsageError, match=words):
        load(name, depth, **changes)
