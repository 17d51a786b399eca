"""Progress of a step of `zoo prepare`: tasks, documents, and reasons for dropped documents."""

import logging
import time
from collections import Counter
from collections.abc import Mapping

from zoo.progress import progress

_LOG = logging.getLogger(__name__)


class StepProgress:
    """Shows the progress of a step, and logs a line when the step has ended; a context manager.

    Args:
      title: title of the step.
      total: number of tasks.
      done: number of tasks that an earlier run completed.
    """

    def __init__(self, title: str, total: int = 1, done: int = 0):
        self._bar = progress(title=title, unit="tasks", total=total, initial=done, leave=False)
        self._title, self._start = title, time.monotonic()
        self._documents, self._dropped = 0, Counter()

    def __enter__(self) -> "StepProgress":
        return self

    def __exit__(self, kind, *_):
        self._bar.close()
        if not kind:
            seconds = time.monotonic() - self._start
            _LOG.info(", ".join([f"{self._title}: {seconds:,.1f} s", *self._counts(seconds)]))

    def update(self, tally: Mapping | None) -> None:
        """Counts a finished task, and the documents of its tally (as JSON)."""
        if tally:
            self._documents += max(tally["reached"].values(), default=0)
            for name, count in tally["dropped"].items():
                self._dropped[name.partition(":")[0]] += count
        seconds = time.monotonic() - self._start
        self._bar.set_postfix_str(", ".join(self._counts(seconds)), refresh=False)
        self._bar.update()

    def _counts(self, seconds: float) -> list[str]:
        if not self._documents:
            return []
        rate = self._documents / max(seconds, 1e-3)
        counts = [f"{self._documents:,} documents, {rate:,.0f} per second"]
        if self._dropped:
            reasons = ", ".join(f"{name} {count:,}" for name, count in self._dropped.most_common(5))
            counts.append(f"dropped by {reasons}")
        return counts
