"""The mixture of experts: routing in float32, padding, capacity, decoding, files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.zoo.layers.attention_forms.arrays import random
from zoo import registry
from zoo.errors import UsageError
from zoo.layers.experts.block import expert_blocks
from zoo.layers.experts.mixture import MixtureOfExperts
from zoo.layers.experts.router import Router

SIZES = {"hidden_dim": 16, "intermediate_dim": 8, "num_experts": 4, "experts_per_token": 2}


def layer(**changes):
    keras.utils.set_random_seed(0)
    built = MixtureOfExperts(**{**SIZES, "initializer_range": 0.4, **changes})
    built.build((None, None, 16))
    return built


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_gates_are_the_scores_of_the_chosen_experts(score):
    router = Router(4, 2, score, 1.0)
    router.build((None, 16))
    x = random(50, 16)
    experts, gates, probabilities = map(np.asarray, router(x))
    logits = x @ router.kernel
    scores = np.asarray(tf.nn.softmax(logits) if score == "softmax" else tf.sigmoid(logits))
    best = np.argsort(-scores, axis=1)[:, :2]
    np.testing.assert_array_equal(experts, best)
    chosen = np.take_along_axis(scores, best, 1)
    np.testing.assert_allclose(gates, chosen / chosen.sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(probabilities, scores / scores.sum(1, keepdims=True), rtol=1e-5)


def test_the_load_bias_changes_the_choice_and_not_the_gates():
    router = Router(4, 2, "sigmoid", 0.1)
    router.build((None, 16))
    x = random(50, 16)
    before, _, _ = router(x)
    router.load_bias.assign([0.0, 0.0, 0.0, 9.0])
    experts, gates, _ = map(np.asarray, router(x))
    assert (experts[:, 0] == 3).all()
    assert not (np.asarray(before)[:, 0] == 3).all()
    scores = np.asarray(tf.sigmoid(x @ router.kernel))
    chosen = np.take_along_axis(scores, experts, 1)
    np.testing.assert_allclose(gates, chosen / chosen.sum(1, keepdims=True), rtol=1e-5)


def test_a_single_expert_per_token_still_teaches_the_router():
    moe = layer(experts_per_token=1)
    with tf.GradientTape() as tape:
        out = tf.reduce_sum(moe(random(2, 6, 16))[0] ** 2)
    assert np.abs(tape.gradient(out, moe.router.kernel.value)).max() > 1e-3


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_the_router_computes_in_float32(precision):
    keras.config.set_dtype_policy(precision)
    try:
        moe = layer()
    finally:
        keras.config.set_dtype_policy("float32")
    out, routing = moe(tf.cast(random(2, 6, 16), moe.compute_dtype))
    assert out.dtype == moe.compute_dtype
    assert {x.dtype for x in routing.values()} == {tf.float32}
    x = tf.cast(random(12, 16), moe.compute_dtype)
    _, gates, probabilities = moe.router(x)
    assert gates.dtype == probabilities.dtype == tf.float32
    logits = tf.cast(x, tf.float32) @ moe.router.kernel.numpy()
    np.testing.assert_allclose(probabilities, tf.nn.softmax(logits), rtol=1e-5)


def test_padding_is_not_routed():
    moe = layer(num_shared_experts=1)
    x, segments = random(2, 6, 16), tf.constant([[1, 1, 2, 2, 0, 0], [0] * 6])
    out, routing = moe(x, segments)
    np.testing.assert_array_equal(tf.reduce_sum(routing["load"], 1), [8, 0])
    np.testing.assert_allclose(tf.reduce_sum(routing["probability"], 1), [4, 0], rtol=1e-6)
    np.testing.assert_array_equal(routing["entropy"][1], 0)
    np.testing.assert_allclose(out[1], moe.shared(x)[1], atol=1e-6)
    np.testing.assert_allclose(out[0, :4], moe(x)[0][0, :4], atol=1e-6)


def test_the_capacity_is_that_of_a_row_and_drops_no_earlier_token():
    moe = layer(capacity_factor=0.6)
    x = random(3, 12, 16)
    out, routing = moe(x, training=True)
    assert (np.asarray(routing["dropped"]) > 0).all()
    np.testing.assert_array_equal(tf.reduce_sum(routing["load"], 1), [24] * 3)  # with dropped ones
    alone, _ = moe(x[1:2], training=True)
    np.testing.assert_allclose(out[1:2], alone, atol=1e-6)
    changed = tf.concat([x[:, :8], random(3, 4, 16, seed=5)], 1)
    np.testing.assert_allclose(out[:, :8], moe(changed, training=True)[0][:, :8], atol=1e-6)
    inference, routing = moe(x)
    assert not np.asarray(routing["dropped"]).any()
    np.testing.assert_allclose(inference, layer()(x)[0], atol=1e-6)


def test_sequences_of_unknown_length_and_xla():
    moe = layer()
    x = random(2, 6, 16)
    for settings in ({}, {"jit_compile": True}):
        call = tf.function(
            lambda x: moe(x)[0], autograph=False,
            input_signature=[tf.TensorSpec((None, None, 16))] if not settings else None, **settings,
        )  # fmt: skip
        np.testing.assert_allclose(call(x), moe(x)[0], atol=1e-5)


def test_parameters_of_experts_that_are_not_chosen_are_inactive():
    assert layer().inactive_parameters == 2 * (16 * 16 + 8 * 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts_per_token": 5}, "experts_per_token=5, num_experts=4"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"experts_per_token": 0}, "experts_per_token=0"),
        ({"score": "hard"}, "score must be one of softmax, sigmoid"),
        ({"capacity_factor": -1.0}, "capacity_factor must be of type float from 0"),
        ({"num_shared_experts": -1}, "num_shared_experts must be of type int from 0"),
    ],
)
def test_impossible_sizes_are_one_line(changes, message):
    with pytest.raises(UsageError, match=message) as error:
        registry.build("moe_nano", **{**registry.entry("moe_nano").tiny, **changes})
    assert "\n" not in str(error.value)


def test_blocks_are_found_in_order():
    model = registry.build("moe_nano", **registry.entry("moe_nano").tiny)
    assert [block.name for block in expert_blocks(model)] == ["block_0", "block_1"]
