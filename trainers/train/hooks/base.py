"""Base classes of the hooks. Their methods do nothing, so each one is also the no-op hook."""

import contextlib
import dataclasses

from trainers.run.state import RunState
from trainers.train.hooks.periods import Due, Periods


class ProgressHook:
    """Log lines and progress."""

    def begin(self) -> None:
        """Called before the first update of the process."""

    def start(self) -> None:
        """Called before the updates of one execution (one `tf.function` call)."""

    def updating(self):
        """Returns a context manager around the call that runs the updates."""
        return contextlib.nullcontext()

    def updated(self, count: int) -> None:
        """Called after `count` updates."""

    def log(self, due: Due) -> None:
        """Called after an execution without a rollback; writes the log lines that are due."""

    def finish(self) -> None:
        """Called if a callback stops the run between two log lines."""


class ValidationHook:
    """Evaluation of the held-out split, the best model and samples."""

    def evaluate(self) -> None:
        """Evaluates the current weights."""


class CheckpointHook:
    """Checkpoints."""

    def save(self) -> None:
        """Starts to write a checkpoint."""


class RollbackHook:
    """Rollback to a checkpoint if the loss is not finite."""

    def rolled_back(self) -> bool:
        """Rolls back if the loss is not finite; returns whether it did.

        Raises:
          RunError: if no rollback is left.
        """
        return False

    def check(self) -> None:
        """Raises `RunError` if the loss is not finite."""


class StopHook:
    """Requests to stop: SIGTERM, and preemption notices of a cloud."""

    def is_requested(self) -> bool:
        """Returns whether the run must save a checkpoint and end."""
        return False

    def terminated(self) -> Exception:
        """Returns the exception that ends the run."""
        return KeyboardInterrupt()

    def stopped(self) -> None:
        """Called after a callback has stopped the run."""


class CallbackHook:
    """Keras callbacks."""

    def begin(self) -> None:
        """Called before the first update of the process."""

    def complete_epoch(self) -> None:
        """Called before the first update; ends an epoch whose end the checkpoint did not record."""

    def begin_epoch(self) -> None:
        """Called before an update; begins an epoch unless one is in progress."""

    def begin_updates(self) -> None:
        """Called before the updates of one execution."""

    def end_updates(self, count: int) -> None:
        """Called after the updates of one execution, once they are logged."""

    def rolled_back(self) -> None:
        """Called after a rollback, which may lead into an earlier epoch."""

    def end_epoch(self) -> None:
        """Called after the last update of an epoch."""

    def end(self) -> None:
        """Called after the last update."""


@dataclasses.dataclass
class Hooks:
    """The hooks of one run.

    Attributes:
      state: the state of the run that checkpoints hold; `state.done` counts updates.
      periods: after which updates log lines, evaluations and checkpoints are due.
      progress, validation, checkpoints, rollback, stops, callbacks: see their base classes.
    """

    state: RunState
    periods: Periods
    progress: ProgressHook = dataclasses.field(default_factory=ProgressHook)
    validation: ValidationHook = dataclasses.field(default_factory=ValidationHook)
    checkpoints: CheckpointHook = dataclasses.field(default_factory=CheckpointHook)
    rollback: RollbackHook = dataclasses.field(default_factory=RollbackHook)
    stops: StopHook = dataclasses.field(default_factory=StopHook)
    callbacks: CallbackHook = dataclasses.field(default_factory=CallbackHook)
