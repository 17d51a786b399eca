"""Logs of a run: equal lines after kills, equal windows, no value without a target."""

import json
import os
import signal

import keras
import numpy as np
import pytest

from tests import toys
from tests.trainers.train.test_resume import Interrupted, StopAt
from trainers.config.base import optimizer
from trainers.evaluation.means import Means
from trainers.run.workdir import read_metrics
from trainers.train import trainer
from trainers.train.hooks.keras_callbacks import KerasCallbacks
from trainers.train.hooks.log_windows import LogWindows
from trainers.train.hooks.periods import Periods
from trainers.train.hooks.validation import Validation
from trainers.train.loop import Terminated
from trainers.train.trainer import Trainer
from zoo import registry
from zoo.formatting import duration, short_number
from zoo.tasks.base import Task

TIMES = ("seconds", "goodput", "time", "samples_per_second", "tokens_per_second")


class WarningTask(toys.TokenTask):
    def warning(self, logs):
        return "the toy warns" if logs["loss"] > 0 else ""


registry.register_task("toy_warning", WarningTask)


def recipe(**trainer):
    """Returns a config: 4 updates per epoch (56 of 70 examples), windows of 7 across epoch ends."""
    config = toys.recipe(
        task="toy_warning",
        **{
            "steps": 18, "log_every": 7, "checkpoint_every": 5, "evaluate_every": 3, "keep": 9,
            **trainer,
        },
    )  # fmt: skip
    config.optimizer = optimizer("adamw", learning_rate=0.01)
    config.data.validation_size = 14
    return config


class EpochRecorder(keras.callbacks.Callback):
    """Records the logs of `on_epoch_end` per epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = {}

    def on_epoch_end(self, epoch, logs=None):
        self.epochs[epoch] = dict(logs)


def lines_of(workdir):
    """Returns the lines of metrics.jsonl without times and without "resumed" events."""
    lines = [line for line in read_metrics(workdir) if line.get("event") != "resumed"]
    for line in lines:
        if line.get("event") in ("started", "finished"):
            line.pop("detail")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trains without interruption; returns the logged lines and the epoch logs of callbacks."""
    recorder, workdir = EpochRecorder(), tmp_path_factory.mktemp("whole") / "run"
    Trainer(recipe(), workdir, dataset=toys.token_data(), callbacks=[recorder]).train()
    return lines_of(workdir), recorder.epochs


def test_a_killed_run_logs_what_the_uninterrupted_run_logs(whole, run, tmp_path):
    """The kills are before the first checkpoint, between two and before the last."""
    lines, epochs = whole
    recorder = EpochRecorder()
    for stop in (3, 9, 18):
        with pytest.raises(Interrupted):
            run(recipe(), toys.token_data(), tmp_path / "run", callbacks=[StopAt(stop), recorder])
    run(recipe(), toys.token_data(), tmp_path / "run", callbacks=[recorder])
    assert lines_of(tmp_path / "run") == lines
    assert recorder.epochs == epochs
    events = [line["event"] for line in read_metrics(tmp_path / "run") if "event" in line]
    assert events.count("warning") == events.count("started") == events.count("finished") == 1
    assert events.count("resumed") == 2  # not at the second start, which had no checkpoint


@pytest.mark.parametrize("in_epoch", [True, False])
def test_windows_come_back_whole(in_epoch):
    """The state includes the seconds of the window, from which throughput is computed."""
    means = Means(toys.TokenTask(), penalty=True)
    state = {
        "device": {name: [1.5, 2.0] for name in means.metrics},
        "window": {"loss": [3.0, 4.0]}, "epoch": {"loss": [5.0, 6.0]}, "steps": 7, "seconds": 0.5,
        "logs": {"loss": 0.1}, "evaluated": {"val_loss": 0.2}, "in_epoch": in_epoch,
    }  # fmt: skip
    windows = LogWindows(means)
    windows.restore(state)
    assert json.loads(json.dumps(windows.state())) == state


@pytest.mark.parametrize(
    "where",
    [
        (KerasCallbacks, "end_epoch"),
        pytest.param((Validation, "evaluate"), marks=pytest.mark.slow),
        pytest.param((Trainer, "_finish"), marks=pytest.mark.slow),
    ],
    ids=["epoch", "evaluation", "finish"],
)
def test_a_kill_between_a_checkpoint_and_what_follows_it(where, whole, run, tmp_path, monkeypatch):
    lines, epochs = whole
    recorder = EpochRecorder()

    def killed(self, *arguments):
        state = self.state if isinstance(self, Trainer) else self._state
        if state.done in (15, 18):
            raise Interrupted
        return before(self, *arguments)

    before = getattr(*where)
    config = recipe(checkpoint_every=3)
    with monkeypatch.context() as patch:
        patch.setattr(*where, killed)
        with pytest.raises(Interrupted):
            run(config, toys.token_data(), tmp_path / "run", callbacks=[recorder])
    run(config, toys.token_data(), tmp_path / "run", callbacks=[recorder])
    assert lines_of(tmp_path / "run") == lines
    assert recorder.epochs == epochs


