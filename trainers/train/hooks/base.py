"""Hooks that do nothing: the bases of the real ones, and their stand-ins in a loop without them."""

import contextlib
import dataclasses

from trainers.run.state import RunState
from trainers.train.hooks.periods import Due, Periods


class ProgressHook:
    """Log lines and progress."""

    def begin(self) -> None:
        """Called before the first update of the process."""

    def start(self) -> None:
        """Called before the updates of one execution."""

    def updating(self):
        """Returns a context manager around the call that computes updates."""
        return contextlib.nullcontext()

    def updated(self, count: int) -> None:
        """Called after `count` updates."""

    def log(self, due: Due) -> None:
        """Called when nothing was rolled back; writes what is due."""

    def finish(self) -> None:
        """Called where a callback stops the run between two log lines."""


class ValidationHook:
    """Evaluation of the held-out split, the best model and samples."""

    def evaluate(self) -> None:
        """Evaluates the weights of now."""


class CheckpointHook:
    """Checkpoints."""

    def save(self) -> None:
        """Begins to write one."""


class RollbackHook:
    """What happens where a loss is not finite."""

    def rolled_back(self) -> bool:
        """Returns whether the run went back to a checkpoint; raises where it must end."""
        return False

    def check(self) -> None:
        """Raises `RunError` where the loss is not finite."""


class StopHook:
    """Requests to stop: SIGTERM, and notices of a cloud."""

    def asked(self) -> bool:
        """Returns whether the run must save and end."""
        return False

    def terminated(self) -> Exception:
        """Returns the exception that ends the run."""
        return KeyboardInterrupt()

    def stopped_by_callback(self) -> None:
        """Called where a callback ended the run for good."""


class CallbackHook:
    """Keras callbacks."""

    def begin(self) -> None:
        """Called before the first update of the process."""

    def complete_epoch(self) -> None:
        """Called before the first update; ends an epoch that a checkpoint left unfinished."""

    def begin_epoch(self) -> None:
        """Called before an update; begins an epoch where none has begun."""

    def begin_updates(self) -> None:
        """Called before the updates of one execution."""

    def end_updates(self, count: int) -> None:
        """Called after them, once they are logged."""

    def rolled_back(self) -> None:
        """Called after a rollback, perhaps into an earlier epoch."""

    def end_epoch(self) -> None:
        """Called after the last update of an epoch."""

    def end(self) -> None:
        """Called after the last update."""


@dataclasses.dataclass
class Hooks:
    """All that the loop calls, and when.

    Attributes:
      state: what the run remembers; `state.done` counts updates.
      periods: after which updates something is due.
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
