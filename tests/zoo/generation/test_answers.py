"""The best spans of a context, from the logits of its windows."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from zoo.data.text.questions.squad import Question
from zoo.data.text.questions.windows import make_windows
from zoo.data.text.special_tokens import START
from zoo.data.text.tokenizers import train
from zoo.generation.answers import Answers, Span, best_spans, question_answers

CONTEXT = "the dog ran and the cat sat on a mat while cats ran"
WORDS = CONTEXT.split()


def _places():
    starts = np.cumsum([0, *(len(word) + 1 for word in WORDS[:-1])])
    return starts, starts + [len(word) for word in WORDS]


@pytest.mark.parametrize("max_answer", [1, 3, 50])
def test_spans_are_the_best_ones(max_answer):
    generator = np.random.default_rng(0)
    starts, ends = _places()
    first, last = generator.normal(size=(2, len(WORDS)))
    expected = sorted(
        (
            (first[i] + last[j], CONTEXT[starts[i] : ends[j]], int(starts[i]), int(ends[j]))
            for i, j in itertools.combinations_with_replacement(range(len(WORDS)), 2)
            if j - i < max_answer
        ),
        reverse=True,
    )
    spans = best_spans(first, last, starts, ends, CONTEXT, max_answer, 10**6)
    assert [(s.text, s.start, s.end) for s in spans] == [row[1:] for row in expected]
    np.testing.assert_allclose([s.score for s in spans], [row[0] for row in expected])
    assert best_spans(first, last, starts, ends, CONTEXT, max_answer, 4) == spans[:4]


def test_white_space_is_no_answer():
    # Tokens "ab", " ", " cd": the best span is the space.
    spans = best_spans(
        np.array([0.0, 9, 1]), np.array([0.0, 9, 1]), np.array([0, 2, 3]), np.array([2, 3, 6]),
        "ab  cd", 1, 5,
    )  # fmt: skip
    assert [(s.text, s.start, s.end) for s in spans] == [("cd", 4, 6), ("ab", 0, 2)]


def test_no_answer_must_exceed_the_threshold():
    answers = Answers([Span("dog", 4, 7, 3.0), Span("cat", 20, 23, 2.0)], null_score=5.0)
    assert answers.text(2.0) == "dog"
    assert answers.text(1.9) == ""
    assert answers.text(np.inf) == "dog"


class TableOfLogits(keras.layers.Layer):
    """Logits of each token id and position; <start> has those of the number of tokens."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def call(self, tokens, segments):
        is_start = ops.cast(tokens == START, "float32")[:, :, None]
        size = ops.cast(ops.sum(segments, axis=1), "float32")[:, None, None]
        places = ops.cast(ops.cumsum(ops.ones_like(tokens), axis=1) - 1, "float32")[:, :, None]
        logits = ops.take(ops.convert_to_tensor(self.table), tokens, axis=0) + 0.1 * places
        return logits * (1 - is_start) - is_start * size


@pytest.fixture(scope="module")
def tokenizer():
    return train("word", [CONTEXT], 30)


def test_windows_of_a_question_are_joined(tokenizer):
    """Equal texts are one answer, and the score of "no answer" is the lowest of all windows."""
    table = np.random.default_rng(1).normal(size=(tokenizer.vocabulary_size, 2)).astype("float32")
    inputs = {k: keras.Input((None,), dtype="int32", name=k) for k in ("tokens", "segments")}
    model = keras.Model(inputs, TableOfLogits(table)(inputs["tokens"], inputs["segments"]))
    questions = [
        Question(str(i), "a", text, context, ())
        for i, (text, context) in enumerate(
            [("dog", CONTEXT), ("cat mat", CONTEXT), ("ran", "cats ran on a mat")]
        )
    ]
    rows = []
    for number, question in enumerate(questions):
        ids = tokenizer.encode(question.context)
        windows = make_windows(tokenizer.encode(question.question), ids, 9, 2, 4)
        rows.append({**windows, "example": np.full(len(windows["tokens"]), number)})
    assert [len(row["first"]) for row in rows] == [5, 6, 1]
    arrays = {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
    results = list(question_answers(model, arrays, questions, tokenizer, 2, 3))
    assert len(results) == 3
    for question, result in zip(questions, results, strict=True):
        words, expected = question.context.split(), {}
        windows = rows[int(question.id)]
        for tokens, mask, offset in zip(
            windows["tokens"], windows["context"], windows["first"], strict=True
        ):
            positions = np.flatnonzero(mask)
            for i, j in itertools.product(positions, range(2)):
                if i + j <= positions[-1]:
                    first = offset + i - positions[0]
                    text = " ".join(words[first : first + j + 1])
                    score = table[tokens[i], 0] + table[tokens[i + j], 1] + 0.1 * (2 * i + j)
                    expected[text] = max(score, expected.get(text, -np.inf))
        best = sorted(expected, key=expected.get, reverse=True)[:3]
        assert [span.text for span in result.spans] == best
        for span in result.spans:
            assert question.context[span.start : span.end] == span.text
            assert span.score == pytest.approx(expected[span.text], abs=1e-5)
        largest = max(np.count_nonzero(row) for row in rows[int(question.id)]["tokens"])
        assert result.null_score == -2 * largest
