"""Rows of arrays in memory or on the disk, and the number of steps per epoch."""

import math

import numpy as np

from zoo.data.windows import Windows

MAX_IN_MEMORY = 2**30  # bytes; larger arrays are read from the disk as needed


def is_in_memory(array) -> bool:
    """Returns whether an array is copied into memory; other arrays are read as needed."""
    return isinstance(array, np.ndarray) and array.nbytes <= MAX_IN_MEMORY


def rows_of(array, rows: np.ndarray):
    """Selects rows of an array; large arrays stay on the disk."""
    if is_in_memory(array) or isinstance(array, Windows):
        return array[rows]
    return SelectedRows(array, rows)


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Returns the number of batches that cover every row once; the last one may be padded."""
    return -(-examples // batch_size)


class SelectedRows:
    """A selection of rows of a large array, which reads rows as needed.

    Args:
      array: has a shape and a dtype, and returns rows for an array of indices.
      rows: indices of the selected rows.
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
