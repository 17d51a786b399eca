"""Checkpoints that are written while training goes on."""

import concurrent.futures
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from trainers.run import checkpoint


class Saver:
    """Copies a run's state, and writes the copy to the disk in a thread of its own.

    Training stops for the copy alone; the memory for it, as large as the state, is taken at the
    start. One checkpoint is written at a time. The process does not end before it is whole.

    Args:
      folder: of the checkpoints.
      step: a `TrainStep`.
      keep: how many checkpoints to keep.
      after: called in the thread once a checkpoint is written.
    """

    def __init__(self, folder: Path, step, keep: int, after: Callable[[], None]):
        self._folder, self._step, self._keep, self._after = folder, step, keep, after
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._buffers = self._thread.submit(checkpoint.allocate, step)
        self._pending: Future | None = None

    def save(self, counters: dict) -> None:
        """Begins to write a checkpoint, once the one before is whole.

        Raises:
          OSError: as the disk said, of the one before.
        """
        self.wait()
        snapshot = checkpoint.Snapshot(self._step, counters, self._buffers.result())
        self._pending = self._thread.submit(self._write, snapshot)

    def wait(self) -> None:
        """Waits until the checkpoint that was begun is whole; raises what kept it from that."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def wait_at_most(self, seconds: float) -> None:
        """Waits from another thread, whatever becomes of it."""
        if pending := self._pending:
            concurrent.futures.wait([pending], seconds)

    def close(self) -> None:
        """Waits, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, snapshot: checkpoint.Snapshot) -> None:
        checkpoint.store(self._folder, snapshot, self._keep)
        self._after()