def test_a_kill_while_the_report_is_written_leaves_one_end(whole, run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "write_report", lambda path: (_ for _ in ()).throw(Interrupted()))
        with pytest.raises(Interrupted):
            run(recipe(), toys.token_data(), tmp_path / "run")
    assert read_metrics(tmp_path / "run")[-1]["event"] == "finished"
    run(recipe(), toys.token_data(), tmp_path / "run")
    assert lines_of(tmp_path / "run") == whole[0]


@pytest.mark.slow
def test_a_stop_by_sigterm_at_an_epochs_end_is_heard_of_once(whole, run, tmp_path):
    lines, epochs = whole
    recorder = EpochRecorder()

    class Terminate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.count.numpy()) == 8:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Terminated):
        run(recipe(), toys.token_data(), tmp_path / "run", callbacks=[Terminate(), recorder])
    assert sorted(recorder.epochs) == [0]
    run(recipe(), toys.token_data(), tmp_path / "run", callbacks=[recorder])
    assert lines_of(tmp_path / "run") == lines
    assert recorder.epochs == epochs


@pytest.mark.slow
def test_two_replicas_log_the_same_after_a_kill(run, tmp_path):
    config = recipe(strategy="mirrored", replicas=2, evaluate_every=18)
    run(config, toys.token_data(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(config, toys.token_data(), tmp_path / "run", callbacks=[StopAt(12)])
    run(config, toys.token_data(), tmp_path / "run")
    for one, other in zip(lines_of(tmp_path / "run"), lines_of(tmp_path / "whole"), strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            expected = pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            assert one[key] == expected


def test_a_rollback_goes_back_to_the_means_of_the_checkpoint(run, tmp_path):
    """Of six batches (the fifth has 6 rows, the others 16), the fourth is skipped."""
    from tests.trainers.train.test_resume import poison_recipe, poisoned

    def losses(every):
        data, folder = poisoned(3), tmp_path / str(every)
        data.splits["train"]["mask"][:] = True
        run(poison_recipe(max_rollbacks=1, log_every=every), data, folder)
        return [line["loss"] for line in read_metrics(folder) if "loss" in line]

    expected = np.average(losses(1), weights=[16, 16, 16, 6, 16])
    assert losses(5) == pytest.approx([expected], rel=1e-4)


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [
        (18, 7, [7, 14, 18]),  # after 14, 4 updates remain: more than half a window
        (17, 7, [7, 17]),
        (16, 5, [5, 10, 16]),
        (12, 4, [4, 8, 12]),
        (3, 7, [3]),
    ],
)
def test_windows_are_equal_whatever_the_length_of_an_epoch(steps, every, expected):
    periods = Periods(steps, steps_per_epoch=5, log_every=every)
    assert [done for done in range(1, steps + 1) if periods.ends_window(done)] == expected


def test_an_epochs_means_are_of_all_its_updates(run, tmp_path):
    """With learning rate 0 the losses are constant; only the averaging intervals differ."""
    config = toys.recipe(steps=10, log_every=3, checkpoint_every=10)
    config.optimizer = optimizer("sgd", learning_rate=0.0)
    recorder = EpochRecorder()
    data = toys.token_data()
    trainer = run(config, data, tmp_path / "run", callbacks=[recorder])
    lines = [line for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6, 10]
    arrays = data.splits["train"]
    logits = trainer.step.net.predict(arrays["tokens"], verbose=0)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probabilities, arrays["targets"][..., None], -1)[..., 0]
    expected = losses[arrays["mask"]].mean()
    for epoch in (0, 1):
        assert recorder.epochs[epoch]["loss"] == pytest.approx(expected, rel=1e-4)
    assert trainer.periods.steps_per_epoch == 5


def test_a_run_that_a_callback_stops_logs_its_last_updates(run, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    run(toys.recipe(steps=30, log_every=4), toys.token_data(), tmp_path / "run", callbacks=[Stop()])
    assert [line["step"] for line in read_metrics(tmp_path / "run") if "loss" in line] == [4, 5]


# --- no target ------------------------------------------------------------------------------------


def test_a_mean_of_nothing_has_no_value():
    means = Means(registry.build_task("clm"), penalty=True)
    nothing = dict.fromkeys(means.metrics, (0.0, 0.0))
    assert means.logs(nothing) == {}
    assert means.logs({**nothing, "regularization": (3.0, 1.0)}) == {"regularization": 3.0}
    assert all(np.isnan(float(v)) for k, v in means.result().items() if k != "regularization")
    # Targets with a byte count of 0.
    known = dict.fromkeys(("loss", "accuracy"), (2.0, 1.0))
    assert set(means.logs({**nothing, **known})) == {"loss", "accuracy", "perplexity"}


def test_a_loss_lacks_none_of_its_terms():
    means = Means(registry.build_task("nsp"))
    sums = dict.fromkeys(means.metrics, (1.0, 2.0))
    assert set(means.logs(sums)) == {*sums, "loss", "perplexity"}
    sums |= {"mlm": (0.0, 0.0), "mlm_accuracy": (0.0, 0.0)}
    assert means.logs(sums) == {"nsp": 0.5, "nsp_accuracy": 0.5}


def test_a_divergence_is_still_seen():
    class Toy(Task):
        statistics = ("accuracy",)

    logs = Means(Toy()).logs({"loss": (float("nan"), 1.0), "accuracy": (0.0, 0.0)})
    assert np.isnan(logs["loss"])
    assert "accuracy" not in logs


def test_validation_without_targets_chooses_no_best_model(run, tmp_path, capsys):
    """A validation without targets has no value, rather than a perfect one."""
    config = toys.recipe(steps=10, log_every=5)
    data = toys.token_data()
    empty = {key: array[:9].copy() for key, array in data.splits["train"].items()}
    empty["mask"][:] = False
    data.splits["validation"] = empty
    trainer = run(config, data, tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    assert not any(key.startswith("val_") for line in lines for key in line)
    (warning,) = [line["detail"] for line in lines if line.get("event") == "warning"]
    assert "no best model is saved: val_loss" in warning
    assert not (tmp_path / "run" / "best").exists()
    assert trainer.metrics == {}
    assert "no value" in str(trainer.result)
    assert json.loads((tmp_path / "run/evaluation/validation.json").read_text())["metrics"] == {}
    assert "no value" in (tmp_path / "run/report.html").read_text()
    assert run(config, data, tmp_path / "run").metrics == {}  # the run is finished
    message = capsys.readouterr().err
    assert "already finished" in message
    assert "validation (current weights): no value" in message


def test_updates_without_targets_log_no_loss(run, tmp_path):
    data = toys.token_data()
    data.splits["train"]["mask"][:] = False
    run(toys.recipe(), data, tmp_path / "run")
    lines = [line for line in read_metrics(tmp_path / "run") if "samples_per_second" in line]
    assert len(lines) == 2
    assert not any("loss" in line or "accuracy" in line for line in lines)


# --- what is printed ------------------------------------------------------------------------------


def test_progress_is_printed_to_stderr_with_the_time_that_is_left(run, capsys):
    config = recipe(ema=0.9)
    trainer = run(config, toys.token_data())
    answer = capsys.readouterr()
    assert answer.out == ""
    lines = answer.err.splitlines()
    (training,) = [line for line in lines if line.startswith("step 7/18  training: loss ")]
    assert training.endswith(" s left")
    assert " samples/s  " in training
    validation = [line for line in lines if "validation (current averaged weights): loss" in line]
    assert [line.split()[1] for line in validation] == [
        "3/18",
        *(f"{n}/18" for n in (6, 9, 12, 15, 18)),
    ]
    assert "  best so far" in validation[0]
    assert validation[0].endswith(" left")
    assert not validation[-1].endswith(" left")
    assert str(trainer.result).startswith("validation (final averaged weights, step 18): loss ")


def test_validation_lines_name_the_best_loss(run, tmp_path, capsys):
    config = recipe()
    config.optimizer = optimizer("adamw", learning_rate=10.0)  # the loss grows and falls
    run(config, toys.token_data(), tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if "validation (current weights): loss" in line]
    values = [row["val_loss"] for row in read_metrics(tmp_path / "run") if "val_loss" in row]
    for i, (line, value) in enumerate(zip(lines, values, strict=True)):
        best = min(values[: i + 1])
        assert ("best so far" in line) == (value == best)
        assert value == best or f"(best: loss {short_number(best)})" in line
    assert {"best so far" in line for line in lines} == {True, False}


def test_numbers_as_people_read_them():
    numbers = (28_870, 9999, 99_950, 1_234_567, 0.25, 1e-5, -1500)
    assert [*map(short_number, numbers)] == [
        "28.9k", "9999", "100k", "1.23M", "0.25", "1e-05", "-1500",
    ]  # fmt: skip
    seconds = (4.4, 59.6, 200, 3600, 7500, 100_000)
    assert [*map(duration, seconds)] == [
        "4 s", "1 min 0 s", "3 min 20 s", "1 h 0 min", "2 h 5 min", "1 d 3 h",
    ]  # fmt: skip
