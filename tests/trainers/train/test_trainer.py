"""Callbacks, the best model, averaged weights, and whole runs."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest

from tests import toys
from trainers.config.base import optimizer, schedule
from trainers.distributed.group import LocalGroup
from trainers.run.checkpoint import list_checkpoints
from trainers.run.events import Events
from trainers.run.workdir import NoDirectory, read_metrics
from trainers.train.trainer import Trainer
from zoo import registry
from zoo.errors import UsageError


def test_average_is_the_one_it_says_and_is_what_gets_evaluated_and_saved(run, tmp_path):
    """The reference is a moving average of the weights after each update, computed in NumPy."""
    weight_history = []

    class Remember(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            weight_history.append([v.numpy() for v in self.model.net.trainable_variables])

    config = toys.recipe("toy_norm", "image_classification", ema=0.8)
    data = toys.image_data(test=20)
    trainer = run(config, data, workdir=tmp_path / "run", callbacks=[Remember()])
    average = weight_history[0]
    for weights in weight_history[1:]:
        average = [0.8 * a + 0.2 * w for a, w in zip(average, weights, strict=True)]
    saved = keras.saving.load_model(tmp_path / "run" / "model.keras")
    for a, last, v in zip(average, weight_history[-1], saved.trainable_variables, strict=True):
        np.testing.assert_allclose(a, v.numpy(), atol=1e-6)
        assert np.abs(last - v.numpy()).max() > 1e-4  # the average differs from the last weights
    images = data.splits["test"]["image"].astype("float32") / 255
    right = saved.predict(images, verbose=0).argmax(-1) == data.splits["test"]["label"]
    assert trainer.metrics["accuracy"] == pytest.approx(right.mean())
    # Training continues with the raw weights.
    for weight, v in zip(weight_history[-1], trainer.step.net.trainable_variables, strict=True):
        np.testing.assert_array_equal(weight, v.numpy())


def test_best_is_chosen_on_the_validation_split(run, tmp_path):
    config = toys.recipe("toy_norm", "image_classification", steps=20, log_every=5)
    config.data.validation_size = 20
    run(config, toys.image_data(90), workdir=tmp_path / "run")
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = {x["step"]: x["val_accuracy"] for x in lines if "val_accuracy" in x}
    best = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert best["val_accuracy"] == max(values.values())
    assert best["step"] == min(s for s, v in values.items() if v == max(values.values()))
    assert (tmp_path / "run" / "best" / "model.keras").exists()


def test_patience_ends_the_run_and_counts_exactly_after_a_resume(run, tmp_path):
    config = toys.recipe(
        "toy_norm", "image_classification", steps=40, evaluate_every=2, checkpoint_every=2,
        patience=3, keep=9,
    )  # fmt: skip
    config.data.validation_size = 20
    config.optimizer.learning_rate = 0.0  # no evaluation after the first one is better
    config.model.name = "toy_frozen"  # has no statistics that change
    data = toys.image_data(90)
    trainer = run(config, data, workdir=tmp_path / "run")
    assert trainer.state.done == 8
    (event,) = (x for x in read_metrics(tmp_path / "run") if x.get("event") == "stopped")
    assert "trainer.patience" in event["detail"]
    for _, path in list_checkpoints(tmp_path / "run" / "checkpoints")[2:]:  # of updates 6 and 8
        path.unlink()
    (tmp_path / "run" / "report.html").unlink()
    resumed = run(config, data, workdir=tmp_path / "run")
    assert resumed.state.done == 8
    assert "from step_0000000004.npz" in [x.get("detail") for x in read_metrics(tmp_path / "run")]


@pytest.mark.parametrize("replicas", [1, 2])
def test_logged_means_are_those_of_all_tokens(replicas, run, tmp_path):
    """With learning rate 0, the logged loss of an epoch is the loss over all its tokens."""
    more = {"strategy": "mirrored", "replicas": 2} if replicas == 2 else {}
    config = toys.recipe(steps=5, log_every=5, **more)
    config.optimizer = optimizer("sgd", learning_rate=0.0)
    data = toys.token_data()
    trainer = run(config, data, workdir=tmp_path / "run")
    arrays = data.splits["train"]
    logits = trainer.step.net.predict(arrays["tokens"], verbose=0)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probabilities, arrays["targets"][..., None], -1)[..., 0]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (line,) = [line for line in map(json.loads, lines) if "loss" in line]
    assert line["loss"] == pytest.approx(losses[arrays["mask"]].mean(), rel=1e-4)
    right = (logits.argmax(-1) == arrays["targets"])[arrays["mask"]].mean()
    assert line["accuracy"] == pytest.approx(right, rel=1e-4)


def test_keras_callbacks_work_unchanged(run, tmp_path):
    rates, epochs = [], []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            epochs.append((epoch, sorted(logs)))
            rates.append(float(self.model.optimizer.learning_rate.numpy()))

    config = toys.recipe("toy_norm", "image_classification", steps=0, epochs=4)
    config.data.validation_size = 10
    config.trainer.callbacks = ("tensorboard",)
    csv = tmp_path / "log.csv"
    trainer = run(
        config, toys.image_data(), workdir=tmp_path / "run",
        callbacks=[
            keras.callbacks.CSVLogger(str(csv)),
            keras.callbacks.EarlyStopping("val_loss", min_delta=1e9, patience=1),
            keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: None),
            Look(),
        ],
    )  # fmt: skip
    assert [epoch for epoch, _ in epochs] == [0, 1]  # stopped early after `patience` epochs
    assert epochs[0][1] == ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert trainer.state.done == 8
    assert csv.read_text().splitlines()[0] == "epoch,accuracy,loss,val_accuracy,val_loss"
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out*"))
    assert (tmp_path / "run" / "model.keras").exists()
    assert len(trainer.step.history.epoch) == 2
    # A second run of the same command does not continue training.
    again = run(config, toys.image_data(), workdir=tmp_path / "run")
    assert again.state.done == 8
    assert toys.difference(trainer.step.net, again.step.net) == 0


def test_callbacks_hear_of_every_evaluation(run):
    """An epoch has four updates; evaluations are after every third update."""
    callback_losses = []
    recorder = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: callback_losses.append(logs.get("val_loss"))
    )
    config = toys.recipe("toy_norm", "image_classification", steps=12, evaluate_every=3)
    config.data.validation_size = 10
    trainer = run(config, toys.image_data(), callbacks=[recorder])
    lines = read_metrics(trainer.workdir.path)
    losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    assert list(losses) == [3, 6, 9, 12]
    assert trainer.periods.steps_per_epoch == 4
    np.testing.assert_allclose(callback_losses, [losses[3], losses[6], losses[12]], rtol=1e-4)


def test_classes_without_a_name_are_refused(run):
    data = toys.image_data(classes=2)
    with pytest.raises(UsageError, match=r"has 2 \(a, b\); set model.num_classes=2"):
        run(toys.recipe("toy_norm", "image_classification"), data)
    numbered = dataclasses.replace(data, class_names=("0", "1"))  # the third class may be absent
    assert run(toys.recipe("toy_norm", "image_classification", steps=1), numbered).state.done == 1


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_keras_model_checkpoint_writes_the_bare_model(run, tmp_path, ema):
    config = toys.recipe("toy_norm", "image_classification", steps=5, ema=ema)
    config.data.validation_size = 10
    whole, weights = tmp_path / "whole.keras", tmp_path / "only.weights.h5"
    trainer = run(
        config, toys.image_data(),
        callbacks=[
            keras.callbacks.ModelCheckpoint(
                str(whole), monitor="val_accuracy", mode="max", save_best_only=True
            ),
            keras.callbacks.ModelCheckpoint(str(weights), save_weights_only=True),
        ],
    )  # fmt: skip
    last, best, loaded = (
        keras.saving.load_model(path, compile=False)
        for path in (trainer.workdir / "model.keras", trainer.workdir / "best/model.keras", whole)
    )
    assert toys.difference(loaded, best) == 0
    again = toys.norm_model()
    again.load_weights(weights)
    assert toys.difference(again, last) == 0


def test_restoring_the_best_weights_is_refused(run):
    stop = keras.callbacks.EarlyStopping(restore_best_weights=True)
    with pytest.raises(UsageError, match="saves the best model as best/model.keras"):
        run(toys.recipe(), toys.token_data(), callbacks=[stop])


def test_the_log_tells_examples_and_rates_as_they_were(run):
    """Padding rows are no examples; a line has the learning rate of its last update."""
    config = toys.recipe(steps=4, log_every=1)
    config.schedule = schedule("linear", warmup_steps=2)
    trainer = run(config, toys.token_data(20))
    lines = [line for line in read_metrics(trainer.workdir.path) if "loss" in line]
    rates = [line["learning_rate"] for line in lines]
    np.testing.assert_allclose(rates, [0.05, 0.1, 0.05, 0.0], rtol=1e-5)
    assert trainer.periods.steps_per_epoch == 2  # with 16 and 4 examples
    progress, counts = trainer._hooks(None).progress, []
    for done, steps in ((1, 1), (2, 1), (2, 2), (4, 4), (3, 2)):
        trainer.state.done = done
        counts.append(progress.examples_of(steps))
    assert counts == [16, 4, 20, 40, 20]


def test_a_layer_that_assigns_to_its_weights_is_refused(run):
    """The assigned value would be lost between updates."""

    def build():
        image = keras.Input((6, 6, 1), name="image")
        x = keras.layers.Flatten()(image)
        x = keras.layers.SpectralNormalization(keras.layers.Dense(8), name="spectral")(x)
        return keras.Model(image, keras.layers.Dense(3, activation="softmax")(x))

    registry.register("toy_spectral", build, "image_classification")
    with pytest.raises(UsageError, match="must not assign to trainable variables.*kernel"):
        run(toys.recipe("toy_spectral", "image_classification"), toys.image_data())


def test_callbacks_set_a_constant_rate(run):
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    trainer = run(toys.recipe(steps=0, epochs=3), toys.token_data(), callbacks=[halve])
    assert float(trainer.step.optimizer.learning_rate.numpy()) == pytest.approx(0.1 / 8)


def test_throughput_leaves_out_what_is_not_training(run, tmp_path):
    """Steps that sleep 20 ms and save are logged with at most 50 steps per second."""
    import time

    class Sleep(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            time.sleep(0.02)

    config = toys.recipe(steps=20, log_every=10, checkpoint_every=1)
    run(config, toys.token_data(), workdir=tmp_path / "run", callbacks=[Sleep()])
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["samples_per_second"] for line in lines if "loss" in line]
    assert all(rate <= 16 / 0.02 for rate in rates), rates


def test_a_worker_that_is_not_the_chief_writes_nothing(tmp_path):
    """The worker does not even create its folder. The test sets `chief = False` in one process."""

    class Tokenizer:
        fingerprint = "toy"

        def save(self, path):
            path.write_text("written")

    data = dataclasses.replace(toys.token_data(), tokenizer=Tokenizer())
    trainer = Trainer(toys.recipe(steps=2), tmp_path / "absent", dataset=data)
    trainer.group = LocalGroup()
    trainer.group.chief, compared_values = False, {}
    trainer.group.check_same = compared_values.__setitem__
    trainer.workdir = NoDirectory(trainer.workdir.path)
    trainer.events = Events(trainer.workdir, trainer.state, chief=False)
    trainer.train()
    assert not list(tmp_path.iterdir())
    # All workers must have the same number and kind of devices.
    assert "CPU" in compared_values["number and kind of devices"].split(",")


def test_data_without_a_training_split_is_refused(run):
    data = toys.image_data()
    data.splits["test"] = data.splits.pop("train")
    with pytest.raises(UsageError, match="Training requires the split 'train'"):
        run(toys.recipe("toy_norm", "image_classification"), data)


@pytest.mark.parametrize("every", [1, 3, 100])
def test_steps_per_execution_changes_nothing(every, run):
    def train(**more):
        config = toys.recipe(steps=13, log_every=4, checkpoint_every=6, **more)
        config.schedule = schedule("cosine")
        return run(config, toys.token_data()).step.net

    assert toys.difference(train(), train(steps_per_execution=every)) == 0


def test_nothing_retraces(run):
    """Short last batches and shorter executions use one trace of the step."""
    trainer = run(toys.recipe(steps=13, steps_per_execution=4, log_every=3), toys.token_data())
    assert trainer._run.experimental_get_tracing_count() == 1


def test_the_loss_falls_and_the_data_are_memorised(run):
    config = toys.recipe(steps=150, log_every=50)
    config.optimizer = optimizer("adamw", learning_rate=0.02)
    logs = run(config, toys.token_data()).metrics
    assert logs["accuracy"] > 0.95
    assert logs["loss"] < 0.5 < math.log(11)


def test_init_from(run, tmp_path, capsys):
    data = toys.token_data()
    first = run(toys.recipe(), data, workdir=tmp_path / "first")
    config = toys.recipe(steps=1, checkpoint_every=100)
    config.optimizer.learning_rate = 0.0
    config.init_from = str(tmp_path / "first")
    second = run(config, data)
    assert toys.difference(first.step.net, second.step.net) == 0
    other = toys.recipe(steps=1, model_arguments={"vocabulary": 13})
    other.init_from = str(tmp_path / "first" / "model.keras")
    run(other, data)
    message = capsys.readouterr().err
    assert "embedding/embeddings (11, 8) -> (13, 8)" in message
    other.init_from = str(tmp_path / "nothing")
    with pytest.raises(UsageError, match="init_from must be a work directory, a .keras file"):
        run(other, data)
