"""`synthetic:duplication`: 0 w 0 w 0, with w of random symbols 1 to 127. The second w is asked.

The task of Kitaev et al. 2020 (Reformer, arXiv:2001.04451, section 2, "Analysis on a synthetic
task").
"""

import numpy as np

NUM_SYMBOLS = 127


def duplication(generator, length: int) -> np.ndarray:
    """Returns a row (length + 1,) of bytes: 0 w 0 w 0.

    Args:
      generator: NumPy random generator.
      length: number of input positions, even.
    """
    row = np.zeros(length + 1, np.uint8)
    row[1 : length // 2] = generator.integers(1, NUM_SYMBOLS + 1, length // 2 - 1)
    row[length // 2 + 1 : -1] = row[1 : length // 2]
    return row


def duplication_targets(length: int) -> np.ndarray:
    """Returns whether each byte of a row is a target, (length + 1,) booleans."""
    places = np.arange(length + 1)
    return (places > length // 2) & (places < length)
