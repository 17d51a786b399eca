"""The task of image classification."""

import numpy as np
import pytest
import tensorflow as tf

import zoo
from trainers.config.recipe import resolve
from zoo import registry
from zoo.data import Dataset
from zoo.errors import UsageError

LABEL = np.int64([0] * 6 + [1] * 2)


def make_data(names=("a", "b")):
    image = np.random.default_rng(0).integers(0, 256, (8, 20, 18, 3)).astype("uint8")
    splits = {"train": {"image": image, "label": LABEL}}
    return Dataset("rare", splits, names, "rare")


def test_class_weights_balance_the_training_loss():
    data = make_data()
    task = registry.build_task("image_classification", class_weights=True)
    model = zoo.build("cnn_classifier", input_shape=(20, 18, 3), filters=(2, 2, 2), num_classes=2)
    task.bind(model, data)
    batch = {key: tf.constant(value) for key, value in data.splits["train"].items()}
    batch["weight"] = tf.constant([1.0] * 7 + [0.0])  # the last row is padding
    training = task.prepare(batch, None, True)
    counts = training["counts"].numpy()
    np.testing.assert_allclose(counts, [8 / 12] * 6 + [2, 0], rtol=1e-6)
    assert float(task.term_counts(training)["loss"]) == pytest.approx(6.0)
    probabilities = np.array(model(training["image"]))
    losses = -np.log(probabilities[np.arange(8), LABEL])
    forward = task.forward(model, training, True)
    assert float(forward.sums["loss"]) == pytest.approx(float((losses * counts).sum()), rel=1e-5)
    assert float(forward.statistics["accuracy"][1]) == 7.0
    held_out = task.prepare(batch, None, False)
    assert float(task.term_counts(held_out)["loss"]) == 7.0
    assert float(task.forward(model, held_out, False).sums["loss"]) == pytest.approx(
        float(losses[:7].sum()), rel=1e-5
    )


def test_class_weights_and_mixup_exclude_each_other():
    with pytest.raises(UsageError, match="class_weights must be false with the augmentation"):
        registry.build_task("image_classification", class_weights=True, augment=("mixup:0.2",))


@pytest.mark.parametrize(("names", "count"), [(("a", "b"), 2), ((), 2), (("a", "b", "c"), 3)])
def test_sizes_follow_the_data(names, count):
    task = registry.build_task("image_classification")
    arguments = {"input_shape": (), "num_classes": 0, "hidden_dim": 4}
    completed = task.complete(arguments, make_data(names))
    assert completed == {"input_shape": (20, 18, 3), "num_classes": count, "hidden_dim": 4}
    assert task.complete({"input_shape": (9, 9, 1), "num_classes": 5}, make_data()) == {
        "input_shape": (9, 9, 1), "num_classes": 5
    }  # fmt: skip
    assert task.complete({"sides": 3}, make_data()) == {"sides": 3}


def test_recipes_follow_the_data_that_the_user_names():
    model = resolve("cnn_digits", [("data.source", "folder:x")]).model
    assert (model.num_classes, model.input_shape) == (0, ())
    model = resolve("cnn_digits", [("data.source", "folder:x"), ("model.num_classes", "7")]).model
    assert (model.num_classes, model.input_shape) == (7, ())
    model = resolve("cnn_digits").model
    assert (model.num_classes, model.input_shape) == (10, (28, 28, 1))
