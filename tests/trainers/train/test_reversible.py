"""Reversible stacks give the gradients of plain stacks with less memory."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests import toys
from trainers.optimization.precision import precision
from trainers.train.reversible import apply_reversible
from zoo import registry
from zoo.errors import UsageError


class Part(layers.Layer):
    """Normalization, dense layers and dropout, with an optional bias and scale of the input."""

    def __init__(self, width, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization(name="norm")
        self.up = layers.Dense(2 * width, activation="gelu", name="up")
        self.dropout = layers.Dropout(dropout, name="dropout")
        self.down = layers.Dense(width, name="down")

    def build(self, shape, *_, **__):
        for part in (self.norm, self.up):
            part.build(shape)
        self.down.build((*shape[:-1], 2 * shape[-1]))

    def call(self, x, bias=None, scale=None):
        x = self.norm(x)
        x = x if bias is None else x + tf.cast(bias, x.dtype)
        x = x if scale is None else x * tf.cast(scale, x.dtype)
        return self.down(self.dropout(self.up(x)))


class Stack(layers.Layer):
    """Plain stack of reversible pairs."""

    def __init__(self, pairs, **kwargs):
        super().__init__(**kwargs)
        self.pairs = pairs
        self.parts = [part for pair in pairs for part in pair]  # Keras tracks no nested lists

    def build(self, first_shape):
        for part in self.parts:
            part.build(first_shape)

    def call(self, first, second, *args, training=None, **kwargs):
        for f, g in self.pairs:
            first = first + tf.cast(f(second, *args, **kwargs), first.dtype)
            second = second + tf.cast(g(first), second.dtype)
        return first, second


def make_stack(width=8, depth=3, dropout=0.0, **kwargs):
    pairs = [
        (Part(width, dropout, name=f"f_{i}"), Part(width, dropout, name=f"g_{i}"))
        for i in range(depth)
    ]
    return Stack(pairs, name="stack", **kwargs)


def reversible_model(reversible=False, dropout=0.5, depth=3, name="toy_reversible"):
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    stack = make_stack(8, depth, dropout)
    halves = (layers.Embedding(11, 8, name=f"embedding_{i}")(tokens) for i in range(2))
    x = layers.Concatenate(name="joined")(list(stack(*halves)))
    x = layers.Dense(11, name="logits", dtype="float32")(x)
    if reversible:
        apply_reversible(stack)
    return keras.Model(tokens, x, name=name)


registry.register("toy_reversible", reversible_model, "toy_token")


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
def test_training_with_dropout_equals_a_plain_stack(trainer, run):
    def train(reversible):
        arguments = {"reversible": reversible}
        config = toys.recipe("toy_reversible", model_arguments=arguments, **trainer)
        return run(config, toys.token_data()).step.net

    assert toys.difference(train(False), train(True)) <= 1e-6


def twins(make):
    """Returns a plain and a reversible stack of `make()` with equal weights and seeds."""
    stacks = []
    for _ in range(2):
        keras.utils.set_random_seed(0)
        stacks.append(make())
        if not stacks[-1].built:
            stacks[-1].build((4, 8))
    apply_reversible(stacks[1])
    return stacks


def halves(dtype="float32"):
    generator = np.random.default_rng(1)
    return [tf.constant(generator.normal(size=(4, 8)), dtype) for _ in range(2)]


def gradients(stack, inputs, *args, **kwargs):
    """Returns both outputs and the gradients of inputs, variables and floating arguments."""
    sources = [*inputs, *(x for x in (*args, *kwargs.values()) if x.dtype.is_floating)]
    sources += [v.value for v in stack.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        first, second = stack(*inputs, *args, training=True, **kwargs)
        slopes = (tf.reshape(tf.sin(1.7 * tf.range(32.0) + i), (4, 8)) for i in range(2))
        loss = sum(
            tf.reduce_sum(tf.cast(y, "float32") * slope)
            for y, slope in zip((first, second), slopes, strict=True)
        )
    return [first, second, *tape.gradient(loss, sources)]


def assert_equal(ours, theirs, tolerance=1e-6):
    """Compares each array relative to its largest element."""
    for a, b in zip(ours, theirs, strict=True):
        a, b = (np.asarray(tf.convert_to_tensor(x), "float64") for x in (a, b))
        assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_reach_inputs_variables_and_arguments(dropout, graph):
    """The first part gets a bias with a gradient, and an integer scale."""
    plain, reversible = twins(lambda: make_stack(dropout=dropout))
    bias, scale = tf.constant(np.linspace(-1, 1, 8), "float32"), tf.constant([2] * 8)
    results = []
    for stack in (plain, reversible):
        function = lambda *x, s=stack: gradients(s, x[:2], x[2], scale=x[3])  # noqa: E731
        function = tf.function(function, autograph=False) if graph else function
        results.append(function(*halves(), bias, scale))
        again = function(*halves(), bias, scale)
        # Seeds advance with each call.
        assert (np.abs(results[-1][0] - again[0]).max() > 0) == (dropout > 0)
        results[-1] += again
    assert_equal(*results)


def test_each_part_is_computed_twice():
    stack, counts = twins(make_stack)[1], []
    for part in stack.parts:
        plain_call = part.call
        part.call = lambda *args, n=part.name, c=plain_call: counts.append(n) or c(*args)
    gradients(stack, halves())
    forward = [part.name for part in stack.parts]
    assert counts == forward + forward[::-1]


def test_a_part_in_two_pairs():
    def make():
        f, g = Part(8, 0.5, name="f"), Part(8, 0.5, name="g")
        return Stack([(f, g), (f, g), (g, f)], name="stack")

    plain, reversible = twins(make)
    assert_equal(gradients(reversible, halves()), gradients(plain, halves()))


def test_batch_normalization_moves_once():
    def make():
        parts = [layers.BatchNormalization(name=f"norm_{i}") for i in range(4)]
        return Stack([parts[:2], parts[2:]], name="stack")

    plain, reversible = twins(make)
    assert_equal(gradients(reversible, halves()), gradients(plain, halves()), 1e-5)
    moved = [v.numpy() for v in plain.non_trainable_variables]
    assert all(np.abs(x - (x == 1)).max() > 0 for x in moved)
    assert_equal([v.value for v in reversible.non_trainable_variables], moved)


def test_unused_and_frozen_variables():
    plain, reversible = twins(make_stack)
    for stack in (plain, reversible):
        unused = stack.parts[0].up.add_weight(shape=(2,), name="unused")
        stack.parts[1].down.trainable = False
        results = gradients(stack, halves())
        position = [v is unused for v in stack.trainable_variables].index(True)
        assert results.pop(4 + position) is None
        assert all(x is not None for x in results)


def test_mixed_precision_with_float32_halves():
    with precision("mixed_bfloat16"):
        plain, reversible = twins(lambda: make_stack(dropout=0.5, autocast=False))
    ours, theirs = gradients(reversible, halves()), gradients(plain, halves())
    assert ours[0].dtype == ours[2].dtype == "float32"
    assert_equal(ours, theirs, 1e-2)


def test_without_gradient_and_training():
    plain, reversible = twins(lambda: make_stack(dropout=0.5))
    ours, theirs = reversible(*halves()), plain(*halves())
    assert_equal(ours, theirs)
    assert_equal(reversible(*halves(), training=False), ours)


def test_layers_that_add_losses_are_named():
    stack = twins(make_stack)[1]
    stack.parts[1].up.activity_regularizer = keras.regularizers.L2(0.1)
    with pytest.raises(UsageError, match=r"call add_loss. Received: 'g_0' in 'stack'"):
        stack(*halves(), training=True)


def test_a_layer_without_pairs_is_named():
    with pytest.raises(UsageError, match=r"list `pairs`.* Received: 'dense' with pairs=None"):
        apply_reversible(layers.Dense(2, name="dense"))


@pytest.mark.slow
def test_peak_memory_hardly_grows_with_the_depth():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reversible_memory"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = {(row["case"], row["pairs"]): row for row in json.loads(done.stdout.splitlines()[-1])}
    few, many = rows["reversible", 4], rows["reversible", 8]
    assert (many["peak_mib"] - few["peak_mib"]) / 4 < 0.05 * many["peak_mib"]
    assert many["peak_mib"] < 0.5 * rows["plain", 8]["peak_mib"]
