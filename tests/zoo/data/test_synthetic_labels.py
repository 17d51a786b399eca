"""Made-up labeled texts: the labels are right, and equal each time."""

import re

import numpy as np
import pytest

from zoo.data.text.labeled.catalog import source_of
from zoo.data.text.labeled.examples import read_examples
from zoo.data.text.labeled.synthetic import _BAD, _GOOD, _STATES
from zoo.errors import UsageError


def test_opinions_follow_from_the_adjective_and_the_negation():
    examples = read_examples(source_of("synthetic:opinions", None), (), "class")
    for (text,), label in zip(examples.splits["train"](), examples.labels["train"], strict=True):
        words = text.split()
        is_good = any(word in _GOOD for word in words)
        assert is_good != any(word in _BAD for word in words)
        assert examples.class_names[label] == ("negative", "positive")[is_good ^ ("not" in words)]
    share = np.mean(["not" in text for (text,) in examples.splits["train"]()])
    assert 0.15 < share < 0.25


def test_inferences_follow_from_the_premise():
    examples = read_examples(source_of("synthetic:inference", None), (), "class")
    opposite = {a: b for pair in _STATES for a, b in (pair, pair[::-1])}
    for (premise, hypothesis), label in zip(
        examples.splits["test"](), examples.labels["test"], strict=True
    ):
        facts = dict(re.findall(r"the (\w+) is (\w+)", premise))
        ((thing, state),) = re.findall(r"the (\w+) is (\w+)", hypothesis)
        told = facts.get(thing)
        expected = {state: "entailment", opposite[state]: "contradiction", None: "neutral"}[told]
        assert examples.class_names[label] == expected
    assert np.bincount(examples.labels["test"]).min() > 100


def test_texts_are_the_same_each_time_and_differ_between_splits():
    first, second = (
        read_examples(source_of("synthetic:opinions", None), (), "class") for _ in range(2)
    )
    assert first.fingerprint == second.fingerprint
    assert list(first.splits["train"]()) == list(second.splits["train"]())
    assert list(first.splits["train"]())[:400] != list(first.splits["test"]())


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="opinions, inference"):
        source_of("synthetic:news", None)
