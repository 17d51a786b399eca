"""Longformer: rows see what the paper says, equal outputs to transformers, clear errors."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.third_party import third_party
from trainers.compression.units import units
from zoo import registry
from zoo.catalog import CATALOG
from zoo.errors import RunError, UsageError
from zoo.layers.low_rank import LowRankDense
from zoo.layers.transformer import Attention, TransformerBlock
from zoo.models import architecture, bert, longformer
from zoo.models.convert import published as convert

SIZES = {
    "vocabulary_size": 30, "sequence_length": 24, "num_layers": 2, "hidden_dim": 16,
    "num_heads": 4, "intermediate_dim": 24, "dropout": 0.0,
}  # fmt: skip
START, SEPARATOR = 2, 4
# Two packed documents with padding; one whole row; a row of padding.
SEGMENTS = np.array([[1] * 5 + [2] * 6 + [0] * 2, [1] * 13, [0] * 13], "int32")
GLOBAL = np.zeros((3, 13), "bool")
GLOBAL[0, [0, 7]] = GLOBAL[1, 4] = True


def randomize(model, seed=0):
    """Sets every weight far from its initial value, so that each affects the outputs."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        scale = 0.2 if "kernel" in weight.path else 0.5
        center = 1.0 if weight.path.endswith("gamma") else 0.0
        weight.assign(generator.normal(center, scale, weight.shape))
    return model


# --- what each position sees ----------------------------------------------------------------------


def attention_by_hand(layer, x, segments, is_global, window, dilation):
    """Computes section 3.1 of the paper for each position and head."""

    def project(dense):
        parts = x @ dense.kernel.numpy() + dense.bias.numpy()
        shape = (*x.shape[:2], 3 * layer.heads, layer.size)
        return np.split(parts.reshape(shape), 3, axis=2)

    parts = project(layer.query_key_value), project(layer.global_query_key_value)
    out = np.zeros((*x.shape[:2], layer.heads, layer.size))
    batch, length = segments.shape
    for b in range(batch):
        for t in range(length):
            query, key, value = parts[int(is_global[b, t])]
            visible = [
                s
                for s in range(length)
                if segments[b, s] == segments[b, t] > 0
                and (
                    is_global[b, t]
                    or is_global[b, s]
                    or (abs(s - t) <= window * dilation and (s - t) % dilation == 0)
                )
            ]
            for head in range(layer.heads if visible else 0):
                scores = key[b, visible, head] @ query[b, t, head] / layer.size**0.5
                weights = np.exp(scores - scores.max())
                out[b, t, head] = weights / weights.sum() @ value[b, visible, head]
    return out.reshape(batch, length, -1) @ layer.output_projection.kernel.numpy() + (
        layer.output_projection.bias.numpy()
    )


@pytest.mark.parametrize(("window", "dilation"), [(1, 1), (2, 1), (2, 2), (99, 1)])
def test_each_position_sees_its_window_and_the_global_tokens(window, dilation):
    layer = Attention(16, 4, form=f"window:{window}:{dilation}", max_global=3)
    layer.build((None, None, 16))
    randomize(layer)
    x = np.random.default_rng(1).normal(size=(3, 13, 16)).astype("float32")
    inputs = tf.constant(x), tf.constant(SEGMENTS)
    real = SEGMENTS > 0
    out = layer(*inputs, global_mask=tf.constant(GLOBAL)).numpy()
    expected = attention_by_hand(layer, x, SEGMENTS, GLOBAL, window, dilation)
    np.testing.assert_allclose(out[real], expected[real], atol=1e-5)
    # The scores that distillation compares give the same output.
    weights = tf.nn.softmax(layer.scores(*inputs, GLOBAL)).numpy()
    values = [layer.project(x, 0, is_global)[2].numpy() for is_global in (False, True)]
    out = [np.einsum("bhts,bshd->bthd", weights, value).reshape(3, 13, 16) for value in values]
    out = np.where(GLOBAL[..., None], out[1], out[0])
    np.testing.assert_allclose(layer.combine(out.reshape(3, 13, 4, 4))[real], expected[real],
                               atol=1e-5)  # fmt: skip


