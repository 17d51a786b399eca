"""Arrays whose rows are computed when they are read."""

from collections.abc import Callable

import numpy as np


class ComputedRows:
    """Rows that are computed when they are read.

    Args:
      compute: `compute(index)` returns the row of an index, of the shape and dtype of row 0.
      count: number of rows.
    """

    def __init__(self, compute: Callable[[int], np.ndarray], count: int):
        first = compute(0)
        self._compute, self.shape, self.dtype = compute, (count, *first.shape), first.dtype
        self.ndim, self.size = 1 + first.ndim, count * first.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        numbers = np.arange(len(self))[index]
        if not np.ndim(numbers):
            return self._compute(int(numbers))
        return np.stack([self._compute(int(number)) for number in numbers])
