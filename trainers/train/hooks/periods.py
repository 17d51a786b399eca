"""Computes after which updates log lines, evaluations and checkpoints are due."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Due:
    """Whether a log line, the end of an epoch, an evaluation and a checkpoint are due."""

    log: bool
    epoch_end: bool
    evaluation: bool
    checkpoint: bool

    def __bool__(self) -> bool:
        return self.log or self.epoch_end or self.evaluation or self.checkpoint


@dataclasses.dataclass(frozen=True)
class Periods:
    """Intervals in updates, which are counted from 1.

    Attributes:
      total: number of updates of the whole run.
      steps_per_epoch: see `zoo.data.pipeline.steps_per_epoch`.
      steps_per_execution: maximum number of updates per `tf.function` call.
      log_every: number of updates in a log window.
      evaluate_every: updates between evaluations; 0 for once per epoch.
      checkpoint_every: updates between checkpoints; 0 for once per epoch.
      evaluates: whether the run evaluates at all.
    """

    total: int
    steps_per_epoch: int
    steps_per_execution: int = 1
    log_every: int = 1
    evaluate_every: int = 0
    checkpoint_every: int = 0
    evaluates: bool = False

    def due(self, done: int) -> Due:
        """Returns what is due after `done` updates."""
        last = done == self.total
        return Due(
            self.ends_window(done),
            self.ends_epoch(done),
            self.evaluates and (self._at(done, self.evaluate_every) or last),
            self._at(done, self.checkpoint_every) or last,
        )

    def next_stop(self, done: int) -> int:
        """Returns the number of updates after which the next execution ends."""
        periods = [self.steps_per_epoch, self.log_every, self.checkpoint_every]
        periods += [self.evaluate_every] if self.evaluates else []
        stops = [(done // period + 1) * period for period in periods if period]
        return min(*stops, self.total, done + self.steps_per_execution)

    def ends_epoch(self, done: int) -> bool:
        """Returns whether the last of `done` updates ends an epoch, or the run."""
        return done % self.steps_per_epoch == 0 or done == self.total

    def ends_window(self, done: int) -> bool:
        """Returns whether a log line follows the last of `done` updates.

        A window has `log_every` updates, independent of the length of an epoch. If fewer than half
        of these remain at the end of the run, the last window includes them, since a mean of few
        updates is mostly noise.
        """
        updates_left = self.total - done
        return not updates_left or (
            done % self.log_every == 0 and 2 * updates_left >= self.log_every
        )

    def _at(self, done: int, every: int) -> bool:
        return done % (every or self.steps_per_epoch) == 0
