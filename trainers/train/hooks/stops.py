"""Requests to stop a run, on all workers at the same update."""

from trainers.distributed.preemption import Stop
from trainers.run.events import Events
from trainers.train.hooks.base import RollbackHook, StopHook
from trainers.train.loop import Terminated


class Stops(StopHook):
    """Asks whether SIGTERM or a preemption notice came.

    Args:
      stop: of this process.
      step: the `TrainStep`, whose `stop_training` callbacks set.
      group: of all workers.
      rollback: tells whether there is anything good to save.
      events: where notices are told.
    """

    def __init__(self, stop: Stop, step, group, rollback: RollbackHook, events: Events):
        self._stop, self._step, self._group = stop, step, group
        self._rollback, self._events = rollback, events

    def asked(self) -> bool:
        self._stop.warn(self._events if self._group.chief else None)
        asked, self._step.stop_training = self._group.any(
            self._stop.asked.is_set(), bool(self._step.stop_training)
        )
        if asked:
            self._rollback.check()
        return asked

    def terminated(self) -> Terminated:
        notices = [notice for notice in self._group.each(self._stop.notice) if notice]
        for notice in notices:
            self._events("preemption notice", notice)
        return Terminated("a preemption notice" if notices else "SIGTERM")

    def stopped_by_callback(self) -> None:
        self._events("stopped", "by a callback")
