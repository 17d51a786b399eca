"""Tests of `zoo bench`: its measurements, and its advice if memory runs out."""

import json
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import toys
from trainers.bench import _input_rate
from trainers.bench import bench as measure
from trainers.cli import bench, common
from zoo import registry
from zoo.description import forward_flops
from zoo.tasks.image_classification import ImageClassification


@pytest.mark.slow
def test_bench_counts_what_it_runs(capsys):
    argv = ["zoo bench", "cnn_digits:debug", "--seconds=0.5", "--json"]
    assert common.run(bench.command, argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples_per_second"] == pytest.approx(64 / result["step"], rel=1e-6)
    # Three times forward: 2.8 million multiply-adds of the convolutions and dense layers.
    macs = 26 * 26 * 32 * 9 + 11 * 11 * 64 * 288 + 9 * 64 * 576 + 576 * 64 + 640
    assert result["flops"] == pytest.approx(3 * 2 * macs * 64, rel=0.05)
    assert (result["share"] > 1) == (result["remark"] != "")
    assert result["share"] == pytest.approx(result["flops"] / result["step"] / result["peak"])
    assert result["input_samples_per_second"] == 64 * result["input_batches_per_second"]
    assert result["input_samples_per_second"] > result["cached_samples_per_second"] > 0
    assert result["bottleneck"] == "step"


@pytest.mark.slow
def test_a_model_takes_its_sizes_from_the_data(tmp_path, zoo_command):
    image = np.zeros((64, 20, 24, 1), np.uint8)
    np.savez(tmp_path / "x.npz", train_image=image, train_label=np.arange(64) % 3)
    answer = zoo_command(
        "bench", "cnn_digits:debug", f"--config.data.source=npz:{tmp_path / 'x.npz'}",
        "--config.data.validation_size=0", "--seconds=0", "--json",
    )  # fmt: skip
    assert answer.status == 0, answer.err
    macs = 18 * 22 * 32 * 9 + 7 * 9 * 64 * 288 + 64 * 2 * 576 + 128 * 64 + 64 * 3
    assert json.loads(answer.out)["flops"] == pytest.approx(3 * 2 * macs * 64, rel=0.05)


def test_step_and_peak_are_measured_in_turns(monkeypatch):
    """Updates and matrix products alternate, so a slow phase of the machine affects both."""
    from trainers import bench as module

    events, real = [], module.update_function

    def update_function(step, strategy):
        run = real(step, strategy)
        return lambda *arguments: events.append("update") or run(*arguments)

    def product(self):
        events.append("product")
        return 1e12

    monkeypatch.setattr(module.MatrixProducts, "flops_per_second", product)
    monkeypatch.setattr(module, "update_function", update_function)
    result = measure(toys.recipe("toy_norm", "image_classification"), 0.0)
    assert result.peak == 1e12
    turn = ["update", "update", "product"]
    assert events[: 2 + 9 * 3] == ["update", "update", *(9 * turn)]  # after two warm-up updates
    assert "product" not in events[2 + 9 * 3 :]


@pytest.mark.slow
def test_a_share_above_the_peak_is_flagged(monkeypatch, zoo_command):
    from trainers import bench as module

    monkeypatch.setattr(module.MatrixProducts, "flops_per_second", lambda self: 1.0)
    answer = zoo_command("bench", "cnn_digits:debug", "--seconds=0")
    assert answer.status == 0
    assert "% (above 100 %: other work on this machine" in answer.out.splitlines()[-1]


def test_a_frozen_part_is_left_out_as_in_training():
    config = toys.recipe("toy_frozen", "image_classification")
    result = measure(config, 0.2)
    head = registry.build("toy_frozen").head
    assert result.flops == 3 * forward_flops(head) * 16
    config.task.feature_views = 0
    assert measure(config, 0.2).flops > 2 * result.flops


def test_a_student_is_timed_with_its_teacher(trained):
    config = toys.recipe("cnn_classifier", "image_classification")
    config.model.update({"num_classes": 10, "filters": (4, 4, 4)})
    config.compress.distill.teacher = str(trained[0])
    assert measure(config, 0.1).samples_per_second > 0


@pytest.mark.parametrize("key", ["structured.sparsity", "low_rank.energy"])
def test_sizes_that_would_follow_from_weights_are_refused(key, zoo_command):
    answer = zoo_command("bench", "cnn_digits:debug", f"--config.compress.{key}=0.5")
    assert answer.status == 2
    assert f"compress.{key.partition('.')[0]} chooses sizes" in answer.one_line()


class SlowInput(ImageClassification):
    """Prepares each batch in 0.05 s; two batches are prepared in parallel."""

    def prepare(self, batch, uniform, training):
        batch = super().prepare(batch, uniform, training)
        delay = tf.numpy_function(lambda: time.sleep(0.05) or np.float32(0), [], tf.float32)
        return {**batch, "weight": batch["weight"] + tf.ensure_shape(delay, ())}


@pytest.mark.alone
def test_a_slow_input_is_named(monkeypatch, zoo_command):
    registry.register_task("toy_slow_input", SlowInput)
    config = toys.recipe("toy_norm", "toy_slow_input")
    monkeypatch.setattr(bench, "resolve", lambda *_: config)
    answer = zoo_command("bench", "toy", "--seconds=2", "--json")
    assert answer.status == 0, answer.err
    result = json.loads(answer.out)
    assert result["bottleneck"] == "input"
    assert 20 < result["input_batches_per_second"] <= 1.1 * 2 / 0.05
    assert result["cached_samples_per_second"] > result["input_samples_per_second"]


@pytest.mark.alone
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_batch_is_the_shares_of_all_replicas(replicas):
    def slow(number):
        return tf.numpy_function(lambda: time.sleep(0.01) or np.int64(0), [], tf.int64)

    rate = _input_rate(tf.data.Dataset.range(10**6).map(slow), replicas, 0.0)
    assert 20 / replicas < rate <= 100 / replicas


@pytest.mark.slow
def test_text_is_measured_at_its_length(capsys):
    """The vocabulary is that of the recipe's data."""
    argv = ["zoo bench", "gpt_pydoc:debug", "--seconds=0.5", "--json"]
    assert common.run(bench.command, argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["unit"] == "tokens"
    # A row of 65 tokens has 64 targets, almost all with weight 1.
    assert 60 < result["units_per_second"] / result["samples_per_second"] <= 64
    # Per position: one multiply-add per weight of the two blocks and the projection (1,000 words),
    # and two multiply-adds of attention per pair of positions and unit of the width.
    macs = 64 * (2 * 12 * 32 * 32 + 1000 * 32) + 2 * 2 * 64 * 64 * 32
    assert result["flops"] == pytest.approx(3 * 2 * macs * 32, rel=0.1)


def test_an_input_of_a_fixed_size_needs_no_name():
    def build():
        image = keras.Input((6, 6, 1))
        x = keras.layers.Flatten()(image)
        return keras.Model(image, keras.layers.Dense(3, activation="softmax")(x))

    registry.register("toy_unnamed", build, "image_classification")
    assert measure(toys.recipe("toy_unnamed", "image_classification"), 0.1).flops > 0


def test_a_batch_larger_than_the_data_is_refused(capsys):
    argv = ["zoo bench", "gpt_pydoc:debug", "--config.trainer.global_batch_size=100000"]
    assert common.run(bench.command, argv) == 2
    assert "tokens are missing. Set trainer.global_batch_size=" in capsys.readouterr().err


def test_a_recurrent_model_is_counted_at_every_position():
    from zoo.description import build_abstract, forward_flops

    model = build_abstract("lstm_generator")
    assert forward_flops(model, 20) == 20 * forward_flops(model, 1)
    macs = 4 * (256 + 128) * 128 + 128 * 1000
    assert forward_flops(model, 1) == pytest.approx(2 * macs, rel=0.02)


def test_another_backend_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert common.run(bench.command, ["zoo bench", "cnn_digits:debug"]) == 2
    assert "KERAS_BACKEND must be tensorflow. Received: jax." in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), MemoryError()]
)
def test_out_of_memory_ends_in_advice(error, capsys):
    def command(argv):
        raise error

    assert common.run(command, ["zoo"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for advice in ("micro_batch_size", "mixed_bfloat16", "remat"):
        assert advice in message
