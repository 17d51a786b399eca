"""A reversible stack is its two equations, decodes as it computes, and trains as a plain layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainers.train.recompute.remat import apply_remat
from zoo.errors import UsageError
from zoo.layers.positions import AxialPositions
from zoo.layers.reversible import ReversibleStack

B, T, C = 2, 9, 8
PACKED = np.array([[1] * 4 + [2] * 4 + [0], [3] * 9], "int32")


def random(*shape, dtype="float32", seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)


def stack(attention="window:3", dtype="float32", built=True, **arguments):
    keras.utils.set_random_seed(0)
    arguments = {"initializer_range": 0.5, **arguments}
    layer = ReversibleStack(2, C, 2, 12, attention, name="stack", dtype=dtype, **arguments)
    if built:
        layer.build((None, None, C))
    return layer


@pytest.mark.parametrize("attention", ["window:3,plain", "lsh:2:4,chunked:4"])
def test_it_is_its_two_equations(attention):
    layer, x = stack(attention), random(B, T, C)
    first = second = x
    for f, g in layer.pairs:
        mask = PACKED
        if f.attention.form.takes_bias:
            same = (PACKED[:, :, None] == PACKED[:, None]) & np.tri(T, dtype=bool)
            mask = tf.constant(np.where(same, 0.0, -6e4)[:, None], "float32")
        first = first + f.attention(f.norm(second), mask)
        second = second + g.feed_forward(g.norm(first))
    out = layer(x, PACKED)
    assert out.shape == layer.compute_output_spec(x).shape == (B, T, 2 * C)
    real = PACKED > 0
    np.testing.assert_allclose(out[real], tf.concat([first, second], -1)[real], atol=1e-5)


def test_forms_alternate_and_later_positions_are_masked():
    layer, x = stack("window:3,lsh:2"), random(B, T, C)
    names = [type(f.attention.form).__name__ for f, _ in layer.pairs]
    assert names == ["Window", "Lsh"]
    changed = tf.concat([x[:, :-1], x[:, -1:] + 1.0], 1)
    np.testing.assert_allclose(layer(x)[:, :-1], layer(changed)[:, :-1], atol=1e-6)


@pytest.mark.parametrize("attention", ["window:3", "window:3,lsh:2", "plain,chunked:4"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_decoding_equals_the_forward_pass(attention, dtype):
    layer, x = stack(attention, dtype), random(B, T, C)
    expected, tolerance = layer(x), 1e-5 if dtype == "float32" else 0.05
    step = tf.function(layer.decode, autograph=False)
    for lengths in ([T], [1] * T, [5, 1, 1, 2]):
        cache, outputs, first = layer.start_cache(B, T), [], 0
        assert [entry["key"].shape[0] for entry in cache] == [2 * B, 2 * B]
        for length in lengths:
            decode = layer.decode if first == 0 else step
            place = first if first == 0 else tf.constant(first)
            out, cache = decode(x[:, first : first + length], cache, place)
            outputs.append(out)
            first += length
        out = tf.concat(outputs, 1)
        assert out.dtype == "float32"
        np.testing.assert_allclose(out, expected, atol=tolerance * np.abs(expected).max())


def test_halves_are_float32_and_parts_compute_in_bfloat16():
    layer, seen = stack(dtype="mixed_bfloat16"), []
    (f, g), _ = layer.pairs
    for part, inside in ((f, f.attention), (g, g.feed_forward)):
        plain_call, inside_call = part.call, inside.call
        part.call = lambda *a, c=plain_call, **k: seen.append(a[0].dtype.name) or c(*a, **k)
        inside.call = lambda *a, c=inside_call, **k: seen.append(a[0].dtype.name) or c(*a, **k)
    # The first half differs from a bfloat16 number, because the sum is float32.
    out = layer(random(B, T, C, dtype="bfloat16"), PACKED)
    assert seen == ["bfloat16"] * 4
    assert out.dtype == layer.compute_output_spec(random(B, T, C)).dtype == "float32"
    assert np.abs(out - tf.cast(tf.cast(out, "bfloat16"), "float32")).max() > 0
    assert stack(dtype="float64")(random(B, T, C, dtype="float64")).dtype == "float64"


def gradients(layer, x, graph=True):
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = layer(x, PACKED, training=True)
            loss = tf.reduce_sum(tf.sin(out))
        sources = [x, *(v.value for v in layer.trainable_variables)]
        return [out, *tape.gradient(loss, sources)]

    run = tf.function(run, autograph=False) if graph else run
    return run(x) + run(x)  # seeds advance with each call


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_reversible_training_equals_plain_training(graph):
    """With dropout, and with hash functions that are drawn in each forward pass."""
    x = random(B, T, C, dtype="float64")
    results = []
    for pattern in ("", "stack"):
        layer = stack("window:3,lsh:2:4", "float64", dropout=0.3)
        model = keras.Sequential([keras.Input((T, C), dtype="float64"), layer])
        if pattern:
            assert apply_remat(model, pattern) == ["stack"]
            assert "run_pairs" in vars(layer)
        results.append(gradients(layer, x, graph))
    assert np.abs(results[0][0] - results[0][len(results[0]) // 2]).max() > 0
    for a, b in zip(*results, strict=True):
        # Scores are float32 in any case.
        np.testing.assert_allclose(a, b, atol=1e-6 * max(1.0, np.abs(b).max()))


def test_reversible_training_in_mixed_precision():
    """The float32 halves keep the gradients as close to plain training as bfloat16 allows."""
    x = random(B, T, C)
    results = []
    for pattern in ("", "stack"):
        layer = stack("window:3", "mixed_bfloat16", dropout=0.3)
        if pattern:
            apply_remat(keras.Sequential([keras.Input((T, C)), layer]), pattern)
        results.append(gradients(layer, x, graph=True))
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == "float32"
        np.testing.assert_allclose(a, b, atol=1e-2 * max(1.0, np.abs(b).max()))


def test_reversible_training_calls_each_part_twice():
    layer, calls = stack(), []
    for part in (part for pair in layer.pairs for part in pair):
        plain_call = part.call
        part.call = lambda *a, n=part.name, c=plain_call, **k: calls.append(n) or c(*a, **k)
    model = keras.Sequential([keras.Input((T, C)), layer])
    apply_remat(model, "stack")
    calls.clear()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(random(B, T, C), training=True))
    tape.gradient(loss, layer.trainable_variables)
    forward = ["attention_0", "feed_forward_0", "attention_1", "feed_forward_1"]
    assert calls == forward + forward[::-1]


@pytest.mark.parametrize("pattern", ["stack", "(attention|feed_forward)_."])
def test_dropout_masks_are_not_stored_for_the_backward_pass(pattern):
    """TensorFlow merges operations with equal inputs, so a mask of both passes would be stored."""
    layer = stack(dropout=0.3)
    apply_remat(keras.Sequential([keras.Input((T, C)), layer]), pattern)
    run = tf.function(lambda x: gradients(layer, x, graph=False), autograph=False)
    operations = run.get_concrete_function(random(B, T, C)).graph.get_operations()
    keys = {}

    def key(op):
        """Returns equal numbers for operations that TensorFlow would merge."""
        if op.name not in keys:
            inputs = [(key(x.op), x.value_index) for x in op.inputs]
            controls = sorted(key(before) for before in op.control_inputs)
            settings = op.name if op.type == "Placeholder" else op.node_def.attr.items()
            keys[op.name] = hash(
                (op.type, str(inputs), str(controls), str(sorted(settings, key=str)))
            )
        return keys[op.name]

    masks = [key(op) for op in operations if op.type.startswith("StatelessRandomUniform")]
    assert len(masks) >= 12  # two updates, two passes of each mask
    assert len(set(masks)) == len(masks)


def test_dropout_acts_in_training_alone():
    layer, x = stack(dropout=0.5), random(B, T, C)
    np.testing.assert_array_equal(layer(x, PACKED), layer(x, PACKED, training=False))
    assert np.abs(layer(x, PACKED, training=True) - layer(x, PACKED)).max() > 0.1
    # One rate for probabilities and outputs of both functions.
    assert all(f.dropout and f.attention.dropout and g.dropout for f, g in layer.pairs)


def test_it_is_saved_and_compiled(tmp_path, xla):
    x = keras.Input((T, C))
    model = keras.Model(x, stack("window:3,lsh:2:4")(x))
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    values = random(B, T, C)
    np.testing.assert_array_equal(copy(values), model(values))
    layer = stack("window:3")
    compiled = tf.function(lambda x: layer(x, PACKED), jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(values), layer(values, PACKED), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, "num_layers must be positive"),
        ({"attention": "axial"}, "attention must be one of"),
        ({"num_heads": 3}, "hidden_dim must be a multiple of num_heads"),
        ({"activation": "tanh"}, "activation must be one of"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    sizes = {"num_layers": 2, "hidden_dim": C, "num_heads": 2, "intermediate_dim": 12}
    with pytest.raises((ValueError, UsageError), match=message):
        ReversibleStack(**{**sizes, **arguments})


# --- axial positions ------------------------------------------------------------------------------


def test_axial_positions_are_rows_and_columns():
    layer, x = AxialPositions(11, (3, 4), (2, 6), initializer_range=1.0), random(B, 11, C)
    out = layer(x)
    rows, columns = layer.rows.numpy(), layer.columns.numpy()
    assert (rows.shape, columns.shape) == ((3, 2), (4, 6))
    for place in range(11):
        vector = np.concatenate([rows[place // 4], columns[place % 4]])
        np.testing.assert_allclose(out[:, place] - x[:, place], [vector] * B, atol=1e-5)
    for first in (5, tf.constant(5)):
        np.testing.assert_array_equal(layer(x[:, 5:7], first=first), out[:, 5:7])
    unknown = tf.function(layer, input_signature=[tf.TensorSpec((None, None, C))], autograph=False)
    np.testing.assert_allclose(unknown(x), out, atol=1e-6)
    assert AxialPositions.from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, (3, 4), (2, 6)), "sequence_length must be positive"),
        ((13, (3, 4), (2, 6)), "must not exceed the product of shape .3, 4.. Received: 13"),
        ((12, (3,), (2, 6)), "must be two positive numbers each"),
        ((12, (3, 4), (8, 0)), "must be two positive numbers each"),
        ((12, (3, 4), (2, 5)), "sum of widths must be 8"),
    ],
)
def test_wrong_axial_positions_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        AxialPositions(*sizes)(random(B, 4, C))


def test_more_positions_than_the_grid_are_refused():
    layer = AxialPositions(10, (3, 4), (2, 6))
    with pytest.raises(ValueError, match="must not exceed 10. Received: 11"):
        layer(random(B, 4, C), first=7)
