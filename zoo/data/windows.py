"""Windows of equal length over a stream of tokens, shifted in each epoch."""

import numpy as np


class Windows:
    """Windows of `length + 1` tokens that overlap by one token.

    With inputs `window[:-1]` and targets `window[1:]`, every token but the first is a target once.
    In training, the windows start later by a phase that differs per epoch, so that tokens get
    different contexts; the start of the stream then follows its end.

    Args:
      stream: (N,) integers, in memory or mapped.
      length: number of positions of a window.
    """

    def __init__(self, stream, length: int):
        self.stream, self.stride = stream, length
        self.shape = (max(1, -(-(len(stream) - 1) // length)), length + 1)
        self.dtype, self.ndim = np.dtype(np.int32), 2

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, index, phase=0) -> np.ndarray:
        """Returns windows (n, length + 1) int32, with -1 after the end of the stream.

        Args:
          index: (n,) integers below `len(self)`.
          phase: number of tokens, below `stride`, by which the windows start later.
        """
        out = np.full((len(index), self.shape[1]), -1, np.int32)
        size = len(self.stream)
        for row, start in zip(out, np.asarray(index) * self.stride + phase, strict=True):
            count = min(self.shape[1], size + phase - start)
            tokens = self.stream[start : start + count]
            row[: len(tokens)] = tokens
            if len(tokens) < count:  # wraps around; several times if the stream is very short
                places = np.arange(start + len(tokens), start + count) % size
                row[len(tokens) : count] = self.stream[places]
        return out

    def __getitem__(self, index) -> np.ndarray:
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        return self.take(np.atleast_1d(index)) if np.ndim(index) else self.take([index])[0]
