"""Some rows of an array, in memory or left on the disk; in how many updates all are seen."""

import math

import numpy as np

from zoo.data.windows import Windows

LARGEST_HELD = 2**30  # bytes of an array that is copied into memory


def is_held(array) -> bool:
    """Whether an array is held in memory; others are read as they are asked for."""
    return isinstance(array, np.ndarray) and array.nbytes <= LARGEST_HELD


def rows_of(array, rows: np.ndarray):
    """Returns some rows of an array; what is too large for the memory stays on the disk."""
    return array[rows] if is_held(array) or isinstance(array, Windows) else Rows(array, rows)


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Returns the number of updates that see every row once; the last batch may be padded."""
    return -(-examples // batch_size)


class Rows:
    """Some rows of an array that is too large for the memory; read as they are asked for.

    Args:
      array: has a shape, a type, and rows by arrays of their numbers.
      rows: the numbers, in order.
    """

    def __init__(self, array, rows: np.ndarray):
        self._array, self._numbers = array, rows
        self.shape, self.dtype = (len(rows), *array.shape[1:]), array.dtype
        self.ndim, self.size = len(self.shape), math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index):
        numbers = self._numbers[index]
        return self._array[numbers]

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype)
