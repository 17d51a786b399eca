"""An endless stream of tokens as equally long windows, cut elsewhere in each epoch."""

import numpy as np


class Windows:
    """Windows of `length + 1` tokens, each beginning where the one before has its last token.

    With inputs `window[:-1]` and targets `window[1:]` every token but the first is a target once.
    In training the cuts move by a phase that differs from epoch to epoch, so that a token is not
    always seen with the same context; the stream is then a ring, and what comes before the first
    cut follows on its end.

    Args:
      stream: (N,) integers, in memory or mapped.
      length: positions of a window.
    """

    def __init__(self, stream, length: int):
        self.stream, self.stride = stream, length
        self.shape = (max(1, -(-(len(stream) - 1) // length)), length + 1)
        self.dtype, self.ndim = np.dtype(np.int32), 2

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, index, phase=0) -> np.ndarray:
        """Returns windows (n, length + 1) int32; -1 where all of the stream has been seen.

        Args:
          index: (n,) integers below `len(self)`.
          phase: how many tokens later than in stored order they begin, below `stride`.
        """
        out = np.full((len(index), self.shape[1]), -1, np.int32)
        size = len(self.stream)
        for row, start in zip(out, np.asarray(index) * self.stride + phase, strict=True):
            count = min(self.shape[1], size + phase - start)
            tokens = self.stream[start : start + count]
            row[: len(tokens)] = tokens
            if len(tokens) < count:  # around, for streams shorter than a phase more than once
                places = np.arange(start + len(tokens), start + count) % size
                row[len(tokens) : count] = self.stream[places]
        return out

    def __getitem__(self, index) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        return self.take(np.atleast_1d(index)) if np.ndim(index) else self.take([index])[0]
