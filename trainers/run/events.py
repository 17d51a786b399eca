"""Events of a run. Each event is a line in metrics.jsonl and on stderr."""

import logging

from trainers.run.state import RunState
from trainers.run.workdir import WorkDirectory, read_metrics
from zoo.logs import PLAIN

_LOG = logging.getLogger(__name__)

# Events that are written once per run, even if several processes log them.
ONCE = frozenset({"warning", "feature cache", "hold-out", "lora"})


def event_key(event: str, detail: str) -> tuple[str, str]:
    """Returns a key that repeated lines share: a feature cache is first filled, later read."""
    return event, detail.partition(" ")[0] if event == "feature cache" else detail


class Events:
    """Writer of events; only the chief writes.

    Args:
      workdir: work directory of the run.
      state: state of the run, with the number of updates so far.
      chief: whether this process writes.
    """

    def __init__(self, workdir: WorkDirectory, state: RunState, chief: bool):
        self._workdir, self._state, self._chief = workdir, state, chief
        self._logged: set[tuple[str, str]] = set()

    def read(self) -> None:
        """Reads the events of `ONCE` that metrics.jsonl already holds."""
        if self._chief:
            self._logged = {
                event_key(line["event"], str(line.get("detail")))
                for line in read_metrics(self._workdir.path)
                if line.get("event") in ONCE
            }

    def __call__(self, event: str, detail: str) -> None:
        """Writes one event, except an event of `ONCE` that was written before."""
        key = event_key(event, detail)
        if not self._chief or key in self._logged:
            return
        if event in ONCE:
            self._logged.add(key)
        self._workdir.log(step=self._state.done, event=event, detail=detail)
        level = logging.WARNING if event == "warning" else logging.INFO
        _LOG.log(level, f"{event} at step {self._state.done}: {detail}", extra=PLAIN)
