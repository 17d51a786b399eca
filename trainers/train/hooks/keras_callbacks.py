"""Runs Keras callbacks in the loop, in the order in which `fit` calls them."""

from collections.abc import Sequence

import keras

from trainers.optimization.optimizers import inner
from trainers.run.state import RunState
from trainers.train.hooks.base import CallbackHook
from trainers.train.hooks.log_windows import LogWindows
from trainers.train.hooks.periods import Periods


class KerasCallbacks(CallbackHook):
    """Calls Keras callbacks, whose model is the `TrainStep`.

    Args:
      callbacks: the callbacks of this process.
      state: the run's `RunState`.
      periods: the run's periods.
      step: the `TrainStep`.
      windows: the run's log windows; callbacks receive their means.
      group: the group of all workers; stops and learning rates that the chief's callbacks set
        apply to all workers.
      progress_bar: whether to show Keras' progress bar.
    """

    def __init__(
        self, callbacks: Sequence[keras.callbacks.Callback], state: RunState, periods: Periods,
        step, windows: LogWindows, group, *, progress_bar: bool,
    ):  # fmt: skip
        self._state, self._periods, self._step = state, periods, step
        self._windows, self._group = windows, group
        self._list = keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
            add_progbar=progress_bar,
            model=step,
            verbose=1,
            epochs=-(-periods.total // periods.steps_per_epoch),
            steps=periods.steps_per_epoch,
        )

    def begin(self) -> None:
        self._list.on_train_begin()
        self._step.stop_training = self._state.stopped
        if self._windows.in_epoch:
            self._list.on_epoch_begin((self._state.done - 1) // self._periods.steps_per_epoch)

    def complete_epoch(self) -> None:
        if self._windows.in_epoch and self._periods.ends_epoch(self._state.done):
            self.end_epoch()

    def begin_epoch(self) -> None:
        if not self._windows.in_epoch:
            self._list.on_epoch_begin(self._state.done // self._periods.steps_per_epoch)
            self._windows.in_epoch = True

    def begin_updates(self) -> None:
        self._first = self._state.done % self._periods.steps_per_epoch
        self._list.on_train_batch_begin(self._first)

    def end_updates(self, count: int) -> None:
        self._list.on_train_batch_end(self._first + count - 1, self._windows.logs)

    def rolled_back(self) -> None:
        if self._windows.in_epoch:
            self._list.on_epoch_begin(self._state.done // self._periods.steps_per_epoch)

    def end_epoch(self) -> None:
        epoch = (self._state.done - 1) // self._periods.steps_per_epoch
        self._list.on_epoch_end(epoch, self._windows.end_epoch())
        (self._step.stop_training,) = self._group.any(bool(self._step.stop_training))
        share_rates(self._step.optimizers, self._group)

    def end(self) -> None:
        self._list.on_train_end(self._windows.logs)


def share_rates(optimizers, group) -> None:
    """Sends the chief's learning rates, which its callbacks may have changed, to all workers."""
    if group.count == 1:
        return
    plain_optimizers = [inner(optimizer) for optimizer in optimizers]
    own_rates = [float(optimizer.learning_rate.numpy()) for optimizer in plain_optimizers]
    for optimizer, rate, before in zip(
        plain_optimizers, group.share(own_rates), own_rates, strict=True
    ):
        if rate != before:
            optimizer.learning_rate = rate
