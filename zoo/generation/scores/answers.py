"""Exact match and F1 of answers, as the evaluation scripts of SQuAD 1.1 and 2.0 compute them.

Rajpurkar et al. 2016 (arXiv:1606.05250, section 6.1) and 2018 (arXiv:1806.03822, section 4). Both
measures are 0 to 100, and compare texts without case, English articles, ASCII punctuation and
differences in white space. A question counts with its most similar reference.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))


def normalize_answer(text: str) -> str:
    """Returns a text in lower case, without English articles, ASCII punctuation and extra space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """Returns 1 if two normalized texts are equal, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def f1(prediction: str, reference: str, *, empty_matches: bool) -> float:
    """Returns the F1 of the words of two normalized texts, 0 to 1.

    Args:
      prediction: an answer; "" for no answer.
      reference: another answer.
      empty_matches: whether two texts without words match, as in SQuAD 2.0; in 1.1 they do not.
    """
    predicted, expected = (normalize_answer(text).split() for text in (prediction, reference))
    if empty_matches and not (predicted and expected):
        return float(predicted == expected)
    common = (Counter(predicted) & Counter(expected)).total()
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def question_scores(
    prediction: str, references: Sequence[str], *, version_2: bool
) -> tuple[float, float]:
    """Returns `(exact match, F1)` of one question, 0 to 1.

    Args:
      prediction: the answer; "" for no answer.
      references: reference answers; () if the question has no answer, only with `version_2`.
      version_2: whether to score by the rules of SQuAD 2.0.
    """
    if version_2:
        references = [text for text in references if normalize_answer(text)] or [""]
    return (
        max(exact_match(prediction, text) for text in references),
        max(f1(prediction, text, empty_matches=version_2) for text in references),
    )


def scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], version_2: bool | None = None
) -> dict[str, float | str]:
    """Scores the answers of a split.

    Args:
      predictions: one answer per question; "" for no answer.
      references: reference answers of each question.
      version_2: whether to score by the rules of SQuAD 2.0; by default if a question has no answer.

    Returns:
      "exact_match" and "f1", 0 to 100, and "scoring", the rules. If some questions have no answer,
      also both measures of the questions with an answer ("has_answer_…") and the share of questions
      without an answer for which none is predicted ("no_answer_accuracy").
    """
    has_answer = np.array([bool(texts) for texts in references])
    if version_2 is None:
        version_2 = not has_answer.all()
    pairs = zip(predictions, references, strict=True)
    table = 100 * np.array([question_scores(*pair, version_2=version_2) for pair in pairs])
    result: dict[str, float | str] = {
        "exact_match": float(table[:, 0].mean()),
        "f1": float(table[:, 1].mean()),
    }
    if has_answer.any() and not has_answer.all():
        result["has_answer_exact_match"] = float(table[has_answer, 0].mean())
        result["has_answer_f1"] = float(table[has_answer, 1].mean())
    if not has_answer.all():
        result["no_answer_accuracy"] = float(table[~has_answer, 0].mean())
    return {**result, "scoring": "SQuAD 2.0" if version_2 else "SQuAD 1.1"}


def best_threshold(
    differences: Sequence[float], answered: Sequence[float], unanswered: Sequence[float]
) -> float:
    """Returns the threshold with the best sum of scores.

    A question is answered if its difference does not exceed the threshold.

    Args:
      differences: score of "no answer" minus that of the best answer, per question.
      answered: score of each question if it is answered.
      unanswered: score of each question if it is not answered.

    Returns:
      One of the differences, or -inf to answer no question.
    """
    order = np.argsort(differences, kind="stable")
    sorted_differences = np.asarray(differences, float)[order]
    gains = np.asarray(answered, float)[order] - np.asarray(unanswered, float)[order]
    totals = np.append(0.0, np.cumsum(gains))
    # All questions of one difference are answered, or none of them.
    totals[1:-1][sorted_differences[:-1] == sorted_differences[1:]] = -np.inf
    best = int(totals.argmax())
    return float(sorted_differences[best - 1]) if best else float("-inf")
