"""Gradient x input of every family that classifies texts."""

import keras
import numpy as np
import pytest
from keras import layers

import zoo
from tests import toys
from trainers.evaluation.attribution import attributions, embedded_tokens
from zoo import registry
from zoo.models.heads import add_head

_LENGTH = 12


def rows(count=3, words=10):
    """Returns inputs of pairs of texts of different lengths, with padding."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(6, 6 + words, (count, _LENGTH)).astype("int32")
    tokens[:, 0], tokens[:, 4], tokens[:, 9:] = 2, 4, 0
    types = np.int32((np.arange(_LENGTH) > 4) & (tokens > 0))
    return {"tokens": tokens, "types": types, "segments": np.int32(tokens > 0)}


def logits(model, inputs):
    return np.array(model({tensor.name: inputs[tensor.name] for tensor in model.inputs}))


def test_a_linear_model_is_explained_exactly():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(16, 4, name="words")(tokens))
    model = keras.Model({"tokens": tokens}, layers.Dense(3)(x))
    model.set_weights([np.random.default_rng(1).normal(size=w.shape) for w in model.weights])
    embeddings, kernel, bias = model.get_weights()
    inputs, classes = rows(), np.array([2, 0, 1])
    actual = attributions(model, inputs, classes)
    expected = np.einsum("btc,cb->bt", embeddings[inputs["tokens"]], kernel[:, classes]) / _LENGTH
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    chosen = logits(model, inputs)[np.arange(3), classes]
    np.testing.assert_allclose(actual.sum(1), chosen - bias[classes], atol=1e-5)


def test_scores_of_ngrams_go_to_their_tokens():
    model = zoo.build("linear_text", num_classes=3, buckets=512, ngrams=2)
    generator = np.random.default_rng(1)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
    inputs, classes = rows(), np.array([2, 0, 1])
    inputs["types"] = np.zeros_like(inputs["types"])  # the overlap of two texts has no tokens
    actual = attributions(model, inputs, classes)
    bias = model.get_weights()[-1]
    chosen = logits(model, inputs)[np.arange(3), classes]
    np.testing.assert_allclose(actual.sum(1), chosen - bias[classes], atol=1e-5)
    assert not actual[inputs["tokens"] < 6].any()
    # The score of a token changes with its own n-grams alone.
    changed = {key: value.copy() for key, value in inputs.items()}
    changed["tokens"][:, 1] = 6 + (changed["tokens"][:, 1] - 5) % 10
    difference = np.abs(attributions(model, changed, classes) - actual) > 1e-6
    assert difference[:, 1:3].all()
    assert not difference[:, 3:].any()


# Families, and whether their outputs are smooth functions of the embeddings.
_FAMILIES = {
    "encoder_nano": True, "bert_tiny": True, "gpt_nano": True, "llama_nano": True,
    "lstm_generator": True, "longformer_nano": True, "electra_nano": True, "reformer_nano": False,
}  # fmt: skip


@pytest.mark.parametrize("name", _FAMILIES)
def test_the_sum_is_the_derivative_by_the_scale_of_all_embeddings(name):
    arguments = {**registry.entry(name).tiny, "vocabulary_size": 16}
    keras.utils.set_random_seed(0)
    model = add_head(zoo.build(name, **arguments), 3, pooling="mean")
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:  # larger than initial weights, for the differences
        value = variable.numpy()
        variable.assign(value + generator.normal(0, 0.2, value.shape))
    inputs, classes = rows(), np.array([0, 1, 2])
    actual = attributions(model, inputs, classes)
    assert actual.shape == (3, _LENGTH)
    assert np.isfinite(actual).all()
    assert np.abs(actual[:, :9]).max(1).min() > 0
    if not _FAMILIES[name]:
        return
    (embeddings,) = embedded_tokens(model)._keras_history.operation.weights
    value, values = embeddings.numpy(), []
    for scale in (1.005, 0.995):
        embeddings.assign(scale * value)
        values.append(logits(model, inputs)[np.arange(3), classes])
    embeddings.assign(value)
    np.testing.assert_allclose(actual.sum(1), (values[0] - values[1]) / 0.01, atol=0.02)


def test_many_rows_of_a_loaded_model_in_bfloat16(tmp_path):
    with_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = zoo.build("encoder_nano", **{**registry.entry("encoder_nano").tiny})
        model = add_head(model, 3)
    finally:
        keras.config.set_dtype_policy(with_policy)
    model.save(tmp_path / "model.keras")
    inputs, classes = rows(20), np.arange(20) % 3
    expected = attributions(model, inputs, classes)
    assert expected.dtype == np.float32
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(attributions(loaded, inputs, classes), expected, atol=1e-4)
    last = {key: value[17:] for key, value in inputs.items()}
    np.testing.assert_allclose(attributions(model, last, classes[17:]), expected[17:], atol=1e-3)


def test_models_without_embedded_tokens_are_not_explained():
    assert attributions(toys.norm_model(), {}, np.array([0])) is None
    tokens = keras.Input((4,), dtype="int32", name="types")
    x = layers.Flatten()(layers.Embedding(4, 2)(tokens))
    assert attributions(keras.Model(tokens, layers.Dense(2)(x)), {}, np.array([0])) is None
