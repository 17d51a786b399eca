"""Goodput: which share of a run's life went into updates that it has kept.

The life counts from the first start by the clock on the wall, the time between two starts in it.
Useful are updates that a checkpoint holds or will hold; the first of each start, which traces and
compiles, is not, nor is validating, saving, or what a kill made be done again.
"""

import contextlib
import time

from trainers.run.state import RunState


class Goodput:
    """Adds the seconds of updates to `state.useful`, which a checkpoint keeps.

    Args:
      state: of the run.
      born: time of its first start, in seconds since 1970.
    """

    def __init__(self, state: RunState, born: float):
        self._state, self._born = state, born
        self._traced = False

    @contextlib.contextmanager
    def update(self):
        """Around the call that computes updates; the first one of a process traces."""
        with self.wait() if self._traced else contextlib.nullcontext():
            yield
        self._traced = True

    @contextlib.contextmanager
    def wait(self):
        """Around a wait for the device to have done them."""
        start = time.perf_counter()
        yield
        self._state.useful += time.perf_counter() - start

    def share(self) -> float:
        """The goodput until now, in [0, 1]."""
        return min(1.0, self._state.useful / max(time.time() - self._born, 1e-9))
