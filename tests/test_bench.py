"""`zoo bench` measures what it says, and running out of memory ends in advice."""

import json

import pytest
import tensorflow as tf

from trainers.cli import bench, common


def test_bench_counts_what_it_runs(capsys):
    argv = ["zoo bench", "cnn_digits:debug", "--seconds=0.5", "--json"]
    assert common.run(bench.command, argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples_per_second"] == pytest.approx(64 / found["step"], rel=1e-6)
    # Three times forward: 2.8 million multiply-adds of the convolutions and dense layers.
    macs = 26 * 26 * 32 * 9 + 11 * 11 * 64 * 288 + 9 * 64 * 576 + 576 * 64 + 640
    assert found["flops"] == pytest.approx(3 * 2 * macs * 64, rel=0.05)
    assert 0 < found["share"] < 1
    assert found["input_samples_per_second"] > found["samples_per_second"]


def test_another_backend_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert common.run(bench.command, ["zoo bench", "cnn_digits:debug"]) == 2
    assert "KERAS_BACKEND=jax" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), MemoryError()]
)
def test_out_of_memory_ends_in_advice(error, capsys):
    def command(argv):
        raise error

    assert common.run(command, ["zoo"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for advice in ("micro_batch_size", "mixed_bfloat16", "remat"):
        assert advice in said
