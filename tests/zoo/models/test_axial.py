"""An axial transformer equals masked attention, sees what it must, and decodes exactly."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainers.compress_jobs import calibrated
from zoo.errors import UsageError
from zoo.generation.decoding import can_generate, decoding
from zoo.generation.generate import Generator
from zoo.layers.attention_forms.plain import MASKED
from zoo.layers.transformer import TransformerBlock
from zoo.models import axial

ROWS, COLUMNS, VOCABULARY = 4, 5, 11
T = ROWS * COLUMNS
SIZES = {
    "vocabulary_size": VOCABULARY, "sequence_length": T, "columns": COLUMNS,
    "num_outer_layers": 4, "num_inner_layers": 2, "hidden_dim": 16, "num_heads": 2,
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, (2, T)).astype("int32")


def with_large_weights(model):
    """Makes attention matter."""
    generator = np.random.default_rng(1)
    for v in model.trainable_variables:
        v.assign(generator.normal(v.path.endswith("gamma"), 0.4, v.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return with_large_weights(axial.build(**SIZES))


@pytest.fixture(scope="module")
def expected(model):
    return model({"tokens": TOKENS}).numpy()


def test_logits_depend_on_exactly_the_earlier_targets(model, expected):
    """The target of position i is the token i + 1; logits i depend on targets before i alone.

    The first token is no target. It is an input of the first row alone.
    """
    depends = np.zeros((T, T), bool)
    for changed in range(T):
        tokens = TOKENS.copy()
        tokens[:, changed] = (tokens[:, changed] + 1) % VOCABULARY
        gap = np.abs(model({"tokens": tokens}) - expected).max((0, 2))
        depends[:, changed] = gap > 1e-4
    on_targets = np.pad(depends[:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_array_equal(on_targets, np.tri(T, k=-1, dtype=bool))
    np.testing.assert_array_equal(depends[:, 0], np.arange(T) < COLUMNS)


def test_equals_plain_blocks_with_masks(model, expected):
    """The same weights in blocks of the form "plain", with a mask over all pairs of positions."""
    row, column = np.divmod(np.arange(T), COLUMNS)
    same_row, same_column = row[:, None] == row, column[:, None] == column
    earlier = np.tri(T, dtype=bool)
    embeddings = model.get_layer("embedding").embeddings.numpy()
    positions = model.get_layer("positions")
    places = np.concatenate([positions.rows.numpy()[row], positions.columns.numpy()[column]], -1)

    def run(name, x, mask):
        block = model.get_layer(name)
        plain = TransformerBlock(**{**block.settings, "attention": "plain"})
        plain.build(x.shape)
        plain.set_weights(block.get_weights())
        return plain(x, np.where(mask, 0.0, MASKED).astype("float32")[None, None])

    x = embeddings[TOKENS]
    above = np.pad(x, ((0, 0), (0, 1), (0, 0)))[:, 1:] + places
    for i in range(4):
        mask = same_column & earlier if i % 2 else same_row
        above = run(f"outer_{i}", above, mask)
    x = x + places + np.pad(above, ((0, 0), (COLUMNS, 0), (0, 0)))[:, :T]
    for i in range(2):
        x = run(f"inner_{i}", x, same_row & earlier)
    logits = model.get_layer("projection")(model.get_layer("final_norm")(x))
    np.testing.assert_allclose(expected, logits, atol=1e-4)


@pytest.mark.parametrize("length", [2, COLUMNS, 2 * COLUMNS + 2])
def test_a_prefix_has_the_same_logits(model, expected, length):
    logits = model({"tokens": TOKENS[:, :length]})
    np.testing.assert_allclose(logits, expected[:, :length], atol=1e-4)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="even and positive.*Received: num_outer_layers=3"):
        axial.build(**{**SIZES, "num_outer_layers": 3})
    with pytest.raises(ValueError, match="must not exceed 20. Received: 21"):
        axial.build(**SIZES)({"tokens": np.zeros((1, T + 1), "int32")})


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jit", "counts"),
    [(False, [7, *[1] * 13]), pytest.param(True, [*[1] * 11, 9], marks=pytest.mark.slow)],
)
def test_decoding_equals_the_forward_pass(jit, counts, model, expected, xla):
    """In steps of one and several tokens, across the ends of rows."""
    steps = decoding(model)
    assert (steps.sequence_length, steps.vocabulary_size) == (T, VOCABULARY)
    step = tf.function(steps.step, jit_compile=jit, autograph=False)
    cache, first, logits = steps.start(2, T), 0, []
    for count in counts:
        tokens = tf.constant(TOKENS[:, first : first + count])
        new_logits, cache = step(tokens, cache, tf.constant(first))
        logits.append(new_logits)
        first += count
    np.testing.assert_allclose(np.concatenate(logits, 1), expected, atol=1e-4)


@pytest.mark.slow
def test_generation_with_a_cache_equals_that_without(model):
    """Also from prompts of different lengths, and as the best of several beams."""
    generator = Generator(model, jit_compile=False)
    prompts = [TOKENS[0, :3].tolist(), TOKENS[1, :8].tolist()]
    options = {"temperature": 1.0, "seed": 3, "end_id": None}
    ours, slow = (
        generator.tokens(prompts, T, use_cache=use_cache, **options) for use_cache in (True, False)
    )
    for a, b in zip(ours, slow, strict=True):
        np.testing.assert_array_equal(a, b)
    assert len(generator.tokens(prompts[:1], 9, beams=3, end_id=None)[0]) == 9


def test_a_saved_model_is_decoded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert can_generate(copy)
    np.testing.assert_array_equal(copy({"tokens": TOKENS}), model({"tokens": TOKENS}))


# --- compression ----------------------------------------------------------------------------------


def test_unsupported_compression_is_refused(model):
    """The blocks of the outer and the inner part are no chain."""
    with pytest.raises(UsageError, match="keras_gptq supports .* Received: 'axial'"):
        calibrated.quantize(model, "gptq", {})


def test_scores_are_those_of_the_axis(model):
    block = model.get_layer("outer_1")
    scores = block.attention_scores(np.ones((1, T, 16), "float32"))[0, 0].numpy()
    place = np.arange(T)
    distance = place[:, None] - place
    np.testing.assert_array_equal(scores > MASKED / 2, (distance >= 0) & (distance % COLUMNS == 0))
