"""Stops a run on request, on all workers at the same update."""

from trainers.distributed.preemption import Stop
from trainers.run.events import Events
from trainers.train.hooks.base import RollbackHook, StopHook
from trainers.train.loop import Terminated


class Stops(StopHook):
    """Checks for SIGTERM and preemption notices.

    Args:
      stop: the stop requests of this process.
      step: the `TrainStep`; callbacks set its `stop_training`.
      group: the group of all workers.
      rollback: raises if the loss is not finite, so that no such state is saved.
      events: receives a message for each preemption notice.
    """

    def __init__(self, stop: Stop, step, group, rollback: RollbackHook, events: Events):
        self._stop, self._step, self._group = stop, step, group
        self._rollback, self._events = rollback, events

    def is_requested(self) -> bool:
        self._stop.warn(self._events if self._group.chief else None)
        is_requested, self._step.stop_training = self._group.any(
            self._stop.requested.is_set(), bool(self._step.stop_training)
        )
        if is_requested:
            self._rollback.check()
        return is_requested

    def terminated(self) -> Terminated:
        notices = [notice for notice in self._group.each(self._stop.notice) if notice]
        for notice in notices:
            self._events("preemption notice", notice)
        return Terminated("a preemption notice" if notices else "SIGTERM")

    def stopped(self) -> None:
        self._events("stopped", "by trainer.patience or a callback, before the last update")
