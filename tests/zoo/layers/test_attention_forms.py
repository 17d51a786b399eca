"""Every form of attention in a block and in a model equals plain attention with a mask."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo.generation.decoding import decoding
from zoo.layers.attention import MaskBias, layer_forms, parse_form
from zoo.layers.attention_forms.plain import mask_bias, reference_attend
from zoo.layers.transformer import Attention, TransformerBlock
from zoo.models import bert, gpt, llama, seq2seq
from zoo.models.adapter import Adapter

FORMS = [
    "chunked", "chunked:4", "window:1", "window:5", "window:3:2", "window:40", "row:5", "column:5",
]  # fmt: skip
SEGMENTS = np.array([[1] * 4 + [2] * 7 + [0] * 2, [1] * 13], "int32")
LENGTH = SEGMENTS.shape[1]
TOKENS = np.random.default_rng(0).integers(6, 16, SEGMENTS.shape).astype("int32")
SIZES = {
    "vocabulary_size": 16, "sequence_length": LENGTH, "num_layers": 2, "hidden_dim": 16,
    "num_heads": 4, "dropout": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_a_block_equals_the_plain_block_with_the_bias_of_the_form(form, causal, groups):
    settings = {
        "num_key_value_heads": groups, "rotary_base": 100.0, "initializer_range": 0.5,
        "causal": causal,
    }  # fmt: skip
    x = tf.constant(np.random.default_rng(1).normal(size=(2, LENGTH, 16)), "float32")
    results = []
    for name in (form, "plain"):
        keras.utils.set_random_seed(0)
        block = TransformerBlock(16, 4, 32, attention=name, **settings)
        bias = parse_form(form).bias(SEGMENTS, causal)
        mask = bias if name == "plain" else tf.constant(SEGMENTS)
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = block(x, mask)[SEGMENTS > 0]
            loss = tf.reduce_sum(out**3)
        results.append([out, block.attention_scores(x, mask), tape.gradient(loss, x)])
    for ours, plain in zip(*results, strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-5 * np.abs(plain).max())


def test_the_bias_of_forms():
    """Counted by hand: W positions back, or W to each side, in steps of the dilation."""

    def visible(name, causal):
        return parse_form(name).bias(np.ones((1, 9), "int32"), causal)[0, 0].numpy() == 0

    row, column = np.mgrid[:9, :9]
    distance = row - column
    assert (visible("window:3", True) == ((distance >= 0) & (distance < 3))).all()
    assert (visible("window:3", False) == (abs(distance) <= 3)).all()
    steps = np.isin(distance, [0, 2, 4])
    assert (visible("window:3:2", True) == steps).all()
    assert (visible("window:3:2", False) == np.isin(abs(distance), [0, 2, 4, 6])).all()
    assert (visible("row:4", False) == (row // 4 == column // 4)).all()
    assert (visible("column:4", True) == np.isin(distance, [0, 4, 8])).all()
    packed = parse_form("chunked").bias(SEGMENTS, True)
    np.testing.assert_array_equal(packed, mask_bias(SEGMENTS, causal=True))


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (gpt, {"tokens": TOKENS, "segments": SEGMENTS}),
        (llama, {"tokens": TOKENS, "segments": SEGMENTS}),
        (bert, {"tokens": TOKENS, "segments": SEGMENTS, "masked": SEGMENTS[:, :3]}),
        (seq2seq, {"source": TOKENS, "target": TOKENS}),
    ],
)
def test_each_family_takes_the_forms(module, inputs):
    """A window that sees everything, and chunks, change nothing; a narrow window does."""
    sizes = dict(SIZES)
    if module is bert:
        sizes["next_sentence"] = False
    if module is seq2seq:
        sizes["num_encoder_layers"] = sizes.pop("num_layers")
        del sizes["sequence_length"]

    def outputs(attention):
        keras.utils.set_random_seed(0)
        model = module.build(**sizes, attention=attention)
        assert any(isinstance(x, MaskBias) for x in model.layers) == ("plain" in attention) or (
            module is seq2seq
        )
        out = keras.tree.flatten(model(inputs))[0].numpy()
        rows = SEGMENTS > 0 if out.shape[1] == LENGTH else slice(None)
        return Adapter(model).family, out[rows]

    family, plain = outputs("plain")
    for attention in ("chunked:4", "plain,window:40"):
        same_family, out = outputs(attention)
        assert same_family == family
        np.testing.assert_allclose(out, plain, atol=1e-6)
    assert np.abs(outputs("window:2")[1] - plain).max() > 1e-4


@pytest.mark.parametrize(
    ("attention", "jit"),
    [("chunked:4", False), ("window:5", False), ("window:4:2,plain", False), ("window:5", True),
     ("row:5,column:5", False), ("row:5,column:5", True)],
)  # fmt: skip
def test_decoding_equals_the_forward_pass(attention, jit, xla, monkeypatch):
    """In steps of one and several tokens, across the end of the ring buffer."""
    model = llama.build(**{**SIZES, "num_key_value_heads": 2, "attention": attention})
    expected = model({"tokens": TOKENS, "segments": np.ones_like(SEGMENTS)})
    steps = decoding(model)
    step = steps.step
    if jit:
        step = tf.function(step, jit_compile=True, autograph=False)
    else:
        monkeypatch.setattr("zoo.layers.xla.compiles", lambda: False)
    for counts in ([7, *[1] * 6], [3, 6, 1, 3]):
        cache, first, logits = steps.start(2, LENGTH), 0, []
        for count in counts:
            tokens = tf.constant(TOKENS[:, first : first + count])
            # The first position of a prompt is a Python integer, as in `Generator`.
            position = tf.constant(first) if first else 0
            new_logits, cache = step(tokens, cache, position)
            logits.append(new_logits)
            first += count
        np.testing.assert_allclose(np.concatenate(logits, 1), expected, atol=1e-5)


@pytest.mark.parametrize(
    "attention", ["plain", "chunked:4", "window:5", "lsh:1:16", "plain,features:2"]
)
def test_a_prompt_of_unknown_length(attention):
    model = gpt.build(**SIZES, attention=attention)
    steps = decoding(model)

    @tf.function(input_signature=[tf.TensorSpec((2, None), tf.int32)], autograph=False)
    def prefill(tokens):
        return steps.step(tokens, steps.start(2, LENGTH), 0)

    logits, cache = prefill(TOKENS[:, :9])
    last_logits, _ = steps.step(TOKENS[:, 9:10], cache, tf.constant(9))
    expected = model({"tokens": TOKENS[:, :10], "segments": np.ones((2, 10), "int32")})
    np.testing.assert_allclose(np.concatenate([logits, last_logits], 1), expected, atol=1e-5)


def test_a_cache_is_as_long_as_the_window():
    model = gpt.build(**{**SIZES, "sequence_length": 1000, "attention": "window:5,window:4:3"})
    rows = [x["key"].shape[1] for x in decoding(model).start(1, 1000)]
    assert rows == [5, 10]
    assert [x["key"].shape[1] for x in decoding(model).start(1, 7)] == [5, 7]


def test_lsh_in_one_chunk_is_decoded_exactly():
    """A chunk with all positions sees all pairs, in the forward pass as in decoding."""
    model = gpt.build(**SIZES, attention="lsh:2:16")
    expected = model({"tokens": TOKENS, "segments": np.ones_like(SEGMENTS)})
    steps = decoding(model)
    cache, logits = steps.start(2, LENGTH), []
    for first in range(LENGTH):
        new_logits, cache = steps.step(TOKENS[:, first : first + 1], cache, first)
        logits.append(new_logits)
    np.testing.assert_allclose(np.concatenate(logits, 1), expected, atol=1e-5)


def test_lsh_hashes_anew_in_training_alone():
    block = TransformerBlock(16, 4, 32, attention="lsh:1:4", causal=True)
    x = tf.constant(np.random.default_rng(1).normal(size=(1, 64, 16)), "float32")
    segments = tf.ones((1, 64), "int32")
    np.testing.assert_array_equal(block(x, segments), block(x, segments))
    first, second = (block(x, segments, training=True).numpy() for _ in range(2))
    assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize("causal", [True, False])
def test_lsh_sees_neither_other_documents_nor_the_future(causal, monkeypatch):
    """With equal buckets; a position that changes its bucket moves others to another chunk."""
    block = TransformerBlock(16, 4, 32, attention="lsh:4:4", causal=causal, initializer_range=0.5)
    x = np.random.default_rng(1).normal(size=(1, 24, 16)).astype("float32")
    segments = np.repeat([[1, 2, 0]], 8, axis=1)
    changed = x.copy()
    changed[0, 12, 0] += 1.0
    buckets = np.random.default_rng(2).integers(0, 12, (1, 4, 4, 24)).astype("int32")
    monkeypatch.setattr("zoo.layers.attention.hash_buckets", lambda *_: buckets)
    gap = np.abs(block(x, segments) - block(changed, segments)).max(-1)[0] > 1e-4
    allowed = np.zeros(24, bool)
    allowed[12 if causal else 8 : 16] = True
    assert gap[12]
    assert not gap[~allowed].any()
    # With so many rounds some other positions see the changed one.
    assert gap.sum() > 1


@pytest.mark.parametrize("arguments", [{"num_key_value_heads": 2}, {"memory": True}])
def test_lsh_refuses_what_needs_keys_of_its_own(arguments):
    with pytest.raises(ValueError, match="'lsh:2' uses queries as keys.*Received: memory="):
        Attention(16, 4, form="lsh:2", **arguments)


@pytest.mark.parametrize(
    "attention", ["chunked:4", "window:5", "lsh:1:16", "row:5", "column:5", "features:2"]
)
def test_dropout_acts_in_training_alone(attention):
    block = TransformerBlock(16, 4, 32, attention=attention, causal=True, dropout=0.5)
    x = tf.constant(np.random.default_rng(1).normal(size=(2, LENGTH, 16)), "float32")
    segments = tf.constant(SEGMENTS)
    block.dropout = None  # leaves the dropout of the probabilities
    plain = block(x, segments).numpy()
    np.testing.assert_array_equal(plain, block(x, segments))
    first, second = (block(x, segments, training=True).numpy() for _ in range(2))
    assert np.abs(first - plain).max() > 1e-4
    assert np.abs(first - second).max() > 1e-4


def test_features_mix_no_positions():
    """Each position attends between its own groups of features, which have parts of all heads."""
    block = TransformerBlock(16, 4, 32, attention="features:2", causal=True, initializer_range=0.5)
    x = np.random.default_rng(1).normal(size=(1, 6, 16)).astype("float32")
    changed = x.copy()
    changed[0, 3, 0] += 1.0
    gap = np.abs(block(x) - block(changed)).max(-1)[0] > 1e-4
    assert gap.tolist() == [False, False, False, True, False, False]
    attention = block.attention
    parts = [tf.reshape(part, (6, 2, 4, 2)) for part in attention.project(tf.constant(x), 0)]
    expected = attention.combine(tf.reshape(reference_attend(*parts), (1, 6, 4, 4)))
    np.testing.assert_allclose(attention(x), expected, atol=1e-5)
    cache = decoding(gpt.build(**SIZES, attention="plain,features:2")).start(1, LENGTH)
    assert [sorted(layer) for layer in cache] == [["key", "value"], []]


def test_features_refuse_grouped_heads():
    block = TransformerBlock(16, 4, 32, num_key_value_heads=2, attention="features:2")
    with pytest.raises(ValueError, match="features .*grouped-query.*Received: 4 query heads and 2"):
        block(np.ones((1, 3, 16), "float32"))
    with pytest.raises(ValueError, match="multiple of groups . heads. Received: 16 features"):
        TransformerBlock(16, 4, 32, attention="features:3")(np.ones((1, 3, 16), "float32"))


def test_forms_are_repeated_over_the_layers():
    assert layer_forms("window:8, plain", 5) == ["window:8", "plain"] * 2 + ["window:8"]


@pytest.mark.parametrize(
    "name",
    ["", "windows:4", "window", "window:", "window:0", "window:4:0", "window:4:1:1", "window:x",
     "chunked:-1", "plain:3", "plain,", "window:4.0"],
)  # fmt: skip
def test_wrong_names_are_refused(name):
    last = name.split(",")[-1]
    with pytest.raises(ValueError, match=rf"attention must be one of plain, .*Received: '{last}'"):
        gpt.build(**SIZES, attention=name)
