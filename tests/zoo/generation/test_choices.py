"""Likelihood of given continuations."""

import numpy as np
import pytest

import zoo
from zoo.data.text import tokenizers
from zoo.data.text.special_tokens import START
from zoo.errors import UsageError
from zoo.generation.choices import score_choices


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train("byte", ["text"])


@pytest.fixture(scope="module")
def model(tokenizer):
    return zoo.build(
        "gpt_nano", vocabulary_size=tokenizer.vocabulary_size, num_layers=2, hidden_dim=16,
        num_heads=2, sequence_length=24,
    )  # fmt: skip


def test_scores_are_sums_of_log_probabilities_of_single_rows(model, tokenizer):
    choices = [" yes", " certainly no", "ü"]
    expected = []
    for choice in choices:
        prompt, tail = tokenizer.encode("Is it?"), tokenizer.encode(choice)
        row = np.concatenate([[START], prompt, tail])[None].astype("int32")
        logits = np.array(model({"tokens": row, "segments": np.ones_like(row)}), "float64")[0]
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        first = len(prompt)
        expected.append(sum(logs[first + i, token] for i, token in enumerate(tail)))
    for normalization, lengths in (("none", [1, 1, 1]), ("bytes", [4, 13, 2])):
        result = score_choices(model, tokenizer, "Is it?", choices, normalization)
        np.testing.assert_allclose(result, np.array(expected) / lengths, rtol=1e-5)
    np.testing.assert_array_equal(
        score_choices(model, tokenizer, "Is it?", choices, "tokens"),
        score_choices(model, tokenizer, "Is it?", choices, "bytes"),
    )


@pytest.mark.parametrize(
    ("prompt", "choices", "message"),
    [
        ("a", ["b"], "at least two"),
        ("a", ["b", ""], "must have a token"),
        ("a" * 30, ["b", "c"], "at most 25 tokens"),
    ],
)
def test_wrong_choices_are_refused(model, tokenizer, prompt, choices, message):
    with pytest.raises(UsageError, match=message):
        score_choices(model, tokenizer, prompt, choices)


def test_other_models_and_normalizations_are_refused(model, tokenizer):
    with pytest.raises(UsageError, match="require a decoder"):
        score_choices(zoo.build("bert_tiny"), tokenizer, "a", ["b", "c"])
    with pytest.raises(UsageError, match="normalization"):
        score_choices(model, tokenizer, "a", ["b", "c"], "words")
