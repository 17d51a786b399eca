"""Events of a run: a line in metrics.jsonl and on stderr each."""

import logging

from trainers.run.state import RunState
from trainers.run.workdir import WorkDirectory, read_metrics
from zoo.logs import PLAIN

_LOG = logging.getLogger(__name__)

# Events that stand in metrics.jsonl once, whichever process of the run meets them.
ONCE = frozenset({"warning", "feature cache", "hold-out"})


def event_key(event: str, detail: str) -> tuple[str, str]:
    """Returns what two lines of one event have in common; a cache is filled, then read."""
    return event, detail.partition(" ")[0] if event == "feature cache" else detail


class Events:
    """Writes events; on the chief alone.

    Args:
      workdir: of the run.
      state: tells the update after which an event happens.
      chief: whether this process writes.
    """

    def __init__(self, workdir: WorkDirectory, state: RunState, chief: bool):
        self._workdir, self._state, self._chief = workdir, state, chief
        self._logged: set[tuple[str, str]] = set()

    def read(self) -> None:
        """Reads from metrics.jsonl which events of `ONCE` it holds."""
        if self._chief:
            self._logged = {
                event_key(line["event"], str(line.get("detail")))
                for line in read_metrics(self._workdir.path)
                if line.get("event") in ONCE
            }

    def __call__(self, event: str, detail: str) -> None:
        """Writes one event, unless it is one of `ONCE` and was written before."""
        key = event_key(event, detail)
        if not self._chief or key in self._logged:
            return
        if event in ONCE:
            self._logged.add(key)
        self._workdir.log(step=self._state.done, event=event, detail=detail)
        level = logging.WARNING if event == "warning" else logging.INFO
        _LOG.log(level, f"{event} at step {self._state.done}: {detail}", extra=PLAIN)
