"""Log lines in metrics.jsonl and on stderr, and the means for callbacks."""

import collections
import logging
import math
import sys
import time

from trainers.optimization.optimizers import inner
from trainers.run.events import Events
from trainers.run.goodput import Goodput
from trainers.run.state import RunState
from trainers.train.hooks.base import ProgressHook
from trainers.train.hooks.log_windows import LogWindows
from trainers.train.hooks.periods import Due, Periods
from zoo.formatting import duration, short_number
from zoo.keras_internals import last_learning_rate
from zoo.logs import PLAIN

_LOG = logging.getLogger(__name__)


class Progress(ProgressHook):
    """Writer of one log line per log window.

    Args:
      state: state of the run.
      periods: intervals of the run, in updates.
      step: the `TrainStep`.
      windows: log windows of the step.
      goodput: goodput counter of the run.
      workdir: the work directory.
      events: writer of the task's warnings.
      examples: number of training examples.
      batch_size: number of examples per update.
      chief: whether this process prints.
    """

    def __init__(
        self, state: RunState, periods: Periods, step, windows: LogWindows, goodput: Goodput,
        workdir, events: Events, *, examples: int, batch_size: int, chief: bool,
    ):  # fmt: skip
        self._state, self._periods, self._step, self._windows = state, periods, step, windows
        self._goodput, self._workdir, self._events = goodput, workdir, events
        self._examples, self._batch_size, self._chief = examples, batch_size, chief
        self.interactive = chief and sys.stdout.isatty() and _LOG.isEnabledFor(logging.INFO)
        self._pace: tuple[int, float] | None = None

    def begin(self) -> None:
        self._started = time.perf_counter() - self._state.seconds

    def start(self) -> None:
        self._start = time.perf_counter()

    def updating(self):
        return self._goodput.update()

    def updated(self, count: int) -> None:
        self._windows.steps += count
        self._pace = self._pace or (self._state.done, time.perf_counter())

    def log(self, due: Due) -> None:
        if due.log or due.epoch_end:
            with self._goodput.wait():
                self._windows.collect()
        self._windows.seconds += time.perf_counter() - self._start
        if due.log:
            self._log()

    def finish(self) -> None:
        if self._windows.steps:
            self._windows.collect()
            self._log()

    def print_line(self, text: str) -> None:
        """Prints a progress line with the remaining time."""
        if not self._chief:
            return
        done, total = self._state.done, self._periods.total
        line = f"step {done:,}/{total:,}  {text}"
        if done < total and (pace := self._seconds_per_update()):
            line += f"  {duration((total - done) * pace)} left"
        start = "\n" if self.interactive else ""  # below the progress bar
        _LOG.info(f"{start}{line}", extra=PLAIN)

    def _seconds_per_update(self) -> float | None:
        """Returns seconds per update, with evaluations, since the first call, which traces."""
        if self._pace is None or self._state.done <= self._pace[0]:
            return None
        done_before, since = self._pace
        return (time.perf_counter() - since) / (self._state.done - done_before)

    def _log(self) -> None:
        state, step, windows = self._state, self._step, self._windows
        state.seconds = time.perf_counter() - self._started
        steps, seconds = windows.steps, windows.seconds
        total_weights = windows.end_window()
        logs = windows.logs
        self._warn(logs)
        rates = {
            f"learning_rate_{part.name}".rstrip("_"): last_learning_rate(inner(optimizer))
            for part, optimizer in zip(step.model_parts, step.optimizers, strict=True)
        }
        metrics = {}
        if any(optimizer is not inner(optimizer) for optimizer in step.optimizers):  # loss scaling
            metrics["skipped_steps"] = sum(
                state.done - int(inner(optimizer).iterations.numpy())
                for optimizer in step.optimizers
            )
        speeds = {"samples": self.examples_of(steps) / seconds}
        if step.task.unit != "samples":
            speeds[step.task.unit] = total_weights[next(iter(step.task.terms))] / seconds
        values = {**logs, **rates, **{f"{k}_per_second": v for k, v in speeds.items()}, **metrics}
        self._workdir.log(
            step=state.done,
            epoch=round(state.done / self._periods.steps_per_epoch, 4),
            **{k: float(f"{v:.6g}") for k, v in values.items()},
            seconds=round(state.seconds, 3),
            goodput=round(self._goodput.share(), 4),
        )
        if not self.interactive:
            parts = [f"training: {format_metrics(logs)}", format_metrics({**rates, **metrics})]
            parts += [f"{short_number(v)} {k}/s" for k, v in speeds.items()]
            self.print_line("  ".join(parts))

    def examples_of(self, steps: int) -> int:
        """Returns the number of examples in the last `steps` updates, without padded rows."""
        epoch = self._periods.steps_per_epoch
        done = self._state.done + self._state.skipped_batches
        epochs = done // epoch - (done - steps) // epoch
        return steps * self._batch_size - epochs * (epoch * self._batch_size - self._examples)

    def _warn(self, logs) -> None:
        """Logs the task's warning. The task gets NaN for a metric without a value."""
        warning = self._step.task.warning(collections.defaultdict(lambda: math.nan, logs))
        if warning:
            self._events("warning", warning)


def format_metrics(values) -> str:
    """Returns values as one line, without members of groups; "no value" if there are none.

    Members of a group, such as the loads of experts ("load/0/7"), are drawn in the report.
    """
    line = "  ".join(
        f"{name} {short_number(value)}" for name, value in values.items() if "/" not in name
    )
    return line or "no value (no target has a positive weight)"
