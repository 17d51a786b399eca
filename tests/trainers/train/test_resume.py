"""An interrupted and resumed run ends with exactly the state of the uninterrupted run."""

import json
import os
import shutil
import signal
import time

import keras
import numpy as np
import pytest

import zoo
from tests import toys, zygote
from trainers.config.base import optimizer, schedule
from trainers.run import checkpoint
from trainers.run.workdir import read_metrics
from zoo import registry
from zoo.data import pipeline
from zoo.errors import RunError, UsageError


def recipe(replicas=1, micro=4, **trainer):
    """Returns a config with all state: dropout, AdamW, a schedule, EMA, gradient accumulation."""
    config = toys.recipe(
        model_arguments={"dropout": 0.3},
        **{
            "steps": 13, "ema": 0.9, "micro_batch_size": micro, "checkpoint_every": 4, "keep": 9,
            "strategy": "mirrored" if replicas > 1 else "one_device",
            "replicas": replicas if replicas > 1 else 0, **trainer,
        },
    )  # fmt: skip
    config.optimizer = optimizer("adamw", learning_rate=0.01, weight_decay=0.1, clip_norm=1.0)
    config.schedule = schedule("cosine", warmup_steps=3)
    return config


class Interrupted(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    """Raises `Interrupted` after the given number of updates, without saving."""

    def __init__(self, updates):
        super().__init__()
        self.updates = updates

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.count.numpy()) >= self.updates:
            raise Interrupted


def last_arrays(workdir):
    """Returns step, paths, arrays of the last checkpoint, with slots, averages, seeds, counters."""
    number, path = checkpoint.list_checkpoints(workdir / "checkpoints")[-1]
    header, arrays = checkpoint.read(path)
    return number, header["paths"], arrays


def cut_at(whole, parts, step):
    """Copies the work directory of a finished run as a kill after the checkpoint of `step` left it.

    For tests of what a resumed run restores: an interrupted run writes the same files.
    """
    shutil.copytree(whole, parts)
    for number, path in checkpoint.list_checkpoints(parts / "checkpoints"):
        if number > step:
            path.unlink()
    assert last_arrays(parts)[0] == step
    for name in ("model.keras", "report.html"):
        (parts / name).unlink()
    return parts


def assert_same_end(one, other):
    (step_a, paths, a), (step_b, _, b) = last_arrays(one), last_arrays(other)
    assert step_a == step_b
    for path, x, y in zip(paths, a, b, strict=True):
        np.testing.assert_array_equal(x, y, err_msg=path)


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_resumed_run_is_bit_identical(replicas, run, trained_once, tmp_path):
    data = toys.token_data()
    whole = trained_once(recipe(replicas), data)
    for stop in (7, 11):  # two interruptions between checkpoints
        with pytest.raises(Interrupted):
            run(recipe(replicas), data, workdir=tmp_path / "parts", callbacks=[StopAt(stop)])
    run(recipe(replicas), data, workdir=tmp_path / "parts")
    assert_same_end(whole.workdir, tmp_path / "parts")


def test_resume_with_another_number_of_replicas(run, tmp_path):
    """Equal data order, so equal results up to rounding (no dropout: masks are per replica)."""
    data = toys.token_data()

    def without_dropout(replicas):
        config = recipe(replicas)
        config.model.dropout = 0.0
        return config

    whole = run(without_dropout(1), data)
    with pytest.raises(Interrupted):
        run(without_dropout(1), data, workdir=tmp_path / "parts", callbacks=[StopAt(7)])
    parts = run(without_dropout(2), data, workdir=tmp_path / "parts")
    assert toys.difference(whole.step.net, parts.step.net) <= 1e-6


def test_sigterm_saves_and_the_run_goes_on(run, trained_once, tmp_path):
    from trainers.train.loop import Terminated

    class Terminate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.count.numpy()) == 6:
                os.kill(os.getpid(), signal.SIGTERM)

    data = toys.token_data()
    with pytest.raises(Terminated):
        run(recipe(), data, workdir=tmp_path / "parts", callbacks=[Terminate()])
    assert last_arrays(tmp_path / "parts")[0] in (6, 7)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    run(recipe(), data, workdir=tmp_path / "parts")
    assert_same_end(trained_once(recipe(), data).workdir, tmp_path / "parts")


