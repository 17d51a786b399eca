"""Recurrent depth: draws, truncated gradients, halting, and decoding with a cache per loop."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainers.train.step import TrainStep
from zoo import registry
from zoo.errors import UsageError
from zoo.generation.decoding import decoding
from zoo.models.looped import LoopedBlocks, loop_probabilities, looped_layer, set_loops

SIZES = {
    "vocabulary_size": 16, "sequence_length": 12, "num_layers": 1, "hidden_dim": 16, "num_heads": 2,
    "loops": 3, "loop_range": (1, 4), "backprop_loops": 2,
}  # fmt: skip


def model_of(**changes):
    keras.utils.set_random_seed(0)
    return registry.build("looped_nano", **{**SIZES, **changes})


def inputs_of(rows=2, length=8):
    tokens = np.random.default_rng(0).integers(0, 16, (rows, length)).astype("int32")
    return {"tokens": tokens, "segments": np.ones_like(tokens)}


def logits_of(model, training=False):
    return np.asarray(model(inputs_of(), training=training))


def with_draw(monkeypatch, model, loops):
    """Makes each update of a model draw `loops` loops."""
    monkeypatch.setattr(looped_layer(model), "draw", lambda: tf.constant(loops))


@pytest.mark.parametrize("loops", [1, 2, 3, 4])
def test_training_runs_the_loops_that_are_drawn(monkeypatch, loops):
    """1 is below the number of loops with gradients, 4 has two loops without."""
    model = model_of()
    with_draw(monkeypatch, model, loops)
    trained = logits_of(model, training=True)
    set_loops(model, loops)
    np.testing.assert_allclose(trained, logits_of(model), atol=1e-5)
    set_loops(model, loops + 1)
    assert np.abs(trained - logits_of(model)).max() > 1e-3


def test_gradients_pass_through_the_last_loops_alone(monkeypatch):
    """The gradient equals that of two loops that start from the state after two loops."""
    model, inputs = model_of(), inputs_of()
    with_draw(monkeypatch, model, 4)
    layer = looped_layer(model)
    x = tf.random.stateless_normal((2, 8, 16), (0, 0))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x, training=True) ** 3)
    kernel = layer.adapter.kernel.value
    gradient = tape.gradient(loss, kernel)
    h = layer.input_norm(x)
    state = layer._loop(layer._loop(h, h, None), h, None)
    with tf.GradientTape() as tape:
        end = layer._loop(layer._loop(tf.stop_gradient(state), h, None), h, None)
        loss = tf.reduce_sum(end**3)
    np.testing.assert_allclose(gradient, tape.gradient(loss, kernel), rtol=1e-3, atol=1e-3)
    assert inputs["tokens"].shape == (2, 8)


def test_draws_follow_the_distribution():
    layer = looped_layer(model_of(loop_draw="poisson", loops=3, loop_range=(1, 12)))
    probabilities = loop_probabilities("poisson", 3, (1, 12))
    draw = tf.function(layer.draw, autograph=False)
    draws = np.array([int(draw()) for _ in range(2000)])
    shares = np.bincount(draws, minlength=13)[1:] / len(draws)
    assert np.abs(shares - probabilities).max() < 0.04
    assert probabilities.sum() == pytest.approx(1)
    mean = (np.arange(1, 13) * probabilities).sum()
    assert 2.8 < mean < 3.4  # 0 loops are excluded
    np.testing.assert_allclose(loop_probabilities("uniform", 3, (2, 5)), 0.25)


def test_draws_depend_on_seed_and_step_alone():
    """Micro-batches and updates that are repeated draw the same numbers, other steps others."""
    model = model_of(loop_range=(1, 1000))
    task = registry.build_task("clm", chunk=0, cross_documents=False)
    step = TrainStep(model, task, keras.optimizers.SGD(0.1), seed=3)
    layer = looped_layer(model)

    def draw(count, micro_batch):
        step.count.assign(count)
        with keras.StatelessScope(step.seeded(step._seeds(0, micro_batch))):
            return int(layer.draw())

    assert draw(5, 0) == draw(5, 1) == draw(5, 0)
    assert len({draw(count, 0) for count in range(20)}) > 15


@pytest.mark.parametrize("halt", [0.0, 0.3])
def test_the_cache_gives_the_logits_of_the_forward_pass(halt):
    model = model_of(loops=4, num_layers=2)
    looped_layer(model).halt = halt
    expected = logits_of(model)
    parts, tokens = decoding(model), inputs_of()["tokens"]
    cache, outputs = parts.start(2, 8), []
    for first, end in ((0, 3), (3, 4), (4, 8)):
        logits, cache = parts.step(tf.constant(tokens[:, first:end]), cache, first)
        outputs.append(logits)
    np.testing.assert_allclose(np.concatenate(outputs, 1), expected, atol=1e-4)


def test_halting_keeps_the_states_that_have_converged():
    model = model_of(loops=6)
    layer = looped_layer(model)
    x = tf.random.stateless_normal((2, 8, 16), (0, 0))
    states = [h := layer.input_norm(x)]
    for _ in range(6):
        states.append(layer._loop(states[-1], h, None))
    whole = np.asarray(layer(x))
    set_loops(model, halt=1e-6)
    np.testing.assert_allclose(layer(x), whole, atol=1e-5)
    assert (np.asarray(layer.used_loops) == 6).all()
    sizes = [np.linalg.norm(b - a, axis=-1) / np.linalg.norm(b, axis=-1)
             for a, b in zip(states, states[1:], strict=False)]  # fmt: skip
    set_loops(model, halt=float(np.median(sizes[0])))
    layer(x)
    used = np.asarray(layer.used_loops)
    assert used.min() == 1
    np.testing.assert_array_equal(used == 1, sizes[0] <= np.median(sizes[0]))


def test_saved_models_keep_their_loops(tmp_path):
    model = model_of()
    set_loops(model, 5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert looped_layer(loaded).loops == 5
    np.testing.assert_array_equal(logits_of(model), logits_of(loaded))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loops": 0}, "loops, backprop_loops and num_layers must be positive.*loops=0"),
        ({"loop_range": (0, 3)}, "loop_range must be .* at least 1. Received: .0, 3."),
        ({"loop_range": (4, 3)}, "loop_range must be"),
        ({"loop_draw": "normal"}, "loop_draw must be one of uniform, poisson. Received: 'normal'"),
    ],
)
def test_wrong_arguments_are_refused(changes, words):
    with pytest.raises((ValueError, UsageError), match=words):
        model_of(**changes)


def test_loops_require_a_looped_model():
    gpt = registry.build("gpt_nano", vocabulary_size=16, num_layers=1, hidden_dim=16, num_heads=2)
    with pytest.raises(UsageError, match="looped blocks .* Received: 'gpt"):
        set_loops(gpt, halt=0.1)
    with pytest.raises(UsageError, match="must be positive. Received: 0"):
        set_loops(model_of(), 0)
    with pytest.raises(UsageError, match=r"must be in \(0, 1\). Received: 0"):
        set_loops(model_of(), halt=0.0)
    assert isinstance(looped_layer(model_of()), LoopedBlocks)
