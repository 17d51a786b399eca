"""The training loop: updates, and the hooks that run between them, in order."""

from collections.abc import Callable, Iterator

from trainers.train.hooks.base import Hooks


class Terminated(Exception):
    """Raised after a stop request, which the message names; the run is saved and can be resumed."""

    ends_all = True  # all workers raise it at the same step


def run(step, updates: Callable, batches: Callable[[], Iterator], hooks: Hooks) -> None:
    """Trains from update `hooks.state.done` to the last one, or until a callback stops the run.

    Args:
      step: a `TrainStep`; Keras callbacks set its `stop_training`.
      updates: `updates(iterator, count)` runs `count` updates.
      batches: returns an iterator over the remaining batches of the run.
      hooks: the hooks to call between updates.

    Raises:
      Terminated: after SIGTERM or a preemption notice, once a checkpoint is saved.
      RunError: if the loss is not finite and no rollback is left.
    """
    state, periods, callbacks = hooks.state, hooks.periods, hooks.callbacks
    hooks.progress.begin()
    callbacks.begin()
    if state.unevaluated:  # the run stopped between a checkpoint and the evaluation due with it
        hooks.validation.evaluate()
    callbacks.complete_epoch()
    iterator = None
    while state.done < periods.total and not step.stop_training:
        callbacks.begin_epoch()
        hooks.progress.start()
        iterator = iterator or batches()
        count = periods.next_stop(state.done) - state.done
        callbacks.begin_updates()
        with hooks.progress.updating():
            updates(iterator, count)
        state.done += count
        hooks.progress.updated(count)

        due = periods.due(state.done)
        if due and hooks.rollback.rolled_back():
            iterator = None
            callbacks.rolled_back()
            continue
        hooks.progress.log(due)
        callbacks.end_updates(count)

        stops = hooks.stops.is_requested()
        # The checkpoint comes first, so that a stop does not wait for an evaluation and a kill
        # during an evaluation loses no update. The resumed run catches up on the evaluation.
        state.unevaluated = due.evaluation
        if due.checkpoint or stops:
            hooks.checkpoints.save()
        if due.evaluation and not stops:
            hooks.validation.evaluate()
            if stops := hooks.stops.is_requested():
                hooks.checkpoints.save()
        if stops:
            raise hooks.stops.terminated()
        if due.epoch_end:
            callbacks.end_epoch()
    if step.stop_training and not state.stopped:
        hooks.rollback.check()
        hooks.progress.finish()
        state.stopped = True  # running the same command again does not continue training
        hooks.stops.stopped()
        hooks.checkpoints.save()
    callbacks.end()
