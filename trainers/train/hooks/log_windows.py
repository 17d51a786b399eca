"""Which updates a log line and an epoch's means cover.

Both are accumulated over the same updates and start anew at different ones: a window with each
log line, also across the end of an epoch, and the epoch with each epoch. `state` goes into the
checkpoint, so that a resumed run logs what the uninterrupted run logs.
"""

from trainers.evaluation.means import Means


class LogWindows:
    """Means of the current log window and of the current epoch.

    Args:
      means: of a `TrainStep`, to which its updates add.

    Attributes:
      steps: number of updates in the window.
      seconds: time that these took.
      logs: means of the last window.
      evaluated: values of the last evaluation in the epoch.
      in_epoch: whether an epoch has begun and not ended.
    """

    def __init__(self, means: Means):
        self._means = means
        self._window: dict[str, tuple[float, float]] = {}
        self._epoch: dict[str, tuple[float, float]] = {}
        self.steps, self.seconds = 0, 0.0
        self.logs: dict[str, float] = {}
        self.evaluated: dict[str, float] = {}
        self.in_epoch = False

    def collect(self) -> None:
        """Adds what the updates since the last call have added; on all workers at one step."""
        taken = self._means.take()
        for totals in (self._window, self._epoch):
            for name, (total, weight) in taken.items():
                before = totals.get(name, (0.0, 0.0))
                totals[name] = before[0] + total, before[1] + weight

    def end_window(self) -> dict[str, float]:
        """Starts a window; returns the total weight of each term and statistic in the last."""
        self.logs = self._means.logs(self._window)
        counted = {name: weight for name, (_, weight) in self._window.items()}
        self._window, self.steps, self.seconds = {}, 0, 0.0
        return counted

    def end_epoch(self) -> dict[str, float]:
        """Ends the epoch; returns its means and the values of its last evaluation."""
        logs = {**self._means.logs(self._epoch), **self.evaluated}
        self._epoch, self.evaluated, self.in_epoch = {}, {}, False
        return logs

    def state(self) -> dict:
        """Returns what `restore` takes, JSON values; on all workers at one step."""
        return {
            "device": self._means.read(), "window": self._window, "epoch": self._epoch,
            "steps": self.steps, "seconds": self.seconds, "logs": self.logs,
            "evaluated": self.evaluated, "in_epoch": self.in_epoch,
        }  # fmt: skip

    def restore(self, state: dict) -> None:
        """Goes on from a checkpoint; on all workers."""
        self._means.put(state["device"])
        self._window, self._epoch = dict(state["window"]), dict(state["epoch"])
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.logs, self.evaluated = dict(state["logs"]), dict(state["evaluated"])
        self.in_epoch = state["in_epoch"]
