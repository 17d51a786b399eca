"""Means over a log window and over an epoch.

Both accumulate over the same updates but reset at different ones: a window resets at each log line
and may span the end of an epoch; the epoch's means reset at each epoch. `state` is part of the
checkpoint, so a resumed run logs the same values as an uninterrupted run.
"""

from trainers.evaluation.means import Means


class LogWindows:
    """Means of the current log window and of the current epoch.

    Args:
      means: the means of a `TrainStep`.

    Attributes:
      steps: number of updates in the window.
      seconds: time of these updates.
      logs: means of the last complete window.
      evaluated: metrics of the last evaluation in the epoch.
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
        """Adds the updates since the last call; all workers must call it at the same step."""
        sums = self._means.take()
        for totals in (self._window, self._epoch):
            for name, (total, weight) in sums.items():
                before = totals.get(name, (0.0, 0.0))
                totals[name] = before[0] + total, before[1] + weight

    def end_window(self) -> dict[str, float]:
        """Ends the window; returns the total weight of each term and statistic in it."""
        self.logs = self._means.logs(self._window)
        total_weights = {name: weight for name, (_, weight) in self._window.items()}
        self._window, self.steps, self.seconds = {}, 0, 0.0
        return total_weights

    def end_epoch(self) -> dict[str, float]:
        """Ends the epoch; returns its means and the metrics of its last evaluation."""
        logs = {**self._means.logs(self._epoch), **self.evaluated}
        self._epoch, self.evaluated, self.in_epoch = {}, {}, False
        return logs

    def state(self) -> dict:
        """Returns JSON values for `restore`; all workers must call it at the same step."""
        return {
            "device": self._means.read(), "window": self._window, "epoch": self._epoch,
            "steps": self.steps, "seconds": self.seconds, "logs": self.logs,
            "evaluated": self.evaluated, "in_epoch": self.in_epoch,
        }  # fmt: skip

    def restore(self, state: dict) -> None:
        """Restores the result of `state`; all workers must call it."""
        self._means.put(state["device"])
        self._window, self._epoch = dict(state["window"]), dict(state["epoch"])
        self.steps, self.seconds = state["steps"], state["seconds"]
        self.logs, self.evaluated = dict(state["logs"]), dict(state["evaluated"])
        self.in_epoch = state["in_epoch"]