def lines_of(workdir):
    lines = read_metrics(workdir)
    return [
        {k: v for k, v in line.items() if k.startswith("val_") or k == "step"}
        for line in lines
        if any(key.startswith("val_") for key in line)
    ]


@pytest.mark.parametrize("how", ["SIGTERM before", "SIGTERM in", "kill in"])
def test_no_evaluation_keeps_a_run_from_being_saved(how, run, trained_once, tmp_path, monkeypatch):
    """The resumed run makes up for the interrupted evaluation."""
    from trainers.train import loop
    from trainers.train.hooks.validation import Validation

    evaluate, evaluated_steps = Validation.evaluate, []

    class Terminate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.count.numpy()) == 8 and how == "SIGTERM before":
                os.kill(os.getpid(), signal.SIGTERM)

    def interrupted(validation):
        if validation._state.done == 8:
            evaluated_steps.append(8)
            if how == "kill in":
                raise Interrupted
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(validation)

    config = recipe(evaluate_every=4)
    config.data.validation_size = 8
    data = toys.token_data()
    whole = trained_once(config, data)
    with monkeypatch.context() as patch:
        patch.setattr(Validation, "evaluate", interrupted)
        with pytest.raises((loop.Terminated, Interrupted)):
            run(config, data, workdir=tmp_path / "parts", callbacks=[Terminate()])
    assert evaluated_steps == ([] if how == "SIGTERM before" else [8])
    assert last_arrays(tmp_path / "parts")[0] == 8
    again = run(config, data, workdir=tmp_path / "parts")
    assert_same_end(whole.workdir, tmp_path / "parts")
    assert lines_of(tmp_path / "parts") == lines_of(whole.workdir.path)
    assert again.state.best == whole.state.best


def test_seeds_are_in_the_checkpoint(run, tmp_path):
    """A resumed run restores its seeds even if the seeds of each process differ."""
    data = toys.token_data()
    first = run(recipe(), data, workdir=tmp_path / "run")
    states = [v.numpy() for v in first.step.seed_states]
    assert len(states) == 2  # one dropout layer per block
    for variable in first.step.seed_states:
        variable.assign([7, 7])
    path = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")[-1][1]
    checkpoint.restore(path, first.step)
    for state, variable in zip(states, first.step.seed_states, strict=True):
        np.testing.assert_array_equal(state, variable.numpy())


CHILD = """
import sys
from tests import toys
from tests.trainers.train import test_resume
from trainers.cli.common import run
from trainers.train.loop import Terminated
from trainers.train.trainer import Trainer
config = test_resume.recipe(steps=int(sys.argv[2]), checkpoint_every=4)
try:
    Trainer(config, sys.argv[1], dataset=toys.token_data()).train()
except Terminated:
    sys.exit(143)
"""


def child(workdir, steps):
    return zygote.start(CHILD, workdir, steps)


def wait_for_step(process, workdir, step):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        checkpoints = checkpoint.list_checkpoints(workdir / "checkpoints")
        if checkpoints and checkpoints[-1][0] >= step:
            return
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"step {step} was not reached: {process.communicate()[1]}")


@pytest.mark.slow
def test_kill_9_twice_then_the_same_bits(tmp_path):
    steps = 600
    with child(tmp_path / "whole", steps) as process:
        assert process.wait(300) == 0, process.communicate()[1]
    for step in (80, 300):
        with child(tmp_path / "parts", steps) as process:
            wait_for_step(process, tmp_path / "parts", step)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        reached = last_arrays(tmp_path / "parts")[0]
        assert step <= reached < steps  # the run was killed before its end
    with child(tmp_path / "parts", steps) as process:
        assert process.wait(300) == 0, process.communicate()[1]
    assert_same_end(tmp_path / "whole", tmp_path / "parts")
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    steps_logged = [line["step"] for line in map(json.loads, lines) if "loss" in line]
    assert steps_logged == sorted(set(steps_logged))  # no duplicates, ascending


