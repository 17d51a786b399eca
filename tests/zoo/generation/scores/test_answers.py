"""Exact match and F1 against cases of SQuAD's evaluation scripts, worked by hand."""

import math

import pytest

from zoo.generation.scores.answers import (
    best_threshold,
    exact_match,
    f1,
    normalize_answer,
    question_scores,
    scores,
)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Cat, sat!", "cat sat"),
        ("a an the", ""),
        ("Theory of the Anthem", "theory of anthem"),
        ("U.S. dollars ($5)", "us dollars 5"),  # punctuation is removed, not replaced by a space
        ("the-end", "theend"),  # before articles, as in the scripts
        ("Île d'Été", "île dété"),
        ("« سلام »، the", "« سلام »،"),  # the scripts know only ASCII punctuation
        ("a\u00a0b", "b"),
    ],
)
def test_normalization(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("Denver Broncos", "the Denver Broncos", 1.0),
        # 1 of 3 words common: precision 1/3, recall 1/2.
        ("Denver in 1977", "Denver Broncos", 0.4),
        # Words count as often as in both: "b" once. 2 of 3 and 2 of 2.
        ("b b c", "b c", 0.8),
        ("b b c", "b b", 0.8),
        ("east", "west", 0.0),
    ],
)
def test_f1(prediction, reference, expected):
    for empty_matches in (False, True):
        score = f1(prediction, reference, empty_matches=empty_matches)
        assert score == pytest.approx(expected)
        assert f1(reference, prediction, empty_matches=empty_matches) == pytest.approx(expected)
    assert exact_match(prediction, reference) == (expected == 1)


def test_texts_without_words():
    assert exact_match("The", "a") == 1
    assert f1("The", "a", empty_matches=False) == 0  # 1.1 counts no common word
    assert f1("The", "a", empty_matches=True) == 1
    assert f1("", "cat", empty_matches=True) == 0


def test_best_reference_counts():
    references = ["Santa Clara, California", "Levi's Stadium"]
    assert question_scores("Levi's", references, version_2=False) == (0, pytest.approx(2 / 3))
    assert question_scores("levis stadium", references, version_2=False) == (1, 1)


def test_version_2_leaves_out_references_without_words():
    assert question_scores("", [], version_2=True) == (1, 1)
    assert question_scores("x", [], version_2=True) == (0, 0)
    assert question_scores("", ["the", "cat"], version_2=True) == (0, 0)
    assert question_scores("", ["the"], version_2=True) == (1, 1)


def test_example_of_the_library_torchmetrics():
    """torchmetrics.text.SQuAD's own example, and its average over two questions."""
    assert scores(["1976"], [["1976"]]) == {
        "exact_match": 100.0, "f1": 100.0, "scoring": "SQuAD 1.1",
    }  # fmt: skip
    result = scores(["1976", "in the year 1976"], [["1976"], ["1976", "year 1976"]])
    assert result["exact_match"] == 50.0
    # "in year 1976" and "year 1976": precision 2/3, recall 1.
    assert result["f1"] == pytest.approx((100 + 80) / 2)


def test_questions_without_an_answer():
    predictions = ["cat", "", "dog", ""]
    references = [["cat"], ["red cat"], [], []]
    assert scores(predictions, references) == {
        "exact_match": 50.0, "f1": 50.0, "has_answer_exact_match": 50.0, "has_answer_f1": 50.0,
        "no_answer_accuracy": 50.0, "scoring": "SQuAD 2.0",
    }  # fmt: skip
    assert scores(predictions[:1], references[:1], version_2=True)["scoring"] == "SQuAD 2.0"
    assert "has_answer_f1" not in scores(predictions[2:], references[2:])


def test_best_threshold():
    # Answering is right for the first and the third question, silence for the others.
    differences, answered, unanswered = [-3.0, 2.0, -1.0, 1.0], [1, 0, 1, 0], [0, 1, 0, 1]
    assert best_threshold(differences, answered, unanswered) == -1.0
    assert best_threshold(differences, [0] * 4, [1] * 4) == -math.inf
    assert best_threshold(differences, [1] * 4, [0] * 4) == 2.0
    # Of questions with one difference, all are answered or none: 1 + 1 - 3 < 0.
    assert best_threshold([0.0] * 3, [1, 1, 0], [0, 0, 3]) == -math.inf
    assert best_threshold([0.0] * 3, [1, 1, 0], [0, 0, 1]) == 0.0
