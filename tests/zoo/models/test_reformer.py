"""A Reformer equals that of transformers, decodes exactly, and refuses unsupported compression."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.third_party import third_party
from trainers.compress_jobs import calibrated
from trainers.compression import distill, low_rank, structured
from zoo import keras_internals, registry
from zoo.errors import UsageError
from zoo.generation.decoding import can_generate, decoding
from zoo.layers import attention as attention_forms
from zoo.layers.low_rank import LowRank
from zoo.models import reformer

T, VOCABULARY = 24, 19
SIZES = {
    "vocabulary_size": VOCABULARY, "sequence_length": T, "num_layers": 4, "hidden_dim": 16,
    "num_heads": 2, "intermediate_dim": 24, "dropout": 0.0, "position_shape": (4, 6),
    "position_widths": (4, 12),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(1, VOCABULARY, (2, T)).astype("int32")
ONE_DOCUMENT = np.ones_like(TOKENS)


def build(attention, **arguments):
    keras.utils.set_random_seed(0)
    model = reformer.build(**{**SIZES, "attention": attention, **arguments})
    generator = np.random.default_rng(1)
    for v in model.trainable_variables:  # large enough that attention matters
        v.assign(generator.normal(v.path.endswith("gamma"), 0.4, v.shape))
    return model


def logits_of(model, tokens=TOKENS, segments=ONE_DOCUMENT):
    return model({"tokens": tokens, "segments": segments}).numpy()


# --- against another implementation ---------------------------------------------------------------


def their_weights(model, torch):
    """Returns our weights under the names of transformers."""
    state = {}

    def put(name, *arrays):
        for key, x in zip(("weight", "bias"), arrays, strict=False):
            x = np.asarray(x)
            state[f"{name}.{key}"] = torch.tensor(x.T if x.ndim == 2 else x)

    embedding, positions = model.get_layer("embedding"), model.get_layer("positions")
    stack, projection = model.get_layer("reversible"), model.get_layer("projection")
    put("reformer.embeddings.word_embeddings", np.transpose(embedding.embeddings))
    for i, (table, axis) in enumerate(((positions.rows, 1), (positions.columns, 0))):
        name = f"reformer.embeddings.position_embeddings.weights.{i}"
        state[name] = torch.tensor(np.expand_dims(table, axis))
    for i, (f, g) in enumerate(stack.pairs):
        layer = f"reformer.encoder.layers.{i}"
        put(f"{layer}.attention.layer_norm", f.norm.gamma, f.norm.beta)
        shared = f.attention.form.shares_query_key
        names = ("query_key", "value") if shared else ("query", "key", "value")
        kernels = np.split(f.attention.query_key_value.kernel.numpy(), len(names), axis=1)
        for name, kernel in zip(names, kernels, strict=True):
            put(f"{layer}.attention.self_attention.{name}", kernel)
        put(f"{layer}.attention.output.dense", f.attention.output_projection.kernel)
        put(f"{layer}.feed_forward.layer_norm", g.norm.gamma, g.norm.beta)
        for name, dense in (("dense", g.feed_forward.up), ("output", g.feed_forward.down)):
            put(f"{layer}.feed_forward.{name}.dense", dense.kernel, dense.bias)
    norm = model.get_layer("final_norm")
    put("reformer.encoder.layer_norm", norm.gamma, norm.beta)
    put("lm_head.decoder", projection.kernel, projection.bias)
    return state


def theirs(model, torch, transformers, monkeypatch, rounds, **local):
    """Returns the logits of transformers' model; ours then uses the buckets of that model."""
    layers = [
        "lsh" if f.attention.form.shares_query_key else "local"
        for f, _ in model.get_layer("reversible").pairs
    ]
    config = transformers.ReformerConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_attention_heads=2, attention_head_size=8,
        feed_forward_size=24, attn_layers=layers, axial_pos_shape=(4, 6),
        axial_pos_embds_dim=(4, 12), max_position_embeddings=T, hidden_act="relu", is_decoder=True,
        hidden_dropout_prob=0.0, local_attention_probs_dropout_prob=0.0,
        lsh_attention_probs_dropout_prob=0.0, lsh_attn_chunk_length=4, num_buckets=4,
        num_hashes=rounds, hash_seed=3, layer_norm_eps=1e-5, use_cache=False, **local,
    )  # fmt: skip
    with third_party(), torch.no_grad():
        other = transformers.ReformerModelWithLMHead(config).eval()
        missing, unexpected = other.load_state_dict(their_weights(model, torch), strict=False)
        assert not unexpected
        assert {name for name in missing if "mask_value" not in name} <= {"lm_head.bias"}
        buckets = []
        for layer in other.reformer.encoder.layers:
            if hasattr(layer.attention.self_attention, "query_key"):
                layer.attention.self_attention.register_forward_hook(
                    lambda module, args, out: buckets.append(out.buckets.numpy())
                )
        expected = other(torch.tensor(TOKENS, dtype=torch.long)).logits.numpy()
    assert len(buckets) == layers.count("lsh")
    queue = list(buckets)
    monkeypatch.setattr(
        attention_forms, "hash_buckets", lambda *_: tf.constant(queue.pop(0), "int32")
    )
    return expected, buckets