@pytest.mark.slow
def test_sigterm_ends_a_process_with_143(tmp_path):
    with child(tmp_path / "run", 100_000) as process:
        wait_for_step(process, tmp_path / "run", 100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, process.communicate()[1]
    assert last_arrays(tmp_path / "run")[0] >= 100


def test_damaged_checkpoint_is_named_and_kept(run, trained_once, tmp_path):
    data, workdir = toys.token_data(), tmp_path / "run"
    with pytest.raises(Interrupted):
        run(recipe(), data, workdir=workdir, callbacks=[StopAt(9)])
    (_, older), (_, newest) = checkpoint.list_checkpoints(workdir / "checkpoints")
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        RunError, match=f"{newest} is damaged.*Delete the file to continue from step 4"
    ):
        run(recipe(), data, workdir=workdir)
    assert newest.exists()
    newest.unlink()
    run(recipe(), data, workdir=workdir)
    assert_same_end(trained_once(recipe(), data).workdir, workdir)


# --- not finite ---------------------------------------------------------------------------------


def poisoned(step, value=np.nan):
    """Returns data with one poisoned example in batch `step` (from 0) of the first epoch."""
    poison = np.ones(70, np.float32)
    order = pipeline.epoch_order(np.arange(70, dtype=np.int64), 0, 0, 70).numpy()
    poison[order[step * 16 + 3]] = value
    return toys.token_data(poison=poison)


def poison_recipe(**trainer):
    return toys.recipe(task="toy_poison", steps=5, checkpoint_every=1, keep=9, **trainer)


@pytest.mark.parametrize("replicas", [1, 2])
def test_nan_stops_with_the_step_and_the_last_good_checkpoint(replicas, run, tmp_path):
    strategy = {"strategy": "mirrored", "replicas": 2} if replicas == 2 else {}
    config = poison_recipe(**strategy)
    with pytest.raises(RunError, match=r"not finite since step 4. .*step_0000000003.npz"):
        run(config, poisoned(3), workdir=tmp_path / "run")
    number, paths, arrays = last_arrays(tmp_path / "run")
    assert number == 3
    assert all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f")
    assert not (tmp_path / "run" / "model.keras").exists()


def test_nan_between_two_log_lines_is_not_saved(run, tmp_path):
    """Validation and saving check the loss too, not only logging."""
    config = poison_recipe(log_every=100)
    config.trainer.checkpoint_every, config.trainer.evaluate_every = 2, 2
    config.data.validation_size = 6
    data = poisoned(3)
    data.splits["train"]["poison"][:] = np.nan
    with pytest.raises(RunError, match="not finite since step 1"):
        run(config, data, workdir=tmp_path / "run")
    assert not (tmp_path / "run" / "best").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_rollback_leaves_the_bad_batch_out(run, tmp_path):
    """With batch 4 poisoned, five updates equal training on batches 1, 2, 3, 5 and 6."""
    trainer = run(poison_recipe(max_rollbacks=1), poisoned(3), workdir=tmp_path / "run")
    assert trainer.state.done == 5
    assert trainer.state.skipped_batches == 1
    events = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "rolled back" in events

    # Reference: a run that stopped after step 3 resumes with a manually skipped batch.
    config = poison_recipe()
    with pytest.raises(RunError):
        run(config, poisoned(3), workdir=tmp_path / "hand")
    folder = tmp_path / "hand" / "checkpoints"
    path = checkpoint.list_checkpoints(folder)[-1][1]
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(arrays.pop("header").tobytes())
    header["counters"]["skipped_batches"] = 1
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    by_hand = run(config, poisoned(3), workdir=tmp_path / "hand")
    assert toys.difference(trainer.step.net, by_hand.step.net) == 0


def test_rollbacks_are_counted(run, tmp_path):
    data = poisoned(1)
    data.splits["train"]["poison"][:] = np.nan
    with pytest.raises(RunError, match="not finite since step 1"):
        run(poison_recipe(max_rollbacks=2), data, workdir=tmp_path / "run")
    events = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "rolled back"
    counters = checkpoint.read(tmp_path / "run" / "checkpoints" / "step_0000000000.npz")[0]
    assert counters["counters"]["rollbacks"] == 2


def test_finished_run_is_left_as_it_is(run, tmp_path):
    from tests.commands import content

    config = toys.recipe("toy_norm", "image_classification")
    data = toys.image_data(test=20)
    first = run(config, data, workdir=tmp_path / "run")
    before = content(tmp_path / "run")
    again = run(config, data, workdir=tmp_path / "run")
    assert content(tmp_path / "run") == before
    assert again.metrics == first.metrics


