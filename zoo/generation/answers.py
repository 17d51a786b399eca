"""Answers of a model for extractive question answering: the best spans of a context.

    for answers in question_answers(model, arrays, questions, tokenizer):
        print(answers.spans[0].text)

Axes: W windows, T positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zoo.data.text.questions.offsets import encode_with_offsets
from zoo.data.text.questions.squad import Question
from zoo.generation.text_logits import text_logits

MAX_ANSWER = 30
SPANS = 20  # number of spans to return


@dataclass(frozen=True)
class Span:
    """A span of a context.

    Attributes:
      text: `context[start:end]`.
      start: first character.
      end: end of the characters.
      score: sum of the logits of its first and its last token.
    """

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Answers:
    """Answers to a question.

    Attributes:
      spans: spans of different texts, best first, at least one.
      null_score: score of "no answer": the lowest one of all windows.
    """

    spans: list[Span]
    null_score: float

    def text(self, threshold: float) -> str:
        """Returns the best answer, or "" if "no answer" exceeds it by more than the threshold."""
        best = self.spans[0]
        return "" if self.null_score - best.score > threshold else best.text


def question_answers(
    model,
    arrays: Mapping[str, np.ndarray],
    questions: Sequence[Question],
    tokenizer,
    max_answer: int = MAX_ANSWER,
    count: int = SPANS,
) -> Iterator[Answers]:
    """Yields the answers to each question, in order.

    Args:
      model: model with a head of `zoo.tasks.qa`.
      arrays: windows of all questions, as `zoo.data.text.questions.dataset` stores them, in the
        order of the questions.
      questions: questions, which "example" of the arrays refers to.
      tokenizer: tokenizer of the windows.
      max_answer: largest number of tokens of an answer.
      count: number of spans per question.
    """
    bounds = np.searchsorted(arrays["example"], np.arange(len(questions) + 1))
    logits, context = text_logits(model, arrays), None
    for number, question in enumerate(questions):
        if question.context != context:
            context = question.context
            _, starts, ends = encode_with_offsets(tokenizer, context)
        spans: dict[str, Span] = {}
        null_score = np.inf
        for row in range(bounds[number], bounds[number + 1]):
            positions = np.flatnonzero(arrays["context"][row])
            first = int(arrays["first"][row])
            tokens = slice(first, first + len(positions))
            start_logits, end_logits = logits[row, positions].T
            null_score = min(null_score, float(logits[row, 0].sum()))
            for span in best_spans(
                start_logits, end_logits, starts[tokens], ends[tokens], context, max_answer, count
            ):
                # Windows overlap, and an answer may occur more than once.
                if span.text not in spans or span.score > spans[span.text].score:
                    spans[span.text] = span
        ordered = sorted(spans.values(), key=lambda span: -span.score)
        yield Answers(ordered[:count], null_score)


def best_spans(
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    context: str,
    max_answer: int,
    count: int,
) -> list[Span]:
    """Returns the best spans of one window, best first.

    Args:
      start_logits: (m,) logits of the context tokens of the window.
      end_logits: (m,).
      starts: (m,) first character of each token.
      ends: (m,) end of each token.
      context: the context.
      max_answer: largest number of tokens of a span.
      count: number of spans; spans of white space alone are left out.
    """
    size = len(start_logits)
    width = min(max_answer, size)
    padded = np.append(end_logits, np.full(width - 1, -np.inf, end_logits.dtype))
    lengths = np.lib.stride_tricks.sliding_window_view(padded, width)
    # [i, d] is the score of the span of the tokens i to i + d.
    scores = (start_logits[:, None] + lengths).reshape(-1)
    order = np.argsort(-scores, kind="stable")
    spans = []
    for index in order:
        if len(spans) == count or scores[index] == -np.inf:
            break
        first, length = divmod(int(index), width)
        start, end = int(starts[first]), int(ends[first + length])
        text = context[start:end]
        start += len(text) - len(text.lstrip())
        if text := text.strip():
            spans.append(Span(text, start, start + len(text), float(scores[index])))
    return spans
