"""Saving, restoring and rolling back to checkpoints, on one worker or several."""

import io
from pathlib import Path

from trainers.run import checkpoint
from trainers.run.events import Events
from trainers.run.goodput import Goodput
from trainers.run.saver import Saver
from trainers.run.state import RunState
from trainers.train.hooks.base import CheckpointHook, RollbackHook
from trainers.train.hooks.log_windows import LogWindows
from trainers.train.hooks.periods import Periods
from zoo.errors import RunError


class Checkpoints(CheckpointHook):
    """The checkpoints in a work directory. Only the chief reads and writes files.

    Args:
      state: the run's `RunState`.
      step: the `TrainStep`.
      windows: the run's log windows.
      group: the group of all workers.
      workdir: the work directory.

    Attributes:
      saver: writes checkpoints in the background; None until training starts, and on workers
        other than the chief.
    """

    def __init__(self, state: RunState, step, windows: LogWindows, group, workdir):
        self._state, self._step, self._windows = state, step, windows
        self._group, self._workdir = group, workdir
        self.saver: Saver | None = None

    def files(self) -> list[tuple[int, Path]]:
        """Returns `(step, path)` of each checkpoint that the chief sees in the work directory."""
        self.wait()
        files = checkpoint.list_checkpoints(self._workdir / "checkpoints")
        shared_files = self._group.share([(step, str(path)) for step, path in files])
        return [(step, Path(path)) for step, path in shared_files]

    def save(self) -> None:
        state = self._state
        if self._group.count > 1:
            self._group.check_same(
                f"weights after update {state.done}", checkpoint.digest(self._step)
            )
        state.windows = self._windows.state()
        state.lines = self._workdir.lines
        if self._group.chief:
            self.saver.save(state.counters())

    def wait(self) -> None:
        """Waits until the last checkpoint is written."""
        if self.saver:
            self.saver.wait()

    def close(self) -> None:
        """Waits for the current checkpoint, then ends the thread that writes."""
        if self.saver:
            self.saver.close()

    def load(self, path: Path) -> None:
        """Restores a checkpoint on the chief; call `share` next."""
        if self._group.chief:
            self._state.restore(checkpoint.restore(path, self._step))

    def share(self) -> None:
        """Sends the chief's state to all workers."""
        if self._group.count == 1:
            return
        file = io.BytesIO()
        if self._group.chief:
            checkpoint.write(file, checkpoint.Snapshot(self._step, self._state.counters()))
        content = self._group.share(file.getvalue())
        if not self._group.chief:
            self._state.restore(checkpoint.restore(content, self._step))

    def restore(self, files: list[tuple[int, Path]], fresh: bool) -> None:
        """Restores the last checkpoint, if there is one, on all workers.

        Args:
          files: the result of `files()`.
          fresh: whether a run without a checkpoint starts from initial values, which are equal on
            all workers already.
        """
        if files:
            try:
                self.load(files[-1][1])
            except RunError as error:
                older = f"step {files[-2][0]}" if len(files) > 1 else "the beginning"
                raise RunError(f"{error} Delete the file to continue from {older}.") from None
        if files or not fresh:
            self.share()
        if self._state.windows:
            self._windows.restore(self._state.windows)
        self._state.done = int(self._step.count.numpy())


class Rollback(RollbackHook):
    """Rolls back to the last checkpoint if the loss is not finite, and skips the bad batches.

    Args:
      max_rollbacks: how many rollbacks a run may have.
      state: the run's `RunState`.
      periods: the run's periods.
      step: the `TrainStep`; its `first_bad` is the first update whose loss was not finite.
      windows: the run's log windows.
      checkpoints: the run's checkpoints.
      goodput: accounts for the wait for the device.
      workdir: the work directory.
      events: receives a message for each rollback.
    """

    def __init__(
        self, max_rollbacks: int, state: RunState, periods: Periods, step, windows: LogWindows,
        checkpoints: Checkpoints, goodput: Goodput, workdir, events: Events,
    ):  # fmt: skip
        self._max_rollbacks = max_rollbacks
        self._state, self._periods, self._step = state, periods, step
        self._windows, self._checkpoints, self._goodput = windows, checkpoints, goodput
        self._workdir, self._events = workdir, events

    def check(self) -> None:
        if not self._is_finite():
            raise self._error()

    def _is_finite(self) -> bool:
        with self._goodput.wait():  # reading the variable waits for the device
            return int(self._step.first_bad.numpy()) < 0

    def rolled_back(self) -> bool:
        if self._is_finite():
            return False
        state = self._state
        if state.rollbacks >= self._max_rollbacks:
            raise self._error()
        bad = int(self._step.first_bad.numpy())
        step, path = self._checkpoints.files()[-1]
        # best/model.keras stays on disk, so its value must not go back.
        rollbacks, best = state.rollbacks + 1, state.best
        self._checkpoints.load(path)
        self._checkpoints.share()
        state.rollbacks, state.best = rollbacks, best
        # Skip batches step+1 .. bad+1, which led to the bad loss.
        state.skipped_batches += bad + 1 - step
        self._step.first_bad.assign(-1)
        state.done = step
        # This process has already run the evaluation that was due with this checkpoint.
        state.unevaluated = False
        self._windows.restore(state.windows)
        if self._windows.in_epoch and self._periods.ends_epoch(step):
            self._windows.end_epoch()
        self._workdir.start_metrics(step)
        self._events.read()
        self._events("rolled back", f"loss not finite at step {bad + 1}; back to {path.name}")
        self._checkpoints.save()  # a resumed run must skip these batches too
        return True

    def _error(self) -> RunError:
        bad = int(self._step.first_bad.numpy())
        files = self._checkpoints.files()
        good = f"The last good checkpoint is {files[-1][1]}" if files else "There is no checkpoint"
        return RunError(
            f"The loss or its gradient is not finite since step {bad + 1}. {good}. Try a lower "
            "optimizer.learning_rate, optimizer.clip_norm=1, or trainer.max_rollbacks=1 to roll "
            "back and skip the bad batches."
        )
