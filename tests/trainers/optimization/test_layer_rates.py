"""Learning rates that fall from block to block, and blocks that are frozen at first."""

import keras
import numpy as np
import pytest

import zoo
from trainers.optimization.optimizers import apply_rules, blocks_above, inner, make_optimizer
from zoo import registry
from zoo.errors import UsageError
from zoo.models.heads import add_head


@pytest.fixture(scope="module")
def model():
    return add_head(zoo.build("encoder_nano", **registry.entry("encoder_nano").tiny), 2)


def changes(model, updates=1, **arguments):
    """Returns how much each variable changes per update with gradients of 1 and a rate of 1."""
    optimizer, rules = make_optimizer("sgd", 1.0, momentum=0.0, **arguments)
    variables = model.trainable_weights
    apply_rules(optimizer, variables, rules, [model])
    inner(optimizer).build(variables)
    result = []
    for _ in range(updates):
        before = [v.numpy() for v in variables]
        optimizer.apply([keras.ops.ones_like(v) for v in variables], variables)
        result.append({
            v.path: (old - v.numpy()) for v, old in zip(variables, before, strict=True)
        })  # fmt: skip
        for v, old in zip(variables, before, strict=True):
            v.assign(old)
    return result


def test_the_rate_falls_from_block_to_block(model):
    (change,) = changes(model, layer_decay=0.5)
    expected = {"logits": 1, "final_norm": 1, "block_1": 0.5, "neighbors_1": 0.5, "block_0": 0.25,
                "neighbors_0": 0.25, "embedding_norm": 0.25, "embedding": 0.25}  # fmt: skip
    assert {path.partition("/")[0] for path in change} == expected.keys()
    for path, values in change.items():
        np.testing.assert_allclose(values, expected[path.partition("/")[0]], rtol=1e-4)


def test_weight_decay_has_the_rate_of_the_variable(model):
    arguments = {"layer_decay": 0.5, "weight_decay": 0.1, "weight_decay_exclude": "norm"}
    (change,) = changes(model, **arguments)
    kernel = next(v for v in model.weights if v.path == "block_0/feed_forward/up/kernel")
    expected = 0.25 * (1 + 0.1 * kernel.numpy())
    np.testing.assert_allclose(change[kernel.path], expected, rtol=1e-3)


def test_only_the_head_trains_at_first(model):
    first, second = changes(model, updates=2, frozen_steps=1)
    for path, values in first.items():
        moves = path.startswith(("logits", "final_norm"))
        np.testing.assert_allclose(values, 1.0 if moves else 0.0, rtol=1e-4)
    assert all(np.allclose(values, 1.0, rtol=1e-4) for values in second.values())


def test_models_without_blocks_are_refused():
    cnn = zoo.build("cnn_classifier", **registry.entry("cnn_classifier").tiny)
    with pytest.raises(UsageError, match="require a model with transformer blocks"):
        blocks_above(cnn, cnn.trainable_weights)