def test_global_tokens_by_hand():
    tokens = np.array(
        [
            [START, 9, SEPARATOR, 9, SEPARATOR, START, 9, 9, START, SEPARATOR, 9, START, SEPARATOR],
            [9, 9, SEPARATOR, START, 9, 9, 9, 9, 9, 9, 9, 9, 9],
            [START, SEPARATOR, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
        ],
        "int32",
    )
    segments = SEGMENTS.copy()
    segments[1, 5:] = 2  # a document without <sep>
    cases = [
        ("start", 9, [[0, 5, 8], [3], []]),
        ("start", 2, [[0, 5], [3], []]),
        ("question", 9, [[0, 1, 2, 5, 6, 7, 8, 9], [0, 1, 2], []]),
        ("question", 4, [[0, 1, 2, 5], [0, 1, 2], []]),
        ("", 9, [[], [], []]),
    ]
    for name, count, expected in cases:
        layer = longformer.GlobalTokens(name, count)
        for function in (layer, tf.function(layer, input_signature=[
            tf.TensorSpec((None, None), "int32")] * 2)):  # fmt: skip
            mask = function(tf.constant(tokens), tf.constant(segments)).numpy()
            assert [np.flatnonzero(row).tolist() for row in mask] == expected, (name, count)
    assert longformer.GlobalTokens.from_config(layer.get_config()).settings == layer.settings


@pytest.mark.parametrize("global_tokens", ["start", ""])
def test_global_projections_learn_from_global_tokens(global_tokens):
    model = longformer.build(**SIZES, attention="window:2", global_tokens=global_tokens)
    randomize(model)
    tokens = np.random.default_rng(0).integers(6, 30, (2, 13)).astype("int32")
    tokens[:, 0] = START
    # The global projections of the last block affect only the rows of global tokens.
    masked = np.tile(np.int32([0, 3, 5]), (2, 1))
    inputs = {"tokens": tokens, "segments": np.ones_like(tokens), "masked": masked}
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(inputs)["mlm"] ** 2)
    projections = [v for v in model.trainable_variables if "global_query_key_value" in v.path]
    assert len(projections) == 4  # kernel and bias of two blocks
    for gradient in tape.gradient(loss, [v.value for v in projections]):
        parts = np.split(gradient.numpy(), 3, axis=-1)
        # A bias of the keys adds the same to all scores of a row.
        moved = [np.abs(part).max() > 1e-7 for part in parts]
        assert moved[::2] == [global_tokens == "start"] * 2
        assert moved[1] == (global_tokens == "start") or gradient.shape.rank == 1


def test_without_global_tokens_it_is_a_roberta_with_windows():
    model = longformer.build(**SIZES, attention="window:3", global_tokens="", max_global=0)
    other = bert.build(**SIZES, attention="window:3", next_sentence=False, epsilon=1e-5)
    assert [v.path for v in model.weights] == [v.path for v in other.weights]
    assert not architecture.differences(model, other)
    assert [tensor.name for tensor in model.inputs] == [tensor.name for tensor in other.inputs]


def test_a_model_starts_from_one_with_other_global_tokens():
    first = longformer.build(**SIZES, attention="window:3", max_global=2)
    second = longformer.build(**SIZES, attention="window:3", global_tokens="question")
    assert not architecture.differences(first, second)
    other = longformer.build(**SIZES, attention="window:4")
    assert "window:3" in " ".join(architecture.differences(first, other))


# --- compression ----------------------------------------------------------------------------------


