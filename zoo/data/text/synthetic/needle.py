"""`synthetic:needle`: filler with pairs "KK:VVVV" at random places, then "KK=VVVV" for each pair.

The filler consists of lower-case letters and spaces, a key of two upper-case letters, and a value
of four bytes from 128 to 255. The last values are the targets.
"""

import numpy as np

NUM_PAIRS = 4
_FILLER = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ", np.uint8)
_KEY, _VALUE = 2, 4  # number of bytes
PAIR = _KEY + 1 + _VALUE


def needle(generator, length: int) -> np.ndarray:
    """Returns a row (length + 1,) of bytes: filler with pairs, then the questions.

    Args:
      generator: NumPy random generator.
      length: number of input positions.
    """
    pairs = np.empty((NUM_PAIRS, PAIR), np.uint8)
    keys = generator.choice(26**2, NUM_PAIRS, replace=False)
    pairs[:, 0], pairs[:, 1] = ord("A") + keys // 26, ord("A") + keys % 26
    pairs[:, _KEY] = ord(":")
    pairs[:, _KEY + 1 :] = generator.integers(128, 256, (NUM_PAIRS, _VALUE))
    size = NUM_PAIRS * PAIR
    row = generator.choice(_FILLER, length + 1)
    free = np.sort(generator.integers(0, length + 2 - 2 * size, NUM_PAIRS))
    for pair, start in zip(pairs, free + PAIR * np.arange(NUM_PAIRS), strict=True):
        row[start : start + PAIR] = pair
    questions = generator.permutation(pairs)
    questions[:, _KEY] = ord("=")
    row[-size:] = questions.reshape(-1)
    return row


def needle_targets(length: int) -> np.ndarray:
    """Returns whether each byte of a row is a target, (length + 1,) booleans."""
    targets = np.zeros(length + 1, bool)
    targets[-NUM_PAIRS * PAIR :] = np.tile(np.arange(PAIR) > _KEY, NUM_PAIRS)
    return targets
