"""Checkpoints of a run, on one worker or several, and the way back to one."""

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
    """The checkpoints in a work directory; the chief alone reads and writes them.

    Args:
      state: of the run.
      step: the `TrainStep`.
      windows: its log windows.
      group: of all workers.
      workdir: the work directory.

    Attributes:
      saver: writes them while training goes on; None until the chief's run has begun.
    """

    def __init__(self, state: RunState, step, windows: LogWindows, group, workdir):
        self._state, self._step, self._windows = state, step, windows
        self._group, self._workdir = group, workdir
        self.saver: Saver | None = None

    def files(self) -> list[tuple[int, Path]]:
        """Returns `(step, path)` of those in the work directory, as the chief sees it."""
        self.wait()
        files = checkpoint.list_checkpoints(self._workdir / "checkpoints")
        shared = self._group.share([(step, str(path)) for step, path in files])
        return [(step, Path(path)) for step, path in shared]

    def save(self) -> None:
        state = self._state
        if self._group.count > 1:
            self._group.same(f"weights after update {state.done}", checkpoint.digest(self._step))
        state.windows = self._windows.state()
        state.lines = self._workdir.lines
        if self._group.chief:
            self.saver.save(state.counters())

    def wait(self) -> None:
        """Waits until the last checkpoint is whole."""
        if self.saver:
            self.saver.wait()

    def close(self) -> None:
        """Waits, and ends the thread that writes."""
        if self.saver:
            self.saver.close()

    def load(self, path: Path) -> None:
        """Goes to a checkpoint, on the chief; `share` follows."""
        if self._group.chief:
            self._state.restore(checkpoint.restore(path, self._step))

    def share(self) -> None:
        """Puts the chief's state into all workers."""
        if self._group.count == 1:
            return
        file = io.BytesIO()
        if self._group.chief:
            checkpoint.write(file, checkpoint.Snapshot(self._step, self._state.counters()))
        content = self._group.share(file.getvalue())
        if not self._group.chief:
            self._state.restore(checkpoint.restore(content, self._step))

    def restore(self, files: list[tuple[int, Path]], fresh: bool) -> None:
        """Goes to the last checkpoint, where there is one.

        Args:
          files: what `files` returned.
          fresh: whether a run without a checkpoint starts as it was built on every worker.
        """
        if files:
            try:
                self.load(files[-1][1])
            except RunError as error:
                older = f"step {files[-2][0]}" if len(files) > 1 else "the beginning"
                raise RunError(f"{error} Delete it to go on from {older}.") from None
        if files or not fresh:
            self.share()
        if self._state.windows:
            self._windows.restore(self._state.windows)
        self._state.done = int(self._step.step.numpy())


class Rollback(RollbackHook):
    """Goes back to the last checkpoint where the loss is not finite, and leaves batches out.

    Args:
      most: how often it may.
      state: of the run.
      periods: of the run.
      step: the `TrainStep`, which keeps the first update whose loss was not finite.
      windows: its log windows.
      checkpoints: of the run.
      goodput: counts the wait for the device.
      workdir: the work directory.
      events: where it is told.
    """

    def __init__(
        self, most: int, state: RunState, periods: Periods, step, windows: LogWindows,
        checkpoints: Checkpoints, goodput: Goodput, workdir, events: Events,
    ):  # fmt: skip
        self._most, self._state, self._periods, self._step = most, state, periods, step
        self._windows, self._checkpoints, self._goodput = windows, checkpoints, goodput
        self._workdir, self._events = workdir, events

    def check(self) -> None:
        if not self._is_finite():
            raise self._error()

    def _is_finite(self) -> bool:
        with self._goodput.wait():  # for the device
            return int(self._step.first_bad.numpy()) < 0

    def rolled_back(self) -> bool:
        if self._is_finite():
            return False
        state = self._state
        if state.rollbacks >= self._most:
            raise self._error()
        bad = int(self._step.first_bad.numpy())
        step, path = self._checkpoints.files()[-1]
        # The best model stays on the disk, and its value with it.
        rollbacks, best = state.rollbacks + 1, state.best
        self._checkpoints.load(path)
        self._checkpoints.share()
        state.rollbacks, state.best = rollbacks, best
        # Batches step+1 .. bad+1 led here: the run goes on behind them.
        state.skipped_batches += bad + 1 - step
        self._step.first_bad.assign(-1)
        state.done = step
        # Everything that follows a checkpoint was done for this update in this process already.
        state.unevaluated = False
        self._windows.restore(state.windows)
        if self._windows.in_epoch and self._periods.ends_epoch(step):
            self._windows.end_epoch()
        self._workdir.start_metrics(step)
        self._events.read()
        self._events("rolled back", f"loss not finite at step {bad + 1}; back to {path.name}")
        self._checkpoints.save()  # so that a kill does not forget what was left out
        return True

    def _error(self) -> RunError:
        bad = int(self._step.first_bad.numpy())
        files = self._checkpoints.files()
        good = f"The last good checkpoint is {files[-1][1]}" if files else "No checkpoint yet"
        return RunError(
            f"The loss or its gradient is not finite since step {bad + 1}. {good}. What helps: a "
            "lower optimizer.learning_rate, optimizer.clip_norm=1, or trainer.max_rollbacks to go "
            "back and leave the bad batches out."
        )