def test_a_removed_head_leaves_the_global_projections_too():
    row = registry.entry("longformer_nano")
    model = registry.build(row.name, **row.tiny)
    heads = units(model)[0]["block_0/attention"]
    cut = {v.variable.path: v.indices for v in heads.cuts}
    assert cut.keys() == {f"block_0/attention/{path}" for path in (
        "query_key_value/kernel", "query_key_value/bias", "global_query_key_value/kernel",
        "global_query_key_value/bias", "output/kernel",
    )}  # fmt: skip
    np.testing.assert_array_equal(
        cut["block_0/attention/global_query_key_value/kernel"][1],
        [*range(4, 8), *range(20, 24), *range(36, 40)],
    )
    block = TransformerBlock(
        16, 4, 24, attention="window:3", max_global=2, widths={"attention": 2},
        ranks={"attention/global_query_key_value": 3},
    )  # fmt: skip
    block.build((None, None, 16))
    assert isinstance(block.attention.global_query_key_value, LowRankDense)
    assert block.attention.global_query_key_value.kernel.shape == (16, 24)


# --- transformers ---------------------------------------------------------------------------------


def published(torch, transformers, **settings):
    arguments = {
        "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 24, "attention_window": [4, 8], "max_position_embeddings": 26,
        "type_vocab_size": 1, "layer_norm_eps": 1e-4, **settings,
    }  # fmt: skip
    with third_party():
        model = transformers.LongformerForMaskedLM(transformers.LongformerConfig(**arguments))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        norm = "norm" in name.lower() and name.endswith("weight")
        torch.nn.init.normal_(parameter.data, 1.0 if norm else 0.0, 0.3)
    return model.eval()


def torch_logits(torch, model, tokens, segments, is_global):
    arrays = {
        "input_ids": np.where(segments > 0, tokens, 1),
        "attention_mask": segments,
        "global_attention_mask": is_global,
    }
    with third_party(), torch.no_grad():
        return model(**{k: torch.tensor(v.astype("int64")) for k, v in arrays.items()}).logits


def logits(model, tokens, segments):
    masked = np.tile(np.arange(tokens.shape[1], dtype="int32"), (len(tokens), 1))
    return model({"tokens": tokens, "segments": segments, "masked": masked})["mlm"].numpy()


def rows():
    """Returns tokens and segments of 21, 17 and 6 positions; <s> is token 0."""
    tokens = np.random.default_rng(0).integers(6, 30, (3, 21)).astype("int32")
    tokens[0, [0, 9, 10]] = tokens[1, 0] = 0
    return tokens, (np.arange(21) < [[21], [17], [6]]).astype("int32")


@pytest.mark.parametrize("windows", [[4, 8], [4, 64]])
def test_same_outputs_as_transformers(windows, torch, transformers, tmp_path):
    """With global tokens, padding, and a length that is no multiple of either window."""
    theirs = published(torch, transformers, attention_window=windows)
    with third_party():
        theirs.save_pretrained(tmp_path)
    model = convert.from_transformers(tmp_path)
    forms = [model.get_layer(f"block_{i}").settings["attention"] for i in range(2)]
    assert forms == [f"window:{n // 2}" for n in windows]
    tokens, segments = rows()
    is_global = (tokens == 0) & (segments > 0)
    expected = torch_logits(torch, theirs, tokens, segments, is_global).numpy()
    real = segments > 0
    assert np.abs(expected[real]).max() > 1
    np.testing.assert_allclose(logits(model, tokens, segments)[real], expected[real], atol=1e-4)
    # The mask, and not only the tokens, changes the outputs.
    other = torch_logits(torch, theirs, tokens, segments, np.zeros_like(is_global)).numpy()
    assert np.abs(other[real] - expected[real]).max() > 1e-2


