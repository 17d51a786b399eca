"""Chunked attention equals plain attention, in outputs and gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.zoo.layers.attention_forms.arrays import assert_equal, random, with_gradients
from zoo.layers.attention_forms.chunked import attend_chunked
from zoo.layers.attention_forms.plain import attend, mask_bias, reference_attend

PACKED = np.array([[1] * 4 + [2] * 5 + [0] * 2, [3] * 11], "int32")


def inputs(batch=2, length=11, sources=11, heads=4, groups=2, size=5):
    return (
        random(batch, length, heads, size),
        random(batch, sources, groups, size, seed=1),
        random(batch, sources, groups, size, seed=2),
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("chunk", [3, 11, 50])
def test_equals_plain_attention(causal, groups, chunk):
    arrays = inputs(groups=groups)
    bias = mask_bias(tf.constant(PACKED), causal=causal)
    ours = with_gradients(
        lambda *x: attend_chunked(*x, tf.constant(PACKED), causal=causal, chunk=chunk), arrays
    )
    assert_equal(ours, with_gradients(lambda *x: reference_attend(*x, bias), arrays))


@pytest.mark.parametrize("causal", [False, True])
def test_works_without_segments(causal):
    arrays = inputs(batch=1)
    bias = mask_bias(tf.ones((1, 11), tf.int32), causal=causal)
    ours = with_gradients(lambda *x: attend_chunked(*x, causal=causal, chunk=4), arrays)
    assert_equal(ours, with_gradients(lambda *x: reference_attend(*x, bias), arrays))


@pytest.mark.parametrize("length", [1, 7])
def test_cross_attention(length):
    """A query whose document has no keys equals plain attention too, up to the large mask."""
    arrays = inputs(length=length)
    rows = tf.constant([[1] * length, [2] * length])
    columns = tf.constant(np.where(PACKED == 3, 2, PACKED))
    ours = with_gradients(lambda *x: attend_chunked(*x, rows, columns, chunk=3), arrays)
    bias = mask_bias(rows, columns)
    assert_equal(ours, with_gradients(lambda *x: reference_attend(*x, bias), arrays))


@pytest.mark.parametrize("causal", [False, True])
def test_unknown_batch_and_length(causal):
    arrays = inputs()
    specs = [tf.TensorSpec((None, None, *x.shape[2:]), x.dtype) for x in arrays]

    @tf.function(autograph=False, input_signature=[*specs, tf.TensorSpec((None, None), tf.int32)])
    def run(query, key, value, segments):
        return with_gradients(
            lambda *x: attend_chunked(*x, segments, causal=causal, chunk=4), (query, key, value)
        )

    bias = mask_bias(tf.constant(PACKED), causal=causal)
    theirs = with_gradients(lambda *x: reference_attend(*x, bias), arrays)
    assert_equal(run(*arrays, tf.constant(PACKED)), theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiles_and_keeps_the_dtype(dtype, xla):
    arrays = tuple(tf.cast(x, dtype) for x in inputs())
    bias = mask_bias(tf.constant(PACKED), causal=True)

    @tf.function(autograph=False, jit_compile=True)
    def run(*arrays):
        return with_gradients(
            lambda *x: attend_chunked(*x, tf.constant(PACKED), causal=True, chunk=4), arrays
        )

    ours = run(*arrays)
    assert {x.dtype.name for x in ours} == {dtype}
    if dtype == "float32":
        assert_equal(ours, with_gradients(lambda *x: attend(*x, bias), arrays))
    else:
        exact = tuple(tf.cast(x, "float32") for x in arrays)
        theirs = with_gradients(lambda *x: attend(*x, bias), exact)
        for a, b in zip(ours, theirs, strict=True):
            assert np.abs(tf.cast(a, "float32") - b).max() < 0.05 * np.abs(b).max()


def test_no_scores_of_all_pairs():
    """No tensor of the forward or backward pass has T * S elements."""
    arrays = inputs(batch=1, length=64, sources=64, heads=2, groups=2)

    @tf.function(autograph=False)
    def run(*arrays):
        return with_gradients(lambda *x: attend_chunked(*x, tf.ones((1, 64)), chunk=4), arrays)

    graph = run.get_concrete_function(*arrays).graph
    sizes = [x.shape.num_elements() for op in graph.get_operations() for x in op.outputs]
    assert max(size for size in sizes if size) < 64 * 64


@pytest.mark.parametrize("unknown", [False, True])
def test_dropout_has_the_gradient_of_its_own_mask(unknown):
    """The value's gradient is linear: its product with the value gives the output again."""
    arrays, seed = inputs(), keras.random.SeedGenerator(1).next()

    def run(query, key, value):
        return attend_chunked(query, key, value, causal=True, chunk=4, rate=0.5, seed=seed)

    spec = [tf.TensorSpec((None, None, *x.shape[2:])) for x in arrays]
    run = tf.function(run, autograph=False, input_signature=spec if unknown else None)
    slope = random(*arrays[0].shape, seed=5)
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        loss = tf.reduce_sum(run(*arrays) * slope)
    gradients = tape.gradient(loss, arrays)
    np.testing.assert_allclose(loss, tf.reduce_sum(gradients[2] * arrays[2]), rtol=1e-4)
    for i in range(2):  # central differences along a random direction
        step = 1e-2 * random(*arrays[i].shape, seed=6)
        ends = []
        for sign in (1, -1):
            moved = [x + sign * step if j == i else x for j, x in enumerate(arrays)]
            ends.append(tf.reduce_sum(run(*moved) * slope))
        expected = tf.reduce_sum(gradients[i] * step)
        np.testing.assert_allclose((ends[0] - ends[1]) / 2, expected, rtol=2e-2, atol=1e-3)


def test_dropout_keeps_the_mean():
    arrays = inputs(batch=1)
    plain = attend_chunked(*arrays, chunk=4)
    seeds = keras.random.SeedGenerator(2)
    run = tf.function(
        lambda seed: attend_chunked(*arrays, chunk=4, rate=0.25, seed=seed), autograph=False
    )
    outs = [run(seeds.next()) for _ in range(300)]
    assert np.std(outs, 0).mean() > 0.1
    np.testing.assert_allclose(np.mean(outs, 0), plain, atol=0.15)
    again = keras.random.SeedGenerator(2).next()
    np.testing.assert_array_equal(run(again), outs[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"chunk": 0}, "chunk must be positive"),
        ({"rate": 1.0}, "rate must be in"),
        ({"rate": 0.1}, "seed must be given"),
        ({"causal": True, "segments": PACKED, "segments_key": PACKED}, "causal must be False"),
        ({"segments_key": PACKED}, "segments must be given"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        attend_chunked(*inputs(), **arguments)


def test_wrong_heads_are_named():
    with pytest.raises(ValueError, match="Received: 4 and 3"):
        attend_chunked(*inputs(groups=3))
