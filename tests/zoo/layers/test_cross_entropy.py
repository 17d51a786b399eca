"""The chunked loss and its gradients equal Keras', with less memory."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tests import toys
from zoo.layers.cross_entropy import linear_cross_entropy

N, C, V = 14, 6, 11


def problem(dtype="float32", bias=True):
    generator = np.random.default_rng(0)
    hidden = tf.constant(generator.normal(size=(N, C)), dtype)
    kernel = tf.constant(generator.normal(size=(V, C)), dtype)
    bias = tf.constant(generator.normal(size=V), dtype) if bias else None
    targets = tf.constant(generator.integers(0, V, N), tf.int32)
    weights = tf.constant(generator.integers(0, 3, N), tf.float32)
    return hidden, kernel, bias, targets, weights


def gradients(function, hidden, kernel, bias):
    sources = [x for x in (hidden, kernel, bias) if x is not None]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        loss, *rest = function()
        scaled = 0.37 * loss  # a factor after the forward pass
    return loss, rest, tape.gradient(scaled, sources)


@pytest.mark.parametrize("chunk", [0, 1, 5, 7, 14, 100])
@pytest.mark.parametrize("bias_given", [True, False])
def test_equals_keras(chunk, bias_given):
    hidden, kernel, bias, targets, weights = problem(bias=bias_given)

    def ours():
        return linear_cross_entropy(hidden, kernel, bias, targets, weights, chunk)

    def theirs():
        logits = ops.matmul(hidden, ops.transpose(kernel)) + (0.0 if bias is None else bias)
        losses = ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)
        right = ops.cast(ops.argmax(logits, -1) == targets, "float32")
        return ops.sum(losses * weights), losses, right

    a, b = gradients(ours, hidden, kernel, bias), gradients(theirs, hidden, kernel, bias)
    for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_without_gradients_it_is_the_same_loss():
    hidden, kernel, bias, targets, weights = problem()
    with_them = linear_cross_entropy(hidden, kernel, bias, targets, weights, 5)
    without = linear_cross_entropy(hidden, kernel, bias, targets, weights, 5, gradients=False)
    for x, y in zip(with_them, without, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def test_of_equally_probable_tokens_one_is_right():
    hidden, kernel = tf.zeros((6, 4)), tf.ones((3, 4))
    targets = tf.constant([0, 1, 2, 0, 1, 2])
    for chunk in (0, 4):
        result = linear_cross_entropy(
            hidden, kernel, None, targets, tf.ones(6), chunk, gradients=False
        )
        np.testing.assert_array_equal(result[2], [1, 0, 0, 1, 0, 0])


def test_large_logits_stay_finite():
    hidden, kernel, bias, targets, weights = problem()
    loss, _, slopes = gradients(
        lambda: linear_cross_entropy(1e4 * hidden, kernel, bias, targets, weights, 5),
        hidden, kernel, bias,
    )  # fmt: skip
    assert all(np.isfinite(x).all() for x in [loss, *slopes])


def test_in_bfloat16_the_sums_are_float32():
    wide, narrow = problem(), problem("bfloat16")
    a = gradients(lambda: linear_cross_entropy(*wide, 5), *wide[:3])
    b = gradients(lambda: linear_cross_entropy(*narrow, 5), *narrow[:3])
    assert b[0].dtype == tf.float32
    np.testing.assert_allclose(a[0], b[0], rtol=0.02)
    for x, y in zip(a[2], b[2], strict=True):
        assert y.dtype == tf.bfloat16
        np.testing.assert_allclose(x, tf.cast(y, tf.float32), rtol=0.1, atol=0.2)


def test_in_float16_a_large_vocabulary_gives_finite_gradients():
    """The total exceeds the largest float16."""
    generator = np.random.default_rng(0)
    hidden = tf.Variable(generator.normal(size=(3, 4)).astype("float16"))
    kernel = tf.Variable(0.1 * generator.normal(size=(70_000, 4)).astype("float16"))
    targets, weights = tf.constant([1, 2, 3]), tf.ones(3)

    def computed(dtype):
        x, y = tf.cast(hidden, dtype), tf.cast(kernel, dtype)
        with tf.GradientTape() as tape:
            tape.watch((x, y))
            loss = linear_cross_entropy(x, y, None, targets, weights, 2)[0]
        return [loss, *tape.gradient(loss, (x, y))]

    for a, b in zip(computed("float16"), computed("float32"), strict=True):
        np.testing.assert_allclose(tf.cast(a, tf.float32), b, rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("row", ["gpt_nano", "lstm_generator"])
def test_a_training_with_chunks_is_the_same(run, row):
    from zoo import registry

    tiny = registry.entry(row).tiny
    data = toys.Dataset(
        "text",
        {"train": registry.build_task("clm").synthetic(registry.build(row, **tiny), 40, 0)},
        (), "text",
    )  # fmt: skip

    def train(chunk):
        arguments = {"chunk": chunk, "cross_documents": False}
        config = toys.recipe(
            row, "clm", model_arguments=dict(tiny), task_arguments=arguments, steps=4
        )
        return run(config, data)

    whole, chunked = train(0), train(50)
    assert toys.difference(whole.step.net, chunked.step.net) < 1e-5


MEMORY = """
import sys
import numpy as np, tensorflow as tf
from benchmarks.update_cost import resident
from keras import ops
from zoo.layers.cross_entropy import linear_cross_entropy
chunk = int(sys.argv[1])

def step(positions, vocabulary):
    hidden, kernel = tf.Variable(tf.ones((positions, 16))), tf.Variable(tf.ones((vocabulary, 16)))
    targets, weights = tf.zeros(positions, tf.int32), tf.ones(positions)

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            result = linear_cross_entropy(
                hidden.value(), kernel.value(), None, targets, weights, chunk
            )
        return tape.gradient(result[0], [hidden, kernel])

    gradients()

step(4096, 64)  # memory of TensorFlow and of a graph of this size
before = resident("VmHWM")
step(4096, 16384)
print(int(resident("VmHWM") - before))
"""


@pytest.mark.slow
def test_peak_memory_falls():
    """The logits of all positions take 256 MiB in float32, those of a chunk 8 MiB."""

    def peak(chunk):
        command = [sys.executable, "-c", MEMORY, str(chunk)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    whole, chunked = peak(0), peak(128)
    print(f"peak above start: {whole} MiB whole, {chunked} MiB in chunks")
    assert whole > 256  # otherwise nothing was measured
    assert chunked < 0.35 * whole