def test_infinite_gradient_of_a_finite_loss_stops_too(run, tmp_path):
    """The loss is finite, but the updated weights are not: no checkpoint may contain them."""
    config = poison_recipe()
    config.task.name = "toy_infinite_gradient"
    with pytest.raises(RunError, match="gradient is not finite since step 4"):
        run(config, poisoned(3, value=-1.0), workdir=tmp_path / "run")
    number, _, arrays = last_arrays(tmp_path / "run")
    assert number == 3
    assert all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f")


class ReportEarly(keras.callbacks.Callback):
    """Writes a report before the run is finished, as `zoo report` does."""

    def __init__(self, workdir):
        super().__init__()
        self.workdir = workdir

    def on_train_end(self, logs=None):
        (self.workdir / "report.html").write_text("early")


def test_an_evaluation_that_was_broken_off_is_made_again(run, tmp_path, monkeypatch):
    from trainers.train import trainer

    config = toys.recipe("toy_norm", "image_classification")
    data = toys.image_data(test=20)
    whole = run(config, data, tmp_path / "whole").metrics
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_evaluation", lambda *a: (_ for _ in ()).throw(Interrupted()))
        report = ReportEarly(tmp_path / "parts")
        with pytest.raises(Interrupted):
            run(config, data, tmp_path / "parts", callbacks=[report])
    assert (tmp_path / "parts" / "model.keras").exists()
    assert not (tmp_path / "parts" / "report.html").exists()
    assert run(config, data, tmp_path / "parts").metrics == whole
    assert (tmp_path / "parts" / "report.html").exists()


def test_evaluation_takes_no_more_rows_at_once_than_training(run):
    config = toys.recipe("toy_norm", "image_classification", micro_batch_size=2)
    config.data.validation_size = 14
    batches = run(config, toys.image_data()).validation.batches
    assert {len(batch["label"]) for batch in batches} == {2}


class LessTheMean(keras.layers.Layer):
    """Custom layer that mixes the rows of one replica."""

    def call(self, x):
        weights = zoo.row_weights(x)[:, None]
        count = keras.ops.maximum(keras.ops.sum(weights), 1.0)  # no 0 / 0 if all rows are padding
        return x - keras.ops.sum(weights * x, 0) / count

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def mixes(name="toy_mixes"):
    image = keras.Input((6, 6, 1), name="image")
    x = LessTheMean(name="less_the_mean")(keras.layers.Flatten()(image))
    return keras.Model(image, keras.layers.Dense(3, activation="softmax")(x), name=name)


registry.register("toy_mixes", mixes, "image_classification")


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("toy_norm", {}, {"micro_batch_size": 4}),
        ("toy_mixes", {"micro_batch_size": 4}, {"micro_batch_size": 8}),
        ("toy_mixes", {}, {"strategy": "mirrored", "replicas": 2}),
        ("toy_norm", {"micro_batch_size": 4}, {"strategy": "mirrored", "replicas": 2}),
    ],
)
def test_rows_that_are_mixed_stay_together(name, before, after, run, tmp_path):
    """Batch statistics are per micro-batch, so another micro-batch size changes the results."""
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(
            toys.recipe(name, "image_classification", **before), toys.image_data(), folder,
            callbacks=[StopAt(6)],
        )  # fmt: skip
    changed = toys.recipe(name, "image_classification", **{**before, **after})
    was = (folder / "config.json").read_bytes()
    with pytest.raises(UsageError, match="must not change micro-batches or replicas"):
        run(changed, toys.image_data(), folder)
    assert (folder / "config.json").read_bytes() == was


def test_replicas_that_see_the_same_rows_together_may_change(run, tmp_path):
    """Batch normalization is synchronized across replicas; no other layer mixes rows."""
    folder = tmp_path / "run"
    recipe = toys.recipe("toy_norm", "image_classification", micro_batch_size=4)
    with pytest.raises(Interrupted):
        run(recipe, toys.image_data(), folder, callbacks=[StopAt(6)])
    recipe.trainer.update({"strategy": "mirrored", "replicas": 2, "micro_batch_size": 2})
    assert run(recipe, toys.image_data(), folder).state.done == 10
