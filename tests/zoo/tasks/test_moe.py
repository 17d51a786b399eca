"""Language modeling with experts: the balance term, the bias, statistics, splits of a batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainers.train.step import TrainStep
from zoo import registry
from zoo.errors import UsageError
from zoo.layers.experts.block import expert_blocks

TINY = dict(registry.entry("moe_nano").tiny)


def built(task_arguments=None, **changes):
    """Returns a model, its bound task, and a prepared batch of 8 rows, the last one padding."""
    keras.utils.set_random_seed(0)
    model = registry.build("moe_nano", **{**TINY, **changes})
    task = registry.build_task("moe", **(task_arguments or {})).bind(model, arguments=TINY)
    arrays = task.synthetic(model, 8, 0)
    weight = np.append(np.ones(7), 0).astype("float32")
    batch = task.prepare({**{k: tf.constant(v) for k, v in arrays.items()}, "weight": weight}, None,
                         True)  # fmt: skip
    return model, task, {k: tf.convert_to_tensor(v) for k, v in batch.items()}


def routings(model, batch):
    """Returns the routing of each block, computed layer by layer."""
    x = model.get_layer("embedding")(batch["tokens"])
    (mask,) = [layer for layer in model.layers if type(layer).__name__ == "MaskBias"]
    bias, sums = mask(batch["segments"]), []
    for block in expert_blocks(model):
        x, routing = block(x, bias, batch["segments"])
        sums.append(routing)
    return sums


def test_the_balance_term_is_the_formula_of_each_row():
    model, task, batch = built({"balance": 0.3})
    result = task.forward(model, batch, training=False)
    tokens = np.asarray(tf.reduce_sum(tf.cast(batch["segments"] > 0, tf.float32), 1))
    expected = 0.0
    for routing in routings(model, batch):
        for row in range(7):
            f = routing["load"][row] * 4 / (2 * tokens[row])
            p = routing["probability"][row] / tokens[row]
            expected += float(tf.reduce_sum(f * p)) * tokens[row] / 2
    np.testing.assert_allclose(result.sums["balance"], expected, rtol=1e-5)
    counts = task.term_counts(batch)
    np.testing.assert_allclose(counts["balance"], tokens[:7].sum())
    np.testing.assert_allclose(expected / counts["balance"], 1, atol=0.2)  # 1 if even
    assert task.terms == {"cross_entropy": 1.0, "balance": 0.3}


def test_loads_are_relative_to_the_mean_and_padded_rows_have_none():
    model, task, batch = built()
    statistics = task.forward(model, batch, training=False).statistics
    assert set(statistics) == set(task.statistics)
    metrics = {name: float(a) / float(b) for name, (a, b) in statistics.items()}
    for layer, routing in enumerate(routings(model, batch)):
        load = np.asarray(routing["load"])[:7].sum(0)
        loads = [metrics[f"load/{layer}/{expert}"] for expert in range(4)]
        np.testing.assert_allclose(loads, load / load.mean(), rtol=1e-5)
    assert metrics["dropped"] == 0
    assert 0.9 < metrics["router_entropy"] <= 1
    largest = task.derived_metrics({**metrics, "cross_entropy": 1.0})["max_load"]
    assert largest == max(v for k, v in metrics.items() if k.startswith("load/"))


def test_chunks_change_nothing():
    model, task, batch = built()
    whole = task.forward(model, batch, training=False)
    chunked = registry.build_task("moe", chunk=8).bind(model, arguments=TINY)
    parts = chunked.forward(model, batch, training=False)
    for name, value in whole.sums.items():
        np.testing.assert_allclose(parts.sums[name], value, rtol=1e-5)
    np.testing.assert_array_equal(parts.totals["load"], whole.totals["load"])


def test_dropped_pairs_are_counted_in_training_alone():
    model, task, batch = built(capacity_factor=0.5)
    for training, is_dropped in ((True, True), (False, False)):
        total, weight = task.forward(model, batch, training).statistics["dropped"]
        assert (float(total) > 0) == is_dropped
    assert float(weight) == 2 * 2 * float(task.term_counts(batch)["balance"])


def test_the_bias_follows_the_load_of_the_whole_update():
    """Each micro-batch of two rows has other loads than the batch."""
    model, task, batch = built({"bias_rate": 0.25})
    load = np.stack([np.asarray(x["load"])[:7].sum(0) for x in routings(model, batch)])
    step = TrainStep(model, task, keras.optimizers.SGD(0.1), micro_batch_size=2)
    tf.function(step.update, autograph=False)(batch)
    expected = 0.25 * np.sign(load.mean(1, keepdims=True) - load)
    actual = [block.feed_forward.router.load_bias.numpy() for block in expert_blocks(model)]
    np.testing.assert_array_equal(actual, expected)
    assert np.abs(expected).sum() > 0


def test_the_bias_evens_the_load():
    """A router that prefers expert 0 gives no expert much more than its share after 60 updates."""
    model, task, batch = built({"bias_rate": 0.005})
    for block in expert_blocks(model):
        block.feed_forward.router.load_bias.assign([0.2, 0.0, 0.0, 0.0])

    def max_load():
        statistics = task.forward(model, batch, training=False).statistics
        metrics = {name: float(a) / float(b) for name, (a, b) in statistics.items()}
        return task.derived_metrics({**metrics, "cross_entropy": 1.0})["max_load"]

    assert max_load() > 1.9
    step = TrainStep(model, task, keras.optimizers.SGD(0.01))
    update = tf.function(step.update, autograph=False)
    for _ in range(60):
        update(batch)
    assert max_load() < 1.6


def test_a_model_without_experts_is_refused():
    model = registry.build("gpt_nano", **registry.entry("gpt_nano").tiny)
    with pytest.raises(UsageError, match="requires a model with experts, such as moe_nano"):
        registry.build_task("moe").bind(model)
