"""ROUGE of summaries (Lin 2004), with words of any script."""

import re
from collections.abc import Sequence

_WORD = re.compile(r"\w+(?:[\u200c\u200d]+\w+)*")


class UnicodeWords:
    """Tokenizer of rouge_score: lower-cased words of letters, digits and marks of any script.

    The tokenizer of rouge_score itself keeps a to z and digits alone, so that Persian text has no
    words.
    """

    def tokenize(self, text: str) -> list[str]:
        """Returns the words of a text."""
        return _WORD.findall(text.lower())


def scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Scores summaries with one reference each.

    Args:
      predictions: summaries, plain text.
      references: references, plain text, one per prediction.

    Returns:
      "rouge1", "rouge2" and "rougeL": mean F1 of words, pairs of words, and of the longest common
      subsequence, by the library rouge_score, 0 to 100.
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(names, tokenizer=UnicodeWords())
    results = [
        scorer.score(reference, prediction)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {
        name: 100 * sum(result[name].fmeasure for result in results) / len(results)
        for name in names
    }
