"""Goodput: the share of a run's wall-clock time spent in updates that were not lost.

Wall-clock time counts from the first start of the run and includes the time between two starts.
Useful time is the time of updates that a checkpoint holds or will hold. The first update of each
start (tracing and compilation), evaluation, saving, and updates repeated after a kill are not
useful.
"""

import contextlib
import time

from trainers.run.state import RunState


class Goodput:
    """Adds the seconds of updates to `state.useful`, which is part of the checkpoint.

    Args:
      state: the run's `RunState`.
      born: time of the first start, in seconds since 1970.
    """

    def __init__(self, state: RunState, born: float):
        self._state, self._born = state, born
        self._traced = False

    @contextlib.contextmanager
    def update(self):
        """Returns a context for the call that runs updates; the first call, which traces, is not
        counted."""
        with self.wait() if self._traced else contextlib.nullcontext():
            yield
        self._traced = True

    @contextlib.contextmanager
    def wait(self):
        """Returns a context for a wait for the device; its time is useful."""
        start = time.perf_counter()
        yield
        self._state.useful += time.perf_counter() - start

    def share(self) -> float:
        """Returns the goodput so far, in [0, 1]."""
        return min(1.0, self._state.useful / max(time.time() - self._born, 1e-9))
