"""Writes checkpoints in the background while training continues."""

import concurrent.futures
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from trainers.run import checkpoint

_LOG = logging.getLogger(__name__)


class Saver:
    """Copies the state of a run and writes the copy to disk in a background thread.

    Training pauses only for the copy. Its memory, as large as the state, is allocated at the start.
    One checkpoint is written at a time, and the process does not end before it is complete.

    Args:
      folder: the folder of the checkpoints.
      step: a `TrainStep`.
      keep: number of checkpoints to keep.
      after: called in the thread after each checkpoint.
    """

    def __init__(self, folder: Path, step, keep: int, after: Callable[[], None]):
        self._folder, self._step, self._keep, self._after = folder, step, keep, after
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._buffers = self._thread.submit(checkpoint.allocate, step)
        self._pending: Future | None = None

    def save(self, counters: dict) -> None:
        """Starts to write a checkpoint, after the previous one is complete.

        Raises:
          OSError: if the previous checkpoint could not be written.
        """
        self.wait()
        snapshot = checkpoint.Snapshot(self._step, counters, self._buffers.result())
        self._pending = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Waits until the current checkpoint is complete; raises OSError if it is not written."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def wait_at_most(self, seconds: float) -> None:
        """Waits for the current checkpoint from another thread, and ignores its errors."""
        if pending := self._pending:
            concurrent.futures.wait([pending], seconds)

    def close(self) -> None:
        """Waits for the current checkpoint, then ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, snapshot: checkpoint.Snapshot) -> None:
        start = time.perf_counter()
        checkpoint.store(self._folder, snapshot, self._keep)
        _LOG.debug(f"checkpoint written to {self._folder} in {time.perf_counter() - start:.2f} s")
        self._after()
