"""Tests of RETRO: what a position may read, and a plain reference of the cross-attention."""

import keras
import numpy as np
import pytest

from zoo import registry
from zoo.layers.attention_forms.plain import attend
from zoo.models.retro import ChunkedCrossAttention

SIZE, COUNT, CHUNKS = 4, 2, 3
LENGTH = SIZE * CHUNKS
ARGUMENTS = {
    "vocabulary_size": 40, "sequence_length": LENGTH, "num_layers": 2, "hidden_dim": 16,
    "num_heads": 2, "neighbors": COUNT, "chunk_size": SIZE, "num_encoder_layers": 1,
    "cross_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = registry.build("retro_nano", **ARGUMENTS)
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:  # initial outputs are nearly equal
        value = variable.numpy()
        variable.assign(value + generator.normal(0, 0.2, value.shape))
    return model


@pytest.fixture
def inputs():
    generator = np.random.default_rng(1)
    tokens = generator.integers(6, 40, (2, LENGTH)).astype("int32")
    neighbors = generator.integers(6, 40, (2, CHUNKS, COUNT, 2 * SIZE)).astype("int32")
    neighbors[:, :, 1, -3:] = 0
    return {"tokens": tokens, "segments": np.ones_like(tokens), "neighbors": neighbors}


def logits(model, inputs, **changes):
    return model({**inputs, **changes}, training=False).numpy()


def test_no_position_depends_on_a_later_token(model, inputs):
    before = logits(model, inputs)
    for position in range(1, LENGTH):
        tokens = inputs["tokens"].copy()
        tokens[:, position] = 6 + (tokens[:, position] - 5) % 34
        after = logits(model, inputs, tokens=tokens)
        np.testing.assert_array_equal(after[:, :position], before[:, :position])
        assert (after[:, position:] != before[:, position:]).any(-1).all()


def test_neighbors_of_a_chunk_are_read_from_its_last_position_on(model, inputs):
    before = logits(model, inputs)
    for chunk in range(CHUNKS):
        neighbors = inputs["neighbors"].copy()
        neighbors[:, chunk, 0, 0] = 6 + (neighbors[:, chunk, 0, 0] - 5) % 34
        after = logits(model, inputs, neighbors=neighbors)
        first = (chunk + 1) * SIZE - 1
        np.testing.assert_array_equal(after[:, :first], before[:, :first])
        assert (after[:, first:] != before[:, first:]).any(-1).all()


def test_other_neighbors_give_other_logits_and_padding_none(model, inputs):
    before = logits(model, inputs)
    neighbors = np.random.default_rng(2).permutation(inputs["neighbors"].ravel())
    other = logits(model, inputs, neighbors=neighbors.reshape(inputs["neighbors"].shape))
    assert np.abs(other[:, SIZE - 1 :] - before[:, SIZE - 1 :]).max() > 0.01
    nothing = logits(model, inputs, neighbors=np.zeros_like(inputs["neighbors"]))
    cross = model.get_layer("cross_1").attention
    cross.output_projection.kernel.assign(0 * cross.output_projection.kernel)
    bias = cross.output_projection.bias.numpy()
    cross.output_projection.bias.assign(0 * bias)
    plain = registry.build("retro_nano", **{**ARGUMENTS, "neighbors": 0})
    plain.set_weights([_weight(model, variable.path) for variable in plain.weights])
    text = {key: inputs[key] for key in ("tokens", "segments")}
    np.testing.assert_allclose(logits(model, inputs), logits(plain, text), atol=1e-5)
    assert not np.allclose(nothing, before, atol=0.01)


def _weight(model, path):
    (value,) = [v.numpy() for v in model.weights if v.path == path]
    return value


def test_a_neighbor_is_encoded_by_itself(model, inputs):
    encoder = keras.Model(model.input, model.get_layer("neighbor_norm").output)
    before = encoder(inputs).numpy().reshape(2, CHUNKS, COUNT, 2 * SIZE, -1)
    neighbors = inputs["neighbors"].copy()
    neighbors[0, 1, 0] = neighbors[0, 1, 0][::-1]
    after = encoder({**inputs, "neighbors": neighbors}).numpy().reshape(before.shape)
    changed = (after != before).any((-1, -2))
    assert np.argwhere(changed).tolist() == [[0, 1, 0]]


def test_cross_attention_equals_a_loop_over_positions():
    keras.utils.set_random_seed(3)
    layer = ChunkedCrossAttention(8, 2, COUNT, SIZE)
    generator = np.random.default_rng(3)
    x = generator.normal(size=(2, LENGTH, 8)).astype("float32")
    memory = generator.normal(size=(2, CHUNKS * COUNT * 2 * SIZE, 8)).astype("float32")
    present = generator.integers(0, 2, memory.shape[:2])
    read = COUNT * 2 * SIZE
    present[1, read : 2 * read] = 0  # the second chunk has no neighbors
    out = layer(x, memory, present).numpy() - x
    attention, h = layer.attention, layer.norm(x)
    query = attention.project_query(h).numpy()
    key, value = (part.numpy() for part in attention.project_memory(memory))
    bias = attention.output_projection.bias.numpy()
    for row in range(2):
        for position in range(LENGTH):
            chunk = (position + 1) // SIZE - 1
            tokens = np.arange(chunk * read, (chunk + 1) * read)
            tokens = tokens[present[row, tokens] > 0] if chunk >= 0 else []
            expected = bias if chunk >= 0 else 0 * bias
            if len(tokens):
                one = [part[row : row + 1, tokens] for part in (key, value)]
                head = attend(query[row : row + 1, position : position + 1], *one)
                expected = attention.combine(head).numpy()[0, 0]
            np.testing.assert_allclose(out[row, position], expected, atol=1e-5)


def test_without_neighbors_it_is_a_gpt_with_rotary_positions(inputs):
    plain = registry.build("retro_nano", **{**ARGUMENTS, "neighbors": 0})
    names = ("vocabulary_size", "sequence_length", "num_layers", "hidden_dim", "num_heads")
    sizes = {name: ARGUMENTS[name] for name in names}
    gpt = registry.build("gpt_nano", **sizes, dropout=0.0, rotary_base=10_000.0)
    assert [v.path.partition("/")[2] for v in plain.weights] == [
        v.path.partition("/")[2] for v in gpt.weights
    ]
    gpt.set_weights(plain.get_weights())
    text = {key: inputs[key] for key in ("tokens", "segments")}
    np.testing.assert_array_equal(logits(plain, text), logits(gpt, text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunk_size": 1}, "chunk_size must be at least 2"),
        ({"chunk_size": 5}, "a divisor of sequence_length"),
        ({"cross_every": 3}, "cross_every must be from 1 to 2"),
        ({"num_encoder_layers": 0}, "num_encoder_layers at least 1"),
        ({"rotary_base": 0.0}, "rotary_base must be positive"),
    ],
)
def test_wrong_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        registry.build("retro_nano", **{**ARGUMENTS, **change})
