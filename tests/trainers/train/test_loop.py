"""The training loop without a trainer calls the hooks in the expected order."""

import keras
import pytest

from trainers.run.state import RunState
from trainers.train import loop
from trainers.train.hooks.base import (
    CallbackHook,
    CheckpointHook,
    Hooks,
    ProgressHook,
    RollbackHook,
    StopHook,
    ValidationHook,
)
from trainers.train.hooks.periods import Periods


def run(hooks, stop_after=None):
    """Runs the loop; returns the updates per execution and the first batch of each iterator."""
    step, counts, starts = keras.Model(), [], []
    step.stop_training = False

    def updates(iterator, count):
        counts.append(count)
        if stop_after is not None and hooks.state.done + count >= stop_after:
            step.stop_training = True

    def batches():
        starts.append(hooks.state.done)
        return iter(())

    loop.run(step, updates, batches, hooks)
    return counts, starts


def noting(base, calls):
    """Returns an instance of a hook base class that records its method calls in `calls`."""
    methods = {
        name: lambda self, *_, name=name, real=real: (calls.append(name), real(self, *_))[1]
        for name, real in vars(base).items()
        if callable(real)
    }
    return type("Noting", (base,), methods)()


def test_hooks_that_do_nothing_train_to_the_end():
    hooks = Hooks(RunState(), Periods(10, 4, steps_per_execution=3, log_every=5))
    assert run(hooks) == ([3, 1, 1, 3, 2], [0])
    assert hooks.state.done == 10
    assert not hooks.state.stopped


def test_a_checkpoint_is_written_before_an_evaluation():
    calls = []
    hooks = Hooks(
        RunState(),
        Periods(2, 2, evaluates=True),
        **{
            name: noting(base, calls)
            for name, base in (
                ("progress", ProgressHook), ("validation", ValidationHook),
                ("checkpoints", CheckpointHook), ("rollback", RollbackHook),
                ("stops", StopHook), ("callbacks", CallbackHook),
            )
        },
    )  # fmt: skip
    run(hooks)
    after = calls[len(calls) - 1 - calls[::-1].index("updated") :]
    assert after == [
        "updated", "rolled_back", "log", "end_updates", "is_requested", "save", "evaluate",
        "is_requested", "end_epoch", "end",
    ]  # fmt: skip


def test_a_rollback_makes_the_batches_anew():
    class Once(RollbackHook):
        def rolled_back(self):
            if hooks.state.rollbacks or hooks.state.done < 4:
                return False
            hooks.state.rollbacks, hooks.state.done = 1, 2
            return True

    hooks = Hooks(RunState(), Periods(6, 2), rollback=Once())
    counts, starts = run(hooks)
    assert starts == [0, 2]
    assert sum(counts) == 8


def test_a_request_to_stop_saves_and_ends():
    class Ask(StopHook):
        def is_requested(self):
            return hooks.state.done == 3

        def terminated(self):
            return loop.Terminated("SIGTERM")

    class Save(CheckpointHook):
        def save(self):
            saved.append(hooks.state.done)

    saved = []
    hooks = Hooks(RunState(), Periods(9, 9), stops=Ask(), checkpoints=Save())
    with pytest.raises(loop.Terminated, match="SIGTERM"):
        run(hooks)
    assert saved == [3]


def test_a_callback_that_stops_the_run_stops_it_for_good():
    hooks = Hooks(RunState(), Periods(9, 9))
    run(hooks, stop_after=4)
    assert hooks.state.stopped
    assert hooks.state.done == 4
