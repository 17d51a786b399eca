"""Rows of tokens for extractive question answering: <start> question <sep> context <sep>.

A context that is longer than a row is cut into overlapping windows, one row each (Devlin et al.
2018, section 4.2). Axes: W windows, T positions.
"""

import numpy as np

from zoo.data.text.special_tokens import PADDING, SEPARATOR, START
from zoo.errors import UsageError

STRIDE = 128
MAX_QUESTION = 64
_SPECIAL_TOKENS = 3  # of a row


def check_sizes(length: int, stride: int, max_question: int) -> None:
    """Raises `UsageError` if a row has no room for a question and a part of the context."""
    minimum = max_question + _SPECIAL_TOKENS + 1
    if length < minimum:
        raise UsageError(
            f"data.sequence_length must be at least {minimum} for task.max_question="
            f"{max_question}: the question, {_SPECIAL_TOKENS} special tokens and the context. "
            f"Received: {length}."
        )
    if stride < 1 or max_question < 1:
        raise UsageError(
            "task.stride and task.max_question must be positive. Received: "
            f"task.stride={stride}, task.max_question={max_question}."
        )


def make_windows(
    question: np.ndarray, context: np.ndarray, length: int, stride: int, max_question: int
) -> dict[str, np.ndarray]:
    """Creates the rows of one question.

    Args:
      question: ids (n,) of the question; tokens beyond `max_question` are cut off.
      context: ids (m,) of the context, at least one.
      length: length T of a row.
      stride: number of context tokens between the starts of two windows, at most the room for the
        context in a row.
      max_question: largest number of tokens of the question.

    Returns:
      "tokens" (W, T) int32, 0 for padding; "types" (W, T) uint8, 1 for the context and its <sep>;
      "context" (W, T) uint8, 1 for the context; "first" (W,) int32, index in `context` of the first
      context token of each row.
    """
    head = np.concatenate([[START], question[:max_question], [SEPARATOR]])
    room = length - len(head) - 1
    firsts = [0]
    while firsts[-1] + room < len(context):
        firsts.append(firsts[-1] + min(stride, room))
    tokens = np.full((len(firsts), length), PADDING, np.int32)
    types, mask = (np.zeros((len(firsts), length), np.uint8) for _ in range(2))
    tokens[:, : len(head)] = head
    for row, first in enumerate(firsts):
        part = context[first : first + room]
        end = len(head) + len(part)
        tokens[row, len(head) : end], tokens[row, end] = part, SEPARATOR
        types[row, len(head) : end + 1] = 1
        mask[row, len(head) : end] = 1
    first = np.array(firsts, np.int32)
    return {"tokens": tokens, "types": types, "context": mask, "first": first}


def answer_tokens(starts: np.ndarray, ends: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """Returns the first and the last token that overlap `context[start:end]`.

    Args:
      starts: (m,) first character of each token, see `zoo.data.text.questions.offsets`.
      ends: (m,) end of each token.
      start: first character of the answer.
      end: end of the answer.

    Returns:
      `(first, last)`. Every character but white space is in a token, so that first <= last.
    """
    first = int(np.searchsorted(ends, start, side="right"))
    return first, int(np.searchsorted(starts, end, side="left")) - 1


def answer_positions(windows: dict, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of an answer in each row, (0, 0) where the row lacks a part of it.

    Args:
      windows: result of `make_windows`.
      first: first context token of the answer.
      last: last context token of the answer.

    Returns:
      `(start, end)`, both (W,) int32.
    """
    begin = windows["context"].argmax(axis=1)  # position of the first context token
    count = windows["context"].sum(axis=1, dtype=np.int32)
    inside = (first >= windows["first"]) & (last < windows["first"] + count)
    shift = begin - windows["first"]
    positions = (np.where(inside, token + shift, 0).astype(np.int32) for token in (first, last))
    return tuple(positions)
