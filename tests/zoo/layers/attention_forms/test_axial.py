"""Axial attention equals plain attention over the whole grid with a mask of the axis."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.zoo.layers.attention_forms.arrays import assert_equal, random, with_gradients
from zoo.layers.attention_forms.axial import (
    attend_axis,
    attend_feature_groups,
    attend_grid,
)
from zoo.layers.attention_forms.plain import MASKED, reference_attend

ROWS, COLUMNS = 3, 5
SEGMENTS = np.array(
    [
        [[1, 1, 2, 2, 0], [1, 2, 2, 2, 0], [3, 3, 3, 0, 0]],
        [[4] * 5, [4] * 5, [0] * 5],
        [[0] * 5] * 3,
    ],
    "int32",
)


def inputs(batch=3, heads=4, groups=2, size=5):
    return (
        random(batch, ROWS, COLUMNS, heads, size),
        random(batch, ROWS, COLUMNS, groups, size, seed=1),
        random(batch, ROWS, COLUMNS, groups, size, seed=2),
    )


def twin(query, key, value, axis, segments=None, causal=False):
    """Applies attention to all positions of the grid, with a mask that leaves only the axis."""
    batch, rows, columns = query.shape[:3]
    place = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1)
    place = place.reshape(-1, 2)
    along, across = place[:, axis - 1], place[:, 2 - axis]
    visible = across[:, None] == across
    if causal:
        visible &= along <= along[:, None]
    visible = np.broadcast_to(visible, (batch, *visible.shape))
    if segments is not None:
        segments = segments.reshape(batch, -1)
        visible = visible & (segments[:, :, None] == segments[:, None])
    bias = np.where(visible, 0.0, MASKED).astype("float32")[:, None]
    flat = (tf.reshape(x, (batch, rows * columns, *x.shape[3:])) for x in (query, key, value))
    return tf.reshape(reference_attend(*flat, bias), query.shape)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one_document", "packed"])
def test_equals_masked_attention(axis, causal, groups, segments):
    arrays = inputs(groups=groups)
    ours = with_gradients(lambda *x: attend_axis(*x, axis, segments, causal), arrays)
    assert_equal(ours, with_gradients(lambda *x: twin(*x, axis, segments, causal), arrays))


@pytest.mark.parametrize("axis", [1, 2])
def test_unknown_batch_rows_and_columns(axis):
    arrays = inputs(batch=1)
    specs = [tf.TensorSpec((None, None, None, *x.shape[3:])) for x in arrays]
    run = tf.function(
        lambda *x: with_gradients(lambda *y: attend_axis(*y, axis, causal=True), x),
        autograph=False, input_signature=specs,
    )  # fmt: skip
    assert_equal(run(*arrays), with_gradients(lambda *x: twin(*x, axis, causal=True), arrays))


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiles_and_keeps_the_dtype(axis, dtype, xla):
    arrays = tuple(tf.cast(x, dtype) for x in inputs())
    run = tf.function(
        lambda *x: with_gradients(lambda *y: attend_axis(*y, axis, SEGMENTS, True), x),
        autograph=False, jit_compile=True,
    )  # fmt: skip
    ours = run(*arrays)
    assert {x.dtype.name for x in ours} == {dtype}
    exact = tuple(tf.cast(x, "float32") for x in arrays)
    theirs = with_gradients(lambda *x: twin(*x, axis, SEGMENTS, True), exact)
    if dtype == "float32":
        assert_equal(ours, theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(tf.cast(a, "float32") - b).max() < 0.05 * np.abs(b).max()


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("is_static", [False, True])
@pytest.mark.parametrize("length", [ROWS * COLUMNS, ROWS * COLUMNS - 2])
def test_a_sequence_equals_its_grid(axis, causal, is_static, length):
    """Also if the last row is short: its gap is seen by no position."""
    arrays = tuple(tf.reshape(x, (3, ROWS * COLUMNS, *x.shape[3:])) for x in inputs())
    arrays = tuple(x[:, :length] for x in arrays)
    specs = [tf.TensorSpec(x.shape if is_static else (None, None, *x.shape[2:])) for x in arrays]
    run = tf.function(
        lambda *x: with_gradients(lambda *y: attend_grid(*y, COLUMNS, axis, causal=causal), x),
        autograph=False, input_signature=specs,
    )  # fmt: skip

    def grid(*arrays):
        gap = ((0, 0), (0, ROWS * COLUMNS - length), (0, 0), (0, 0))
        folded = (tf.reshape(tf.pad(x, gap), (3, ROWS, COLUMNS, *x.shape[2:])) for x in arrays)
        is_filled = np.arange(ROWS * COLUMNS).reshape(1, ROWS, COLUMNS) < length
        segments = np.repeat(is_filled.astype("int32"), 3, axis=0)
        out = twin(*folded, axis, segments, causal)
        return tf.reshape(out, (3, ROWS * COLUMNS, *out.shape[3:]))[:, :length]

    assert_equal(run(*arrays), with_gradients(grid, arrays))


def test_feature_groups_equal_their_definition():
    arrays = tuple(random(2, 3, 12, seed=seed) for seed in range(3))

    def definition(query, key, value):
        rows = []
        for b, t in np.ndindex(2, 3):
            parts = (tf.reshape(x[b, t], (1, 3, 2, 2)) for x in (query, key, value))
            rows.append(tf.reshape(reference_attend(*parts), (12,)))
        return tf.reshape(tf.stack(rows), (2, 3, 12))

    ours = with_gradients(lambda *x: attend_feature_groups(*x, 3, heads=2), arrays)
    assert_equal(ours, with_gradients(definition, arrays))


def test_factorized_attention_mixes_positions_only_along_the_positions():
    x = random(1, 4, 6)

    def changed(function):
        one = np.zeros((1, 4, 6), "float32")
        one[0, 2] = 1.0
        return np.abs(function(x + one) - function(x)).max((0, 2)) > 0

    grouped = changed(lambda x: attend_feature_groups(x, x, x, 3))
    np.testing.assert_array_equal(grouped, [False, False, True, False])
    along = changed(lambda x: attend_axis(*[x[..., None, None]] * 3, axis=1)[..., 0, 0])
    np.testing.assert_array_equal(along, [True] * 4)


@pytest.mark.parametrize("static", [False, True])
def test_dropout_keeps_the_mean_and_repeats(static):
    arrays, seeds = inputs(batch=1), keras.random.SeedGenerator(2)
    plain = attend_axis(*arrays, 2)
    specs = [tf.TensorSpec(x.shape if static else (None, None, None, *x.shape[3:])) for x in arrays]
    run = tf.function(
        lambda *x: attend_axis(*x[:3], 2, rate=0.25, seed=x[3]),
        autograph=False, input_signature=[*specs, tf.TensorSpec((2,), seeds.next().dtype)],
    )  # fmt: skip
    outs = [run(*arrays, seeds.next()) for _ in range(300)]
    assert np.std(outs, 0).mean() > 0.1
    assert np.abs(np.mean(outs, 0) - plain).max() < 6 * np.std(outs, 0).max() / 300**0.5
    again = keras.random.SeedGenerator(2)
    again.next()
    np.testing.assert_array_equal(run(*arrays, again.next()), outs[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"axis": 0}, "axis must be 1"),
        ({"axis": 1, "rate": 1.0}, "rate must be in"),
        ({"axis": 1, "rate": 0.1}, "seed must be given"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        attend_axis(*inputs(), **arguments)


def test_wrong_heads_and_groups_are_named():
    with pytest.raises(ValueError, match="Received: 4 and 3"):
        attend_axis(*inputs(groups=3), 1)
    with pytest.raises(ValueError, match="Received: 12 features, groups=5, heads=1"):
        attend_feature_groups(*[random(1, 2, 12)] * 3, 5)
