"""The training loop: updates, and what happens between them, in order."""

from collections.abc import Callable, Iterator

from trainers.train.hooks.base import Hooks


class Terminated(Exception):
    """Something asked to stop, and the message says what; the run is saved and can go on."""

    ends_all = True  # on all workers, at the same step


def run(step, updates: Callable, batches: Callable[[], Iterator], hooks: Hooks) -> None:
    """Trains from `hooks.state.done` updates to the last, or until a callback stops the run.

    Args:
      step: a `TrainStep`; `step.stop_training` is what Keras callbacks set.
      updates: `updates(iterator, count)` computes `count` updates.
      batches: returns an iterator over the batches from here to the end of the run.
      hooks: what is called between updates.

    Raises:
      Terminated: after SIGTERM or a preemption notice, once everything is saved.
      RunError: where the loss is not finite.
    """
    state, periods, callbacks = hooks.state, hooks.periods, hooks.callbacks
    hooks.progress.begin()
    callbacks.begin()
    if state.unevaluated:  # due when the checkpoint was written that the run resumes from
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

        stops = hooks.stops.asked()
        # Saved first: a stop or a kill does not wait for an evaluation, nor lose the updates before
        # it. A run that goes on from here makes up for it.
        state.unevaluated = due.evaluation
        if due.checkpoint or stops:
            hooks.checkpoints.save()
        if due.evaluation and not stops:
            hooks.validation.evaluate()
            if stops := hooks.stops.asked():
                hooks.checkpoints.save()
        if stops:
            raise hooks.stops.terminated()
        if due.epoch_end:
            callbacks.end_epoch()
    if step.stop_training and not state.stopped:
        hooks.rollback.check()
        hooks.progress.finish()
        state.stopped = True  # the same command does not train on
        hooks.stops.stopped_by_callback()
        hooks.checkpoints.save()
    callbacks.end()