def rows_that_see_others(buckets, chunk=4):
    """Returns (B, T): whether each head sees another position in some round."""
    batch, heads, rounds, length = buckets.shape
    out = np.zeros((batch, heads, length), bool)
    for b, h in np.ndindex(batch, heads):
        ring = [
            position
            for r in range(rounds)
            for position in np.argsort(buckets[b, h, r], kind="stable")
        ]
        chunks = np.reshape(ring, (-1, chunk))
        for i, own in enumerate(chunks):
            seen = np.concatenate([own, chunks[i - 1]])
            for position in own:
                out[b, h, position] |= (seen < position).any()
    return out.all(1)


@pytest.mark.parametrize(("chunk", "chunks_before"), [(1, 4), (12, 1)], ids=["window", "all"])
def test_local_layers_are_those_of_transformers(
    chunk, chunks_before, torch, transformers, monkeypatch
):
    """In chunks of one position, local attention of transformers is a window."""
    model = build(f"window:{5 if chunk == 1 else T}")
    expected, _ = theirs(
        model, torch, transformers, monkeypatch, 1,
        local_attn_chunk_length=chunk, local_num_chunks_before=chunks_before,
    )  # fmt: skip
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits_of(model), expected, atol=1e-4)


@pytest.mark.parametrize(("num_layers", "rounds"), [(4, 1), (2, 2)])
def test_lsh_layers_are_those_of_transformers(num_layers, rounds, torch, transformers, monkeypatch):
    """With the same buckets.

    With several rounds, rows that only see themselves are left out: transformers rounds the weights
    of the rounds there. Such rows come last in the model, so that no other row sees them.
    """
    model = build(f"window:5,lsh:{rounds}:4", num_layers=num_layers)
    expected, buckets = theirs(
        model, torch, transformers, monkeypatch, rounds,
        local_attn_chunk_length=1, local_num_chunks_before=4,
    )  # fmt: skip
    rows = np.ones((2, T), bool) if rounds == 1 else rows_that_see_others(buckets[0])
    assert rows.mean() > 0.7
    np.testing.assert_allclose(logits_of(model)[rows], expected[rows], atol=1e-3)


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["window:5", "window:5,lsh:2"])
def test_decoding_equals_the_forward_pass(attention):
    model = build(attention)
    expected, steps = logits_of(model), decoding(model)
    assert steps.sequence_length == T
    assert steps.vocabulary_size == VOCABULARY
    for counts in ([T], [7, 1, 1, 6, *[1] * 9]):
        cache, first, outputs = steps.start(2, T), 0, []
        for count in counts:
            logits, cache = steps.step(
                TOKENS[:, first : first + count], cache, first, steps.weights()
            )
            outputs.append(logits)
            first += count
        out = np.concatenate(outputs, 1)
        np.testing.assert_allclose(out, expected, atol=1e-4 * np.abs(expected).max())


