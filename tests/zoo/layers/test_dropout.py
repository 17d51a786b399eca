"""Dropout by random bytes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from zoo.layers.dropout import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9, 0.001])
def test_rate_and_mean(rate):
    rounded = max(1, round(256 * rate)) / 256
    out = Dropout(rate, seed=1)(tf.ones((500, 801)), training=True).numpy()
    deviation = np.sqrt(rounded * (1 - rounded) / out.size)
    assert abs((out == 0).mean() - rounded) < 5 * deviation
    np.testing.assert_allclose(np.unique(out[out > 0]), 1 / (1 - rounded), rtol=1e-6)


def test_elements_are_dropped_independently():
    """Neighbors share a random integer, but must be independent."""
    dropped = Dropout(0.5, seed=1)(tf.ones((400_000,)), training=True).numpy() == 0
    for gap in (1, 2, 3, 4, 8):
        both = (dropped[gap:] & dropped[:-gap]).mean()
        assert abs(both - 0.25) < 0.005, gap


@pytest.mark.parametrize("shape", [(3,), (5, 7), (2, 3, 4)])
def test_any_shape_also_an_unknown_one(shape):
    layer = Dropout(0.5, seed=1)
    known = layer(tf.ones(shape), training=True)
    assert known.shape == shape
    unknown = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec([None] * len(shape))]
    )
    assert unknown(tf.ones(shape)).shape == shape


def test_nothing_is_dropped_outside_training_or_at_rate_zero():
    x = tf.ones((10, 10))
    assert Dropout(0.5)(x) is x
    assert Dropout(0.0)(x, training=True) is x


@pytest.mark.parametrize(("rate", "expected_count"), [(0.999, 4), (1.0, 0)])
def test_almost_all_and_all(rate, expected_count):
    out = Dropout(rate, seed=0)(tf.ones((4096,)), training=True).numpy()
    assert np.isfinite(out).all()
    assert np.count_nonzero(out) == pytest.approx(expected_count, abs=8 if expected_count else 0)


def test_a_mask_can_be_shared_along_an_axis():
    out = Dropout(0.5, noise_shape=(64, 1), seed=0)(tf.ones((64, 8)), training=True).numpy()
    assert (out == out[:, :1]).all()
    assert 0 < np.count_nonzero(out[:, 0]) < 64


def test_masks_differ_from_call_to_call_and_follow_the_seed():
    def masks(seed):
        layer = Dropout(0.5, seed=seed)
        return [layer(tf.ones((64,)), training=True).numpy().tolist() for _ in range(2)]

    assert masks(1) == masks(1)
    assert masks(1)[0] != masks(1)[1]
    assert masks(1) != masks(2)


def test_gradient_is_the_mask():
    layer = Dropout(0.5, seed=1)
    x = tf.constant(np.random.default_rng(0).normal(size=(8, 8)).astype("float32"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        out = layer(x, training=True)
    np.testing.assert_allclose(tape.gradient(out, x) * x, out, rtol=1e-6)


def test_saves_and_loads(tmp_path):
    model = keras.Sequential([keras.Input((4,)), Dropout(0.3, name="dropout")])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again.get_layer("dropout"), Dropout)
    assert again.get_layer("dropout").rate == 0.3


class Noise(keras.layers.Layer):
    """Uses random numbers without a seed generator."""

    def call(self, x, training=None):
        return x + keras.random.normal(keras.ops.shape(x)) if training else x


def test_numbers_drawn_without_a_seed_differ_from_update_to_update():
    """Also per micro-batch, and independent of earlier random numbers, as a resume needs."""
    from trainers.train.step import TrainStep
    from zoo.tasks.image_classification import ImageClassification

    def losses():
        keras.utils.set_random_seed(0)
        image = keras.Input((4,), name="image")
        model = keras.Model(image, keras.layers.Dense(2, activation="softmax")(Noise()(image)))
        step = TrainStep(model, ImageClassification(), keras.optimizers.SGD(0.0))
        data = {
            "image": tf.ones((4, 4)), "label": tf.zeros(4, tf.int32), "weight": tf.ones(4),
        }  # fmt: skip

        @tf.function(autograph=False)
        def loss(micro_batch):
            seeds = step._seeds(0, micro_batch)
            return step._pure_gradients(0, data, step.task.term_counts(data), seeds, {}, 1.0)[1][
                "loss"
            ]

        losses = []
        for number in (0, 1):
            step.count.assign(number)
            losses += [float(loss(tf.constant(micro_batch))) for micro_batch in (0, 1)]
        return losses

    first = losses()
    keras.random.normal((3,))
    assert losses() == first
    assert len(set(first)) == 4
