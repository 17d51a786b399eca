"""After which updates something is due."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Due:
    """What is due after an update: a log line, the end of an epoch, an evaluation, a checkpoint."""

    log: bool
    epoch_end: bool
    evaluation: bool
    checkpoint: bool

    def __bool__(self) -> bool:
        return self.log or self.epoch_end or self.evaluation or self.checkpoint


@dataclasses.dataclass(frozen=True)
class Periods:
    """Numbers of updates between two of a kind; updates are counted from 1.

    Attributes:
      total: updates of the whole run.
      steps_per_epoch: see `zoo.data.pipeline.steps_per_epoch`.
      steps_per_execution: most updates of one call.
      log_every: updates of a log window.
      evaluate_every: 0 for once an epoch.
      checkpoint_every: 0 for once an epoch.
      evaluates: whether there is anything to evaluate.
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

        Windows have `log_every` updates, whatever the length of an epoch. The run's last window
        takes up a remainder of less than half of that: a mean of few updates is mostly noise.
        """
        left = self.total - done
        return not left or (done % self.log_every == 0 and 2 * left >= self.log_every)

    def _at(self, done: int, every: int) -> bool:
        return done % (every or self.steps_per_epoch) == 0
