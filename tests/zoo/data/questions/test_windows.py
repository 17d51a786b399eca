"""Windows of contexts: together they hold every token, and each knows its part of the answer."""

import numpy as np
import pytest

from zoo.data.text.questions.windows import (
    answer_positions,
    answer_tokens,
    check_sizes,
    make_windows,
)
from zoo.data.text.special_tokens import SEPARATOR, START
from zoo.errors import UsageError


def test_a_short_context_is_one_row():
    windows = make_windows(np.array([11, 12]), np.array([21, 22, 23]), 10, 4, 5)
    assert windows["tokens"].tolist() == [[START, 11, 12, SEPARATOR, 21, 22, 23, SEPARATOR, 0, 0]]
    assert windows["types"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 0, 0]]
    assert windows["context"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 0, 0, 0]]
    assert windows["first"].tolist() == [0]


@pytest.mark.parametrize("stride", [1, 3, 100])
@pytest.mark.parametrize("question", [1, 4, 9])
@pytest.mark.parametrize("size", [1, 5, 6, 7, 30])
def test_rows_hold_every_token_and_every_answer(size, question, stride):
    context, length = 100 + np.arange(size), 12
    windows = make_windows(10 + np.arange(question), context, length, stride, 4)
    head = 2 + min(question, 4)
    room = length - head - 1
    seen = set()
    for row in range(len(windows["first"])):
        mask = windows["context"][row].astype(bool)
        first, part = windows["first"][row], windows["tokens"][row][mask]
        np.testing.assert_array_equal(part, context[first : first + room])
        assert windows["tokens"][row][head - 1] == SEPARATOR
        assert windows["tokens"][row][head + len(part)] == SEPARATOR
        assert not windows["tokens"][row][head + len(part) + 1 :].any()
        seen |= set(part)
    assert seen == set(context)
    # Every answer that fits in a row with its neighbors is whole in at least one window.
    for first in range(size):
        last = min(first + max(room - min(stride, room), 0), size - 1)
        start, end = answer_positions(windows, first, last)
        rows = np.arange(len(start))
        assert start.any()
        has_answer = start > 0
        assert (windows["tokens"][rows, start] == context[first])[has_answer].all()
        assert (windows["tokens"][rows, end] == context[last])[has_answer].all()
        assert not end[~has_answer].any()
        inside = (windows["first"] <= first) & (last < windows["first"] + room)
        np.testing.assert_array_equal(has_answer, inside)


def test_tokens_of_an_answer_overlap_it():
    # Tokens of "ab cd  ef": "ab", " cd", " ", " ef"; then the same without spaces.
    starts, ends = np.array([0, 2, 5, 6]), np.array([2, 5, 6, 9])
    assert answer_tokens(starts, ends, 3, 5) == (1, 1)
    assert answer_tokens(starts, ends, 1, 4) == (0, 1)
    assert answer_tokens(starts, ends, 7, 9) == (3, 3)
    starts, ends = np.array([0, 3, 7]), np.array([2, 5, 9])
    assert answer_tokens(starts, ends, 3, 5) == (1, 1)
    assert answer_tokens(starts, ends, 3, 9) == (1, 2)


def test_rows_without_room_are_refused():
    check_sizes(68, 1, 64)
    with pytest.raises(UsageError, match="must be at least 68"):
        check_sizes(67, 1, 64)
    with pytest.raises(UsageError, match="must be positive"):
        check_sizes(67, 0, 4)
