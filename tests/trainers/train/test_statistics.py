"""Averaged weights are evaluated, saved and exported with batch statistics of these weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import zoo
from tests import toys
from tests.trainers.train.test_resume import assert_same_end, cut_at
from trainers.run.workdir import read_metrics
from trainers.train.statistics import statistics_batches
from trainers.train.step import TrainStep
from zoo import registry
from zoo.errors import UsageError
from zoo.tasks.image_classification import ImageClassification


def slow_norm(name="toy_slow_norm"):
    """Returns a model with default momentum: 40 updates keep 2/3 of the initial statistics."""
    image = keras.Input((4, 4, 1), name="image")
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="convolution")(image)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Flatten(name="flatten")(keras.layers.ReLU(name="relu")(x))
    x = keras.layers.Dense(2, activation="softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(image, x, name=name)


registry.register("toy_slow_norm", slow_norm, "image_classification")


def two_classes(examples=76):
    """Returns a dataset of bright and dark images."""
    generator = np.random.default_rng(0)
    label = np.arange(examples, dtype="int32") % 2
    image = generator.integers(0, 40, (examples, 4, 4, 1)) + 60 + 60 * label[:, None, None, None]
    split = {"image": image.astype("uint8"), "label": label}
    return zoo.data.Dataset("two", {"train": split, "test": split}, ("dark", "bright"), "two")


def recipe(**changes):
    config = toys.recipe(
        "toy_slow_norm", "image_classification",
        **{"steps": 40, "ema": 0.99, "checkpoint_every": 20, "evaluate_every": 20, **changes},
    )  # fmt: skip
    config.data.validation_size = 12
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    from trainers.train.trainer import Trainer

    trainer = Trainer(recipe(), tmp_path_factory.mktemp("whole") / "run", dataset=two_classes())
    trainer.metrics = trainer.train()
    return trainer


def accuracy(model, data):
    arrays = data.splits["train"]
    predictions = model.predict(arrays["image"] / 255.0, verbose=0)
    return (predictions.argmax(-1) == arrays["label"]).mean()


def test_evaluation_best_and_final_model_have_the_statistics_of_the_averages(whole):
    for checkpoint in ("final", "best"):
        saved = zoo.load(whole.workdir.path, checkpoint)
        assert accuracy(saved, two_classes()) == 1.0, checkpoint
    assert whole.metrics["accuracy"] == 1.0
    lines = [x for x in read_metrics(whole.workdir.path) if "val_accuracy" in x]
    assert [line["val_accuracy"] for line in lines] == [1.0, 1.0]
    # The statistics are those of the saved weights over the 64 rows of four full batches.
    saved = zoo.load(whole.workdir.path)
    features = keras.Model(saved.input, saved.get_layer("convolution").output)
    x = features(whole.arrays["image"] / 255.0).numpy()
    norm = saved.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean, x.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, x.var((0, 1, 2)), rtol=0.1)


def test_training_goes_on_with_its_own_statistics(whole, run):
    """Evaluations do not change the trained weights and statistics."""
    never = run(recipe(evaluate_every=40), two_classes())
    assert toys.difference(whole.step.net, never.step.net) == 0
    with whole.step.averaged():
        changed = [v.numpy() for v in whole.step.net.non_trainable_weights]
    for variable, value in zip(whole.step.net.non_trainable_weights, changed, strict=True):
        assert np.abs(variable.numpy() - value).max() > 1e-2


def test_only_the_variables_that_are_asked_for_change(whole):
    """If only one of several parts has averages, the statistics of the others are unchanged."""
    step = whole.step
    variable = step.net.get_layer("norm").moving_mean
    before = {id(v): v.numpy() for v in step.net.weights}
    step.statistics([variable])
    changed = [v for v in step.net.weights if not np.array_equal(v.numpy(), before[id(v)])]
    variable.assign(before[id(variable)])
    assert [v.path for v in changed] == [variable.path]


def test_a_resumed_run_ends_with_the_same_file(whole, run, tmp_path):
    parts = cut_at(whole.workdir.path, tmp_path / "parts", 20)
    run(recipe(), two_classes(), parts)
    assert_same_end(whole.workdir.path, parts)


def test_replicas_have_the_same_statistics(whole, run):
    other = run(recipe(strategy="mirrored", replicas=2), two_classes())
    one, two = (zoo.load(trainer.workdir.path) for trainer in (whole, other))
    assert toys.difference(one, two) <= 1e-4


@pytest.mark.parametrize(
    ("replicas", "micro", "rows"), [(1, 0, 16), (1, 4, 4), (2, 4, 8), (2, 0, 16)]
)
def test_statistics_are_of_the_rows_that_an_update_normalizes_together(replicas, micro, rows):
    """Of 76 examples, the four full batches count; the short batch is excluded."""
    arrays, task = two_classes().splits["train"], ImageClassification()
    trainer = recipe(micro_batch_size=micro).trainer
    batches = [*statistics_batches(arrays, task.prepare, trainer, replicas)]
    assert [len(batch["weight"]) for batch in batches] == [rows] * (64 // rows)
    assert all(np.all(batch["weight"] == 1) for batch in batches)


def test_a_step_without_batches_is_refused():
    """Keras' `fit` would combine averaged weights with the statistics of the raw weights."""
    model = slow_norm()
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    step = TrainStep(model, ImageClassification(), optimizer)
    data = {k: tf.constant(v[:8]) for k, v in two_classes().splits["train"].items()}
    data = {**data, "image": tf.cast(data["image"], tf.float32), "weight": tf.ones(8)}
    with pytest.raises(UsageError, match="set trainer.ema=0, or train"):
        step.fit(tf.data.Dataset.from_tensors(data), shuffle=False, verbose=0)
    step.update(data)
    with pytest.raises(UsageError, match="without `statistics`"), step.averaged():
        pass
    renorm = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(renorm=True)])
    with pytest.raises(UsageError, match="Batch renormalization does not support averaged"):
        TrainStep(renorm, ImageClassification(), keras.optimizers.SGD(0.1, use_ema=True))


def test_ranges_of_eight_bits_move_on_with_the_averages(run):
    """The saved model equals the evaluated model, including its ranges and statistics."""
    config = recipe(ema=0.9)
    config.compress.qat.on = True
    trainer = run(config, two_classes())
    saved = zoo.load(trainer.workdir.path)
    assert accuracy(saved, two_classes()) == trainer.metrics["accuracy"] == 1.0
