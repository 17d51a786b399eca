"""The features of a frozen base are computed once and cached; the cache is never stale."""

import numpy as np
import pytest

from tests import toys
from trainers.input import features
from trainers.input.features import features_of
from trainers.run.workdir import read_metrics
from zoo import registry
from zoo.errors import RunError
from zoo.tasks.image_classification import ImageClassification


@pytest.fixture(autouse=True)
def cache(cache):
    return cache / "features"


@pytest.fixture
def passes(monkeypatch):
    """Returns a list of the folders whose features are computed."""
    names = []
    write = features._write

    def counting(folder, *rest):
        names.append(folder.name)
        write(folder, *rest)

    monkeypatch.setattr(features, "_write", counting)
    return names


def recipe(model=None, **task):
    return toys.recipe(
        "toy_frozen", "image_classification", model_arguments=model, task_arguments=task
    )


def cache_events(trainer):
    lines = read_metrics(trainer.workdir.path)
    return [x["detail"] for x in lines if x.get("event") == "feature cache"]


def test_kept_features_teach_the_head_what_pictures_would(run):
    data = toys.image_data(test=20)
    cached = run(recipe(), data)
    whole = run(recipe(feature_views=0), data)
    assert toys.difference(cached.step.net, whole.step.net) < 1e-5
    assert cached.metrics["accuracy"] == whole.metrics["accuracy"]
    assert cached.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-5)
    assert {len(array) for array in cached.arrays.values()} == {70}  # no padding rows
    assert len(cache_events(cached)) == 2
    assert not cache_events(whole)


def test_the_base_is_run_once_for_all_runs_and_epochs(run, passes):
    data = toys.image_data(test=20)
    run(recipe(), data)
    assert len(passes) == 2  # train and test
    config = recipe()
    config.optimizer.learning_rate, config.trainer.steps = 0.03, 15
    again = run(config, data)
    assert len(passes) == 2
    assert all(detail.startswith(("train read", "test read")) for detail in cache_events(again))


def test_a_resumed_run_finds_them_again(run, passes, tmp_path):
    data = toys.image_data()
    whole = run(recipe(), data)
    config = recipe()
    config.data.validation_size = 0

    import keras

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch >= 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, data, tmp_path / "broken", callbacks=[Stop()])
    resumed = run(config, data, tmp_path / "broken")
    assert len(passes) == 1
    assert toys.difference(whole.step.net, resumed.step.net) == 0


def new_cache_folders(passes, model=None, data=None, change=None, seed=0, **task):
    """Returns the names of the cache folders that these arguments write."""
    before = len(passes)
    model = registry.build("toy_frozen", **(model or {}))
    model.get_layer("convolution").kernel.assign(np.full((3, 3, 1, 4), 0.1))
    if change:
        change(model)
    task = ImageClassification(**task)
    arrays = (data or toys.image_data()).splits["train"]
    features_of(task.frozen_part(model), task, arrays, {"shift": task.affine["shift"]}, seed)
    return passes[before:]


def test_what_they_follow_from_names_them(passes):
    def another_weight(model):
        kernel = model.get_layer("convolution").kernel
        value = kernel.numpy()
        value[0, 0, 0, 0] = np.nextafter(value[0, 0, 0, 0], 1)
        kernel.assign(value)

    assert new_cache_folders(passes)
    assert not new_cache_folders(passes)
    assert not new_cache_folders(passes, seed=1)  # without augmentation the seed has no effect
    assert not new_cache_folders(
        passes, model={"classes": 5}
    )  # the head does not change the features
    assert new_cache_folders(passes, change=another_weight)
    assert new_cache_folders(passes, model={"scale": 2.0})
    assert new_cache_folders(passes, data=toys.image_data(examples=69))
    other = toys.image_data()
    other.splits["train"]["image"][3, 2, 1] ^= 1
    assert new_cache_folders(passes, data=other)
    views = {"shift": 1.0, "feature_views": 2}
    assert new_cache_folders(passes, **views)
    assert not new_cache_folders(passes, **views)
    assert new_cache_folders(passes, seed=1, **views)
    assert new_cache_folders(passes, **views | {"shift": 2.0})
    assert new_cache_folders(passes, **views | {"feature_views": 3})


def test_a_damaged_file_is_named(passes, cache):
    folder = new_cache_folders(passes)[0]
    file = next((cache / folder).glob("*.bin"))
    content = bytearray(file.read_bytes())
    content[7] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match=file.name):
        new_cache_folders(passes)


def test_changed_pictures_are_kept_in_views_or_not_at_all(run):
    data = toys.image_data()
    off = run(recipe(shift=1.0), data)
    assert cache_events(off) == [
        "off: training images are augmented at random (task.feature_views=4 caches four "
        "augmented views of each)"
    ]
    mixed = run(recipe(augment=("mixup",), feature_views=3), data)
    assert cache_events(mixed) == ["off: mixup combines other images in each epoch"]
    data = toys.image_data(test=20)
    views = run(recipe(shift=1.0, feature_views=3), data)
    feature = np.asarray(views.arrays["feature"])
    assert feature.shape == (70, 3, 64)
    assert np.abs(feature[:, 0] - feature[:, 1]).max() > 0.01
    test = data.splits["test"]  # and its images are not augmented
    probabilities = views.step.net.predict(test["image"] / np.float32(255), verbose=0)
    losses = -np.log(probabilities[np.arange(20), test["label"]])
    assert views.metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)


def test_each_view_is_that_of_the_picture_changed(passes):
    """Each view has the extractor's features of the batches that `prepare` returns."""
    from zoo.data.pipeline import evaluation_batches

    model, task = registry.build("toy_frozen"), ImageClassification(shift=2.0, feature_views=2)
    arrays = toys.image_data().splits["train"]
    actual, _ = features_of(task.frozen_part(model), task, arrays, {}, 5)
    for view in range(2):
        batches = evaluation_batches(
            arrays, task.prepare, batch_size=32, replicas=1, training=True, seed=10 + view
        )
        expected = np.concatenate([model.extractor(b["image"]) for b in batches])[:70]
        np.testing.assert_allclose(actual["feature"][:, view], expected, atol=1e-6)


def test_two_replicas_learn_from_them_as_one(run):
    config = recipe()
    one = run(config, toys.image_data())
    config.trainer.update({"strategy": "mirrored", "replicas": 2})
    two = run(config, toys.image_data())
    assert toys.difference(one.step.net, two.step.net) < 1e-6


def test_negative_views_are_refused():
    from zoo.errors import UsageError

    with pytest.raises(UsageError, match="task.feature_views must be at least 0"):
        ImageClassification(feature_views=-1)