def test_neither_other_documents_nor_later_positions_are_seen():
    """With one chunk of LSH. Otherwise both change the order of the buckets."""
    model = build("window:5,lsh:2:24,chunked:4,plain")
    segments = np.array([[1] * 10 + [2] * 14, [1] * 10 + [2] * 10 + [0] * 4], "int32")
    before, after = TOKENS.copy(), TOKENS.copy()
    before[:, :10] = 1
    after[:, 18:] = 1
    expected = logits_of(model, TOKENS, segments)
    assert np.isfinite(expected).all()
    for tokens, changed in ((before, slice(0, 10)), (after, slice(18, 24))):
        gaps = np.abs(logits_of(model, tokens, segments) - expected)
        assert gaps[:, changed].max() > 0.1
        gaps[:, changed] = 0
        assert gaps[segments > 0].max() < 1e-4


def test_a_longer_input_than_the_positions_is_refused():
    model = build("window:5")
    with pytest.raises(ValueError, match="must not exceed 24. Received: 25"):
        logits_of(model, np.ones((1, T + 1), "int32"), np.ones((1, T + 1), "int32"))


@pytest.mark.parametrize(
    ("length", "shape"), [(1, (1, 1)), (12, (3, 4)), (4096, (64, 64)), (65_536, (256, 256))]
)
def test_default_shape_of_positions(length, shape):
    assert reformer._shape(length) == shape
    model = reformer.build(sequence_length=length, num_layers=1, hidden_dim=8, num_heads=1)
    positions = model.get_layer("positions")
    assert (positions.shape, positions.widths) == (shape, (2, 6))


# --- compression ----------------------------------------------------------------------------------


def test_low_rank_kernels_keep_the_family():
    model = build("window:5,lsh:2")
    factors = [
        "embedding=4", "reversible/attention_0/attention/query_key_value=4",
        "reversible/feed_forward_1/feed_forward/up=4", "projection=4",
    ]  # fmt: skip
    smaller = low_rank.factorize(model, factors)
    products = {x.path for x in keras_internals.all_layers(smaller) if isinstance(x, LowRank)}
    assert products == {factor.partition("=")[0] for factor in factors}
    assert can_generate(smaller)
    steps = decoding(smaller)
    out, _ = steps.step(TOKENS, steps.start(2, T), 0)
    np.testing.assert_allclose(out, logits_of(smaller), atol=1e-4)


def test_integers_are_saved_and_loaded(tmp_path):
    model = build("window:5,lsh:2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras warns about layers that it does not quantize
        model.quantize("int8")
    stack = model.get_layer("reversible")
    assert stack.attention_0.attention.query_key_value.quantization_mode == "int8"
    assert stack.feed_forward_1.feed_forward.up.quantization_mode == "int8"
    model.save(tmp_path / "model.keras")
    copy = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(logits_of(copy), logits_of(model))
    steps = decoding(copy)
    out, _ = steps.step(TOKENS, steps.start(2, T), 0)
    np.testing.assert_allclose(out, logits_of(copy), atol=1e-4)


def test_unsupported_compression_is_refused():
    model = registry.build("reformer_nano", **registry.entry("reformer_nano").tiny)
    with pytest.raises(UsageError, match="No unit can be removed. .* Use prune or low_rank"):
        structured.decide(model, 0.5, "")
    for mode in ("gptq", "awq"):
        with pytest.raises(UsageError, match=f"keras_{mode} supports .* Received: 'reformer'"):
            calibrated.quantize(model, mode, {})
    for setting in ("attention", "hidden"):
        settings = {"attention": 0.0, "hidden": 0.0, setting: 1.0}
        with pytest.raises(UsageError, match=f"distill.{setting} requires transformer blocks"):
            distill._pairs(model, model, settings)
