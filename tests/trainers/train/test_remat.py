"""Recomputed blocks give the same gradients with less memory."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import toys
from trainers.optimization.precision import precision
from zoo.errors import UsageError


def train(run, remat, **trainer):
    config = toys.recipe(model_arguments={"dropout": 0.5}, remat=remat, **trainer)
    return run(config, toys.token_data()).step.net


@pytest.mark.parametrize(
    "trainer",
    [
        {},
        {"micro_batch_size": 4},
        {"strategy": "mirrored", "replicas": 2, "micro_batch_size": 4},
        {"jit_compile": True},
    ],
    ids=["plain", "micro-batches", "replicas", "xla"],
)
def test_gradients_with_dropout_are_those_without_remat(trainer, run):
    plain = train(run, "", **trainer)
    recomputed = train(run, "block_.*", **trainer)
    assert toys.difference(plain, recomputed) <= 1e-6


def test_batch_normalization_moves_once(run):
    """A second update in the recomputation would change the moving statistics."""

    def train_norm(remat):
        config = toys.recipe("toy_norm", "image_classification", remat=remat)
        return run(config, toys.image_data()).step.net

    assert toys.difference(train_norm(""), train_norm("norm")) <= 1e-6


def test_layers_inside_are_told_that_this_is_training():
    """Inner layers get `training` even if the block does not pass the argument on."""
    from trainers.train.recompute.remat import apply_remat

    class Quiet(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dropout = keras.layers.Dropout(0.5, seed=3, name="dropout")

        def call(self, x):
            return self.dropout(x) ** 2

    def gradient(remat):
        x = keras.Input((64,))
        model = keras.Model(x, Quiet(name="quiet")(x))
        if remat:
            apply_remat(model, "quiet")
        data = tf.ones((2, 64))
        with tf.GradientTape() as tape:
            tape.watch(data)
            loss = tf.reduce_sum(model(data, training=True))
        return tape.gradient(loss, data).numpy()

    actual = gradient("quiet")
    assert set(actual.ravel()) == {0.0, 8.0}  # dropped, or the gradient of (2 * x) ** 2 at x = 1
    np.testing.assert_array_equal(actual, gradient(""))


def test_pattern_must_match(run):
    with pytest.raises(
        UsageError, match=r"must match the name of a layer. Received: 'blok.*block_0"
    ):
        train(run, "blok.*")
    with pytest.raises(UsageError, match="regular expression"):
        train(run, "block_(")


def test_nested_layers_are_found_once():
    from trainers.train.recompute.remat import apply_remat

    model = toys.token_model()
    assert apply_remat(model, ".*_0|up") == ["block_0", "up"]  # block_0/up lies inside block_0


@pytest.mark.slow
def test_peak_memory_falls():
    """Twelve blocks keep only their inputs, a tenth of their inner activations."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.remat_memory"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    plain, recomputed = json.loads(done.stdout.splitlines()[-1])
    assert recomputed["peak_mib"] < 0.5 * plain["peak_mib"]


def test_frozen_weights_keep_all_their_bits():
    """Frozen weights are unchanged although the block computes in bfloat16; statistics change."""
    from trainers.train.recompute.remat import apply_remat

    keras.utils.set_random_seed(0)
    with precision("mixed_bfloat16"):
        block = keras.Sequential(
            [
                keras.layers.Dense(8, name="frozen"),
                keras.layers.BatchNormalization(name="norm"),
                keras.layers.Dense(8, name="learns"),
            ],
            name="block",
        )
        x = keras.Input((8,))
        model = keras.Model(x, block(x))
    block.layers[0].trainable = False
    before = {v.path: v.numpy().copy() for v in block.variables}
    apply_remat(model, "block")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(tf.random.normal((16, 8)), training=True)))
    tape.gradient(loss, [v.value for v in model.trainable_variables])
    changed = {v.path for v in block.variables if (v.numpy() != before[v.path]).any()}
    assert {path.rpartition("/")[2] for path in changed} == {"moving_mean", "moving_variance"}


def test_a_frozen_float32_layer_in_a_bfloat16_block_is_not_rounded():
    from trainers.train.recompute.remat import apply_remat

    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.frozen = keras.layers.Dense(4, dtype="float32", trainable=False, name="frozen")

        def build(self, shape):
            self.frozen.build(shape)

        def call(self, x):
            return self.frozen(tf.cast(x, "float32"))

    with precision("mixed_bfloat16"):
        x = keras.Input((4,))
        model = keras.Model(x, Block(name="block")(x))
    data = tf.eye(4)
    plain = model(data).numpy()
    apply_remat(model, "block")
    np.testing.assert_array_equal(model(data), plain)
    assert np.abs(plain - tf.cast(tf.cast(plain, "bfloat16"), "float32")).max() > 0
