"""ROUGE by worked examples, also of Persian text."""

import pytest

from zoo.generation.scores.summaries import UnicodeWords, scores


def test_scores_by_hand():
    values = scores(["the cat sat", "a b"], ["the cat ran away", "c d"])
    # Words: 2 of 3 and 2 of 4, F1 = 4/7; pairs: 1 of 2 and 1 of 3, F1 = 2/5. Second pair: 0.
    assert values["rouge1"] == pytest.approx(100 * (4 / 7) / 2)
    assert values["rouge2"] == pytest.approx(100 * (2 / 5) / 2)
    assert values["rougeL"] == pytest.approx(100 * (4 / 7) / 2)


def test_persian_words_count():
    words = UnicodeWords().tokenize("کتاب‌های تازه، 25 Mai")
    assert words == ["کتاب‌های", "تازه", "25", "mai"]
    assert scores(["کتاب تازه"], ["کتاب تازه"])["rouge2"] == pytest.approx(100)
