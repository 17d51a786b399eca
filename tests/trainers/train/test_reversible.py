"""Reversible stacks give the gradients of plain stacks with less memory."""

import contextlib
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from benchmarks.update_cost import RETURN_MEMORY
from tests import toys
from trainers.train.recompute.reversible import apply_reversible
from zoo import registry
from zoo.errors import UsageError
from zoo.layers.dropout import Dropout


@contextlib.contextmanager
def policy(name):
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    yield
    keras.config.set_dtype_policy(former)


class Part(layers.Layer):
    """Normalization, dense layers and dropout, with an optional bias and scale of the input."""

    def __init__(self, width, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization(name="norm")
        self.up = layers.Dense(2 * width, activation="gelu", name="up")
        self.dropout = Dropout(dropout, name="dropout")
        self.down = layers.Dense(width, name="down")

    def build(self, shape):
        self.norm.build(shape)
        self.up.build(shape)
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
            if not part.built:
                part.build(first_shape)

    def call(self, first, second, *args, training=None, **kwargs):
        return self.run_pairs(first, second, *args, **kwargs)

    def run_pairs(self, first, second, *args, **kwargs):
        for f, g in self.pairs:
            first = first + tf.cast(f(second, *args, **kwargs), first.dtype)
            second = second + tf.cast(g(first), second.dtype)
        return first, second


class ToyStack(Stack):
    def __init__(self, width=8, depth=3, dropout=0.0, **kwargs):
        pairs = [
            (Part(width, dropout, name=f"f_{i}"), Part(width, dropout, name=f"g_{i}"))
            for i in range(depth)
        ]
        super().__init__(pairs, name="stack", **kwargs)


def reversible_model(reversible=False, name="toy_reversible"):
    with policy("float64"):  # in float32, ten updates multiply the rounding to 1e-4
        tokens = keras.Input((6,), dtype="int32", name="tokens")
        stack = ToyStack(depth=1, dropout=0.5)
        halves = (layers.Embedding(11, 8, name=f"embedding_{i}")(tokens) for i in range(2))
        x = layers.Concatenate(name="joined")(list(stack(*halves)))
        x = layers.Dense(11, name="logits")(x)
        if reversible:
            apply_reversible(stack)
        return keras.Model(tokens, x, name=name)


registry.register("toy_reversible", reversible_model, "toy_token")


@pytest.mark.parametrize(
    "trainer",
    [
        {"strategy": "mirrored", "replicas": 2},
        {"jit_compile": True},
    ],
    ids=["replicas", "xla"],
)
def test_training_with_dropout_equals_a_plain_stack(trainer, run):
    def train(reversible):
        arguments = {"reversible": reversible}
        config = toys.recipe(
            "toy_reversible", model_arguments=arguments, micro_batch_size=4, **trainer
        )
        return run(config, toys.token_data()).step.net

    assert toys.difference(train(False), train(True)) <= 1e-9


def twins(make, dtype="float64"):
    """Returns a plain and a reversible stack of `make()` with equal weights and seeds."""
    stacks = []
    with policy(dtype):
        for _ in range(2):
            keras.utils.set_random_seed(0)
            stacks.append(make())
            stacks[-1].build((4, 8))
    apply_reversible(stacks[1])
    return stacks


def halves(dtype="float64"):
    generator = np.random.default_rng(1)
    return [tf.constant(generator.normal(size=(4, 8)), dtype) for _ in range(2)]


def gradients(stack, inputs, *args, **kwargs):
    """Returns both outputs and the gradients of inputs, floating arguments and variables."""
    sources = [*inputs, *(x for x in (*args, *kwargs.values()) if x.dtype.is_floating)]
    sources += [v.value for v in stack.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        first, second = stack(*inputs, *args, training=True, **kwargs)
        loss = tf.reduce_sum(tf.sin(first) + tf.cos(second))
    return [first, second, *tape.gradient(loss, sources)]


def assert_equal(ours, theirs, tolerance=1e-12):
    """Compares each array relative to its largest element."""
    for a, b in zip(ours, theirs, strict=True):
        a, b = (np.asarray(tf.convert_to_tensor(x), "float64") for x in (a, b))
        assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_reach_inputs_variables_and_arguments(dropout, graph):
    """The first part gets a bias with a gradient, and an integer scale."""
    plain, reversible = twins(lambda: ToyStack(dropout=dropout))
    bias, scale = tf.constant(np.linspace(-1, 1, 8), "float64"), tf.constant([2] * 8)
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
    stack, counts = twins(ToyStack)[1], []
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
    assert_equal(gradients(reversible, halves()), gradients(plain, halves()))
    moved = [v.numpy() for v in plain.non_trainable_variables]
    assert all(np.abs(x - (x == 1)).max() > 0 for x in moved)
    assert_equal([v.value for v in reversible.non_trainable_variables], moved)


def test_frozen_weights_keep_their_bits_in_mixed_precision():
    """A float32 part in a bfloat16 stack reads its frozen weights in float32."""

    def make():
        parts = [Part(8, name=name, dtype="float32", trainable=False) for name in "fg"]
        for part in parts:
            part.down = layers.Dense(8, dtype="float32", trainable=False)
        return Stack([parts], name="stack")

    plain, reversible = twins(make, "mixed_bfloat16")
    inputs = halves("bfloat16")
    assert_equal(reversible(*inputs), plain(*inputs))


def test_unused_and_frozen_variables():
    class Wasteful(Part):
        def build(self, shape):
            super().build(shape)
            self.unused = self.add_weight(shape=(2,), name="unused")

    def make():
        f, g = Wasteful(8, name="f"), Part(8, name="g")
        g.up.trainable = False
        return Stack([(f, g)], name="stack")

    plain, reversible = twins(make)
    results = []
    for stack in (plain, reversible):
        results.append(gradients(stack, halves()))
        unused = [v.name == "unused" for v in stack.trainable_variables].index(True)
        assert results[-1].pop(4 + unused) is None
    assert_equal(*results)


def test_variables_that_a_part_borrows_get_gradients():
    """A part may use variables that Keras does not list among its own, such as tied weights."""
    borrowed = tf.Variable(np.linspace(-1, 1, 8), dtype="float64")

    class Borrower(Part):
        def call(self, x):
            return super().call(x * borrowed)

    stacks = twins(lambda: Stack([(Borrower(8, name="f"), Part(8, name="g"))]))
    results = []
    for stack in stacks:
        with tf.GradientTape() as tape:
            first, second = stack(*halves())
            loss = tf.reduce_sum(tf.sin(first) + tf.cos(second))
        results.append([tape.gradient(loss, borrowed)])
    assert_equal(*results)


def test_mixed_precision_with_float32_halves():
    make = lambda: ToyStack(dropout=0.5, autocast=False)  # noqa: E731
    plain, reversible = twins(make, "mixed_bfloat16")
    inputs = halves("float32")
    ours, theirs = gradients(reversible, inputs), gradients(plain, inputs)
    assert ours[0].dtype == ours[2].dtype == "float32"
    assert_equal(ours, theirs, 1e-2)


def test_without_gradient_and_training():
    plain, reversible = twins(lambda: ToyStack(dropout=0.5))
    ours, theirs = reversible(*halves()), plain(*halves())
    assert_equal(ours, theirs)
    assert_equal(reversible(*halves(), training=False), ours)


def test_layers_that_add_losses_are_named():
    stack = twins(ToyStack)[1]
    stack.parts[1].up.activity_regularizer = keras.regularizers.L2(0.1)
    with pytest.raises(UsageError, match=r"call add_loss. Received: 'g_0' in 'stack'"):
        stack(*halves(), training=True)


def test_a_layer_without_pairs_is_named():
    with pytest.raises(UsageError, match=r"list `pairs`.* Received: 'dense' with pairs=None"):
        apply_reversible(layers.Dense(2, name="dense"))


def peak_mib(case, pairs):
    """Returns by how much an update of a case raises the memory of a process."""
    command = [sys.executable, "-m", "benchmarks.reversible_memory"]
    # Many rows and small weights, whose gradients grow with the depth.
    command += [f"--case={case}", f"--pairs={pairs}", "--width=128", "--rows=8192"]
    env = {**os.environ, **RETURN_MEMORY}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_peak_memory_hardly_grows_with_the_depth():
    few, many = peak_mib("reversible", 4), peak_mib("reversible", 8)
    assert (many - few) / 4 < 0.05 * many
    assert many < 0.5 * peak_mib("plain", 8)
