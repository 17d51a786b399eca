"""`synthetic:sort`: the numbers of a list in order.

A row lists `depth` different numbers below `NUMBERS` and then asks for each rank, in random order,
by the byte `RANK` + rank. The depth of all its questions is the length of the list. With
written-out steps, the row has one question: `RANK` after the list, then the sorted list.
"""

import numpy as np

from zoo.data.text.synthetic.question import Question

NUMBERS = 128
RANK = 128  # byte of the smallest number's rank
_ROWS = 2000


def sort(generator, depth: int, largest: int, steps: bool):
    """Returns the row of one list; see `zoo.data.text.synthetic.chase.chase`."""
    numbers = generator.permutation(NUMBERS)[:depth]
    ordered = np.sort(numbers).tolist()
    if steps:
        return numbers.tolist(), [Question([RANK], ordered, depth)], bytes(ordered)
    questions = [Question([RANK + i], [ordered[i]], depth) for i in generator.permutation(depth)]
    return numbers.tolist(), questions, bytes(ordered)


def sort_length(depth: int, steps: bool) -> int:
    """Returns the length of a row of a depth."""
    return 2 * depth


def sort_guess(depth: int) -> float:
    """Returns the accuracy of the best guess that compares no numbers of the list.

    The guess is the number of the list that is closest to the mean of its rank, measured on 2,000
    lists.
    """
    generator = np.random.default_rng(0)
    lists = np.stack([generator.permutation(NUMBERS)[:depth] for _ in range(_ROWS)])
    means = (np.arange(depth) + 1) * (NUMBERS + 1) / (depth + 1) - 1
    closest = np.abs(lists[:, None, :] - means[:, None]).argmin(-1)  # (rows, ranks)
    return float((np.take_along_axis(lists, closest, 1) == np.sort(lists, axis=1)).mean())
