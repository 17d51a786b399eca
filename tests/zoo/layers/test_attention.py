"""Attention equals its reference, and masks positions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo.layers.attention_forms.plain import MASKED, attend, mask_bias, reference_attend
from zoo.layers.positions import rotate
from zoo.layers.transformer import TransformerBlock
from zoo.layers.xla import write_rows


def random(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype("float32"))


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("sources", [5, 7])
def test_equals_its_twin_and_so_do_its_gradients(groups, sources):
    inputs = random(2, 5, 4, 6), random(2, sources, groups, 6, seed=1)
    inputs = *inputs, random(2, sources, groups, 6, seed=2)
    allowed = np.random.default_rng(3).random((2, 1, 5, sources)) < 0.6
    bias = tf.constant(np.where(allowed, 0.0, MASKED).astype("float32"))
    results = []
    for function in (attend, reference_attend):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            out = function(*inputs, bias)
            loss = tf.reduce_sum(out**3)
        results.append((out, tape.gradient(loss, inputs)))
    for a, b in zip(tf.nest.flatten(results[0]), tf.nest.flatten(results[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_equals_keras():
    query, key, value = (random(2, 5, 4, 6, seed=i) for i in range(3))
    ours = attend(query, key, value, mask_bias(tf.ones((2, 5), tf.int32), causal=True))
    theirs = keras.ops.dot_product_attention(query, key, value, is_causal=True)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_mask_keeps_to_the_segment_and_to_the_past():
    segments = tf.constant([[1, 1, 2, 2, 0, 0]])
    both = mask_bias(segments)[0, 0].numpy() == 0
    assert both[0].tolist() == [True, True, False, False, False, False]
    assert both[3].tolist() == [False, False, True, True, False, False]
    causal = mask_bias(segments, causal=True)[0, 0].numpy() == 0
    assert (causal == (both & np.tri(6, dtype=bool))).all()
    # Segments of queries and keys differ, as in an encoder-decoder.
    cross = mask_bias(tf.constant([[1, 1]]), segments)[0, 0].numpy() == 0
    assert cross.tolist() == [[True, True, False, False, False, False]] * 2


def test_rotation_is_that_of_the_equation():
    """RoFormer's equation 34, pair by pair, with the pairs (i, i + D/2)."""
    x, base = random(1, 3, 1, 8).numpy(), 100.0
    expected = np.zeros_like(x)
    for position in range(3):
        for i in range(4):
            angle = (position + 5) * base ** (-2 * i / 8)
            a, b = x[0, position, 0, i], x[0, position, 0, i + 4]
            expected[0, position, 0, i] = a * np.cos(angle) - b * np.sin(angle)
            expected[0, position, 0, i + 4] = b * np.cos(angle) + a * np.sin(angle)
    np.testing.assert_allclose(rotate(x, 5 + np.arange(3), base), expected, atol=1e-6)


def test_rotated_scores_depend_on_distance_alone():
    query, key = random(1, 1, 2, 8), random(1, 1, 2, 8, seed=1)

    def score(at, to):
        return np.sum(rotate(query, np.array([at])) * rotate(key, np.array([to])), -1)

    np.testing.assert_allclose(score(9, 4), score(105, 100), rtol=1e-4)
    assert np.abs(score(9, 4) - score(9, 5)).max() > 1e-3


@pytest.mark.parametrize("settings", [{}, {"rotary_base": 100.0, "num_key_value_heads": 2}])
def test_block_sees_nothing_of_later_positions_nor_other_documents(settings):
    block = TransformerBlock(8, 4, 16, initializer_range=0.5, **settings)
    segments = tf.constant([[1, 1, 1, 2, 2, 2]])
    x = random(1, 6, 8).numpy()
    changed = x.copy()
    changed[0, 4, 0] += 1.0
    bias = mask_bias(segments, causal=True)
    gap = np.abs(block(x, bias) - block(changed, bias)).max(-1)[0]
    assert (gap > 1e-4).tolist() == [False, False, False, False, True, True]
    changed = x.copy()
    changed[0, 1, 0] += 1.0
    gap = np.abs(block(x, bias) - block(changed, bias)).max(-1)[0]
    assert (gap > 1e-4).tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_heads": 3}, "hidden_dim must be a multiple of num_heads"),
        ({"num_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"num_heads": 4, "activation": "tanh"}, "gelu_tanh"),
        ({"num_heads": 4, "norm": "batch"}, "norm must be one of layer, rms"),
    ],
)
def test_wrong_sizes_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        TransformerBlock(8, intermediate_dim=16, **arguments)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("count", "first"), [(1, 0), (1, 5), (3, 2), (6, 0)])
def test_rows_are_replaced_without_xla_too(count, first, jit, xla, monkeypatch):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(2, 6, 3)).astype("float32")
    new = generator.normal(size=(2, count, 3)).astype("float32")
    right = rows.copy()
    right[:, first : first + count] = new
    for compiles in (True, False):
        monkeypatch.setattr("zoo.layers.xla.compiles", lambda compiles=compiles: compiles)
        write = tf.function(write_rows, jit_compile=jit, autograph=False)
        actual = write(tf.constant(rows), tf.constant(new), tf.constant(first))
        np.testing.assert_array_equal(actual, right)
