"""Questions of a known depth, and the rows that ask them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoo.data.text.special_tokens import FIRST_WORD

NONE = -1


@dataclass(frozen=True)
class Question:
    """A question at the end of a row.

    Attributes:
      query: bytes of the question.
      chain: bytes of the answer: the written-out steps, if any, and last the answer itself.
      depth: number of steps that the answer takes.
    """

    query: Sequence[int]
    chain: Sequence[int]
    depth: int


def row_of(prompt: Sequence[int], questions: Sequence[Question], length: int) -> np.ndarray:
    """Returns a row that asks questions.

    The model predicts the first byte of a chain at the last byte of the query. The next byte of
    the row is the first byte of the chain if there are more, so that the model reads its steps, but
    never an answer.

    Args:
      prompt: bytes that no question belongs to.
      questions: the questions in order.
      length: number of positions T; shorter rows are padded.

    Returns:
      (4, T) int16: tokens, -1 for padding; the token to predict, -1 for none; the depth of the
      question whose chain the position predicts, 0 for none; the number of this question from 1 on,
      0 for none.
    """
    row = np.array([[NONE], [NONE], [0], [0]], np.int16).repeat(length, axis=1)
    row[0, : len(prompt)] = np.array(prompt) + FIRST_WORD
    place = len(prompt)
    for number, question in enumerate(questions, 1):
        inputs = [*question.query, *question.chain[:-1]]
        end, count = place + len(inputs), len(question.chain)
        row[0, place:end] = np.array(inputs) + FIRST_WORD
        row[1, end - count : end] = np.array(question.chain) + FIRST_WORD
        row[2, end - count : end], row[3, end - count : end] = question.depth, number
        place = end
    return row