def test_to_transformers_and_back(torch, transformers, tmp_path):
    model = randomize(
        longformer.build(**SIZES, attention="window:2,window:6", start_token=0, epsilon=1e-4)
    )
    convert.to_transformers(model, tmp_path / "folder")
    with third_party():
        theirs, loading_info = transformers.AutoModelForMaskedLM.from_pretrained(
            tmp_path / "folder", output_loading_info=True
        )
    assert not any(loading_info.values())
    tokens, segments = rows()
    real = segments > 0
    expected = torch_logits(torch, theirs.eval(), tokens, segments, (tokens == 0) & real).numpy()
    np.testing.assert_allclose(logits(model, tokens, segments)[real], expected[real], atol=1e-4)
    again = convert.from_transformers(tmp_path / "folder")
    assert [v.path for v in again.weights] == [v.path for v in model.weights]
    for ours, new in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(ours.numpy(), new.numpy(), err_msg=ours.path)


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("attention_window", [4, 5], RunError, "attention_window must be an even positive"),
        ("attention_window", [4], RunError, "attention_window must be an even positive"),
        ("type_vocab_size", 2, UsageError, "type_vocab_size=2 cannot be converted"),
        ("pad_token_id", 0, UsageError, "pad_token_id=0 cannot be converted"),
        ("hidden_act", "relu", UsageError, "hidden_act='relu' cannot be converted"),
        ("attention_probs_dropout_prob", 0.5, UsageError, "only one dropout rate"),
        ("max_position_embeddings", 2, RunError, "max_position_embeddings must exceed 2"),
    ],
)
def test_settings_that_are_not_converted(key, value, error, message, tmp_path):
    config = {
        "model_type": "longformer", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 24, "type_vocab_size": 1,
        "pad_token_id": 1, key: value,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=message):
        convert.from_transformers(tmp_path)


def test_models_that_transformers_does_not_have(tmp_path):
    for attention in ("window:2:2", "window:2,window:5"):
        model = longformer.build(**SIZES, attention=attention)
        with pytest.raises(UsageError, match="without dilation, which divide the largest window"):
            convert.to_transformers(model, tmp_path / "folder")
    with pytest.raises(UsageError, match="KerasHub has no Longformer"):
        convert.to_keras_hub(model)
    roberta = longformer.build(**SIZES, global_tokens="", max_global=0)
    with pytest.raises(UsageError, match="supports the gpt, llama and longformer models"):
        convert.to_transformers(roberta, tmp_path / "folder")


@pytest.mark.parametrize(
    "row", [r for r in CATALOG if r.family == "longformer"], ids=lambda r: r.name
)
def test_the_counts_of_the_catalog_are_those_of_transformers(torch, transformers, row):
    arguments = {"vocabulary_size": 50_265, "sequence_length": 4096, **row.arguments}
    width = arguments["hidden_dim"]
    config = transformers.LongformerConfig(
        vocab_size=arguments["vocabulary_size"], hidden_size=width, type_vocab_size=1,
        max_position_embeddings=arguments["sequence_length"] + 2, intermediate_size=4 * width,
        num_hidden_layers=arguments["num_layers"],
        num_attention_heads=arguments.get("num_heads", width // 64),
    )  # fmt: skip
    with third_party(), torch.device("meta"):
        model = transformers.LongformerForMaskedLM(config)
    # Two unused positions and the only token type.
    assert sum(p.numel() for p in model.parameters()) - 3 * width == row.parameters


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "plain"}, "require self-attention of the form window .* form='plain'"),
        ({"attention": "window:2,chunked"}, "require self-attention .* form='chunked'"),
        ({"max_global": 0}, "max_global must be positive with global_tokens='start'. Received: 0"),
        ({"max_global": -1, "global_tokens": ""}, "max_global must not be negative. Received: -1"),
        ({"global_tokens": "end"}, "must be one of '', 'start', 'question'. Received: 'end'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        longformer.build(**SIZES, **arguments)


def test_global_tokens_of_other_blocks_are_refused():
    for settings in ({"causal": True}, {"memory": True}):
        with pytest.raises(ValueError, match="that is not causal. Received: .*True"):
            Attention(16, 4, form="window:2", max_global=2, **settings)
    x, segments = tf.zeros((1, 4, 16)), tf.ones((1, 4), "int32")
    with pytest.raises(ValueError, match="if and only if the layer has .* global_mask=None"):
        TransformerBlock(16, 4, 24, attention="window:2", max_global=2)(x, segments)
    with pytest.raises(ValueError, match="if and only if the layer .* max_global=0"):
        TransformerBlock(16, 4, 24, attention="window:2")(x, segments, global_mask=segments)
