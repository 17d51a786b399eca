"""Augmentation: its effects, and equal results after a resume."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import toys
from zoo.data.arrays.augment import Augment
from zoo.data.arrays.augmentations import parse
from zoo.data.pipeline import evaluation_batches, training_batches
from zoo.errors import UsageError
from zoo.tasks.image_classification import ImageClassification

ALL = ("flip", "crop:0.3", "cutout:0.5", "mixup:1", "randaugment:0.5")


def colorful(examples=24, side=12):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (examples, side, side, 3)).astype("uint8")
    return {"image": image, "label": np.arange(examples, dtype="int32") % 3}


def numbers(seed):
    return lambda count: tf.random.stateless_uniform((24, count), (seed, 0))


def changed(spec, seed=0, image=None):
    arrays = colorful()
    image = tf.constant(image if image is not None else np.float32(arrays["image"]) / 255)
    new, other, share = Augment(parse([spec]))(image, arrays["label"], numbers(seed))
    assert new.shape == image.shape
    assert float(tf.reduce_min(new)) >= 0
    assert float(tf.reduce_max(new)) <= 1
    return image.numpy(), new.numpy(), other, share


def batches(first=0, last=4, replicas=1, seed=0, augment=ALL):
    task = ImageClassification(augment=augment)
    batches = training_batches(
        colorful(), task.prepare, batch_size=8, replicas=replicas, seed=seed, first_step=first,
        last_step=last,
    )  # fmt: skip
    return [{k: v.numpy() for k, v in batch.items()} for batch in batches]


def test_flip_swaps_left_and_right_in_about_half():
    old, new, *_ = changed("flip")
    swapped = [np.array_equal(b, a[:, ::-1]) for a, b in zip(old, new, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(old, new, strict=True)]
    assert sum(swapped) + sum(same) == 24
    assert 4 < sum(swapped) < 20


def test_crop_shows_a_part_of_each_picture():
    ramp = np.broadcast_to(np.linspace(0, 1, 12, dtype="float32"), (24, 12, 12))
    image = np.stack([ramp, ramp.transpose(0, 2, 1), 0 * ramp], -1)  # columns, rows
    _, new, *_ = changed("crop:0.25", image=image)
    widths = np.ptp(new[..., 0], axis=(1, 2))
    np.testing.assert_allclose(widths, np.ptp(new[..., 1], axis=(1, 2)), atol=1e-5)
    assert 0.5 - 1e-5 <= widths.min() < 0.65 < 0.85 < widths.max() <= 1  # side by side
    assert np.std(new[..., 0].min((1, 2))) > 0.05  # not always the same part
    old, new, *_ = changed("crop:1")
    np.testing.assert_allclose(old, new, atol=1e-5)


def test_cutout_grays_one_rectangle():
    old, new, *_ = changed("cutout:0.4")
    gray = (new == 0.5).all(-1)
    np.testing.assert_array_equal(new[~gray], old[~gray])
    assert (old != new).any((1, 2, 3)).mean() > 0.8  # in nearly every image
    areas = []
    for mask in gray & (old != new).any(-1):
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()
        areas.append(mask.mean())
    assert 0.1 < max(areas) <= 0.5
    assert len(set(areas)) > 5


def test_mixup_blends_two_pictures_and_tells_of_whom():
    old, new, other, share = changed("mixup:1")
    other, share = other.numpy(), share.numpy()
    partners = [
        next(
            j
            for j in range(24)
            if np.allclose(new[i], share[i] * old[i] + (1 - share[i]) * old[j], atol=1e-5)
        )
        for i in range(24)
    ]
    np.testing.assert_array_equal(other, colorful()["label"][partners])
    assert 0 <= share.min() < 0.3
    assert 0.7 < share.max() <= 1
    assert len(set(partners)) == 24


def test_mixup_takes_no_padding_for_a_partner():
    """Each real row is a partner once; without padding, weights have no effect."""
    arrays = colorful()
    image = tf.constant(np.float32(arrays["image"]) / 255)
    places = tf.range(24)
    augment = Augment(parse(["mixup:1"]))
    plain, other, _ = augment(image, places, numbers(0))
    same, again, _ = augment(image, places, numbers(0), tf.ones(24))
    np.testing.assert_array_equal(plain, same)
    np.testing.assert_array_equal(other, again)
    real = np.arange(24) < 7
    _, other, _ = augment(image, places, numbers(0), tf.constant(np.float32(real)))
    assert sorted(other.numpy()[:7]) == list(range(7))
    assert list(other.numpy()[:7]) != list(range(7))
    np.testing.assert_array_equal(other[7:], places[7:])


def test_mixup_of_a_short_batch_blends_real_pictures():
    """Through the pipeline: the last of three batches of 10 has 4 of the 24 images."""
    arrays = colorful()
    arrays["image"] = (
        np.ones_like(arrays["image"]) * np.arange(24, dtype="uint8")[:, None, None, None]
    )
    arrays["label"] = np.arange(24, dtype="int32")
    task = ImageClassification(augment=("mixup:1",))
    for step in range(2, 30, 3):
        (batch,) = training_batches(
            arrays, task.prepare, batch_size=10, replicas=1, seed=0, first_step=step,
            last_step=step + 1,
        )  # fmt: skip
        real = batch["weight"].numpy() > 0
        assert real.sum() == 4
        labels, others = batch["label"].numpy()[real], batch["other_label"].numpy()[real]
        assert sorted(others) == sorted(labels)
        share = batch["share"].numpy()[real]
        expected = share * labels + (1 - share) * others
        np.testing.assert_allclose(
            255 * batch["image"].numpy()[real][:, 0, 0, 0], expected, atol=1e-4
        )


def test_randaugment_changes_pictures_more_where_stronger():
    gaps = {}
    for strength in (0.05, 0.9):
        results = [changed(f"randaugment:{strength}", seed) for seed in range(6)]
        gaps[strength] = np.mean([np.abs(new - old).mean() for old, new, *_ in results])
    assert 0 < gaps[0.05] < gaps[0.9]


def test_randaugment_keeps_labels():
    """No digit upside down or outside of the image, no colors of one bit."""
    augment = Augment({"randaugment": 0.9})
    layer, key = augment.layers["randaugment"], augment.keys["randaugment"]
    key.start(tf.constant([1, 2]))
    images = np.zeros((300, 8, 8, 3), "float32")
    transforms = layer.get_random_transformation(images, training=True, seed=key)["transforms"]
    for name, key, most in (
        ("random_rotation", "angle", 27), ("random_shear", "shear_factor", 0.27),
        ("random_translation", "translations", 0.27 * 8),
    ):  # fmt: skip
        values = np.asarray(transforms[name][key])
        assert 0.9 * most < values.max() <= most, name
        assert -most <= values.min() < -0.9 * most, name
    assert np.all(np.asarray(transforms["random_posterization"]["shift_factor"]) == 8 - 4)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_randaugment_leaves_something_to_see(strength):
    """Weak strengths invert no image, strong ones make no image white."""
    augment = Augment({"randaugment": strength})
    layer, key = augment.layers["randaugment"], augment.keys["randaugment"]
    key.start(tf.constant([1, 2]))
    images = np.broadcast_to(np.linspace(0, 1, 16, dtype="float32")[:, None, None], (300, 16, 3, 3))
    transforms = layer.get_random_transformation(images, training=True, seed=key)["transforms"]
    for name in ("solarization", "random_brightness", "random_sharpness"):
        new = np.asarray(getattr(layer, name).transform_images(images, transforms[name]))
        if not strength:
            np.testing.assert_allclose(new, images, atol=1e-5, err_msg=name)
        assert np.all(new.max((1, 2, 3)) - new.min((1, 2, 3)) > 0.4), name
    turned = np.asarray(layer.solarization.transform_images(images, transforms["solarization"]))
    falls = (np.diff(turned[:, :, 0, 0], axis=1) < -0.02).mean()
    assert falls == pytest.approx(0.5 * strength, abs=0.12)


def test_gray_pictures_cannot_change_colors():
    task = ImageClassification(augment=("randaugment",))
    model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    with pytest.raises(UsageError, match="with three channels"):
        task.check(model, toys.image_data(side=4))


@pytest.mark.parametrize("spec", ALL)
def test_each_is_a_function_of_seed_and_step(spec):
    one, again = batches(augment=(spec,)), batches(augment=(spec,))
    later = batches(first=2, augment=(spec,))
    for a, b in zip([*one, *one[2:]], [*again, *later], strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    plain, other = batches(augment=()), batches(seed=0, augment=(spec,))
    assert any(np.abs(a["image"] - b["image"]).max() > 0 for a, b in zip(plain, other, strict=True))
    # The fourth step begins the second epoch: the same images with other random numbers.
    assert np.abs(one[0]["image"] - one[3]["image"]).max() > 0


def test_no_two_draws_have_the_same_seed(monkeypatch):
    from zoo.data.arrays import augment

    seeds, draw = [], augment.Key.next

    def noted(key, ordered=True):
        seed = draw(key)
        seeds.append(tuple(seed.numpy()))
        return seed

    monkeypatch.setattr(augment.Key, "next", noted)
    arrays = colorful()
    Augment(parse(ALL))(np.float32(arrays["image"]) / 255, arrays["label"], numbers(0))
    assert len(seeds) > 10
    assert len(set(seeds)) == len(seeds)


def test_replicas_change_pictures_of_their_own():
    """Equal images on both replicas differ after augmentation."""
    same = {"image": np.repeat(colorful()["image"][:1], 16, 0), "label": np.zeros(16, "int32")}
    task = ImageClassification(augment=("flip", "cutout:0.5", "randaugment"))
    first, second = (
        b["image"].numpy()
        for b in training_batches(
            same, task.prepare, batch_size=16, replicas=2, seed=0, first_step=0, last_step=1
        )
    )
    assert np.abs(first - second).max() > 0.01


def test_evaluation_sees_pictures_as_they_are():
    task = ImageClassification(augment=ALL)
    arrays = colorful()
    batches = evaluation_batches(arrays, task.prepare, batch_size=8, replicas=1)
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_allclose(images, arrays["image"] / np.float32(255), atol=1e-7)


def test_the_loss_of_a_blend_is_the_blend_of_losses():
    task = ImageClassification(augment=("mixup",))
    probabilities = np.float32([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    batch = {
        "image": tf.zeros((2, 1)), "label": tf.constant([0, 1]), "weight": tf.ones(2),
        "other_label": tf.constant([1, 2]), "share": tf.constant([0.25, 1.0]),
    }  # fmt: skip
    result = task.forward(lambda image, training: tf.constant(probabilities), batch, True)
    expected = -0.25 * np.log(0.7) - 0.75 * np.log(0.2) - np.log(0.1)
    assert float(result.sums["loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_run_that_was_broken_off_sees_the_same_pictures(run, tmp_path):
    import keras

    task = {"augment": ("flip", "crop", "cutout", "mixup")}
    config = toys.recipe("toy_norm", "image_classification", task_arguments=task)
    whole = run(config, toys.image_data())

    class Stop(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            if self.steps == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, toys.image_data(), tmp_path / "broken", callbacks=[Stop()])
    resumed = run(config, toys.image_data(), tmp_path / "broken")
    assert toys.difference(whole.step.net, resumed.step.net) == 0


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (("flop",), "No augmentation is named 'flop'. Did you mean 'flip'"),
        (("crop:2",), "the amount of crop must be from 0.05 to 1.0. Received: 'crop:2'"),
        (("crop:a",), "Received: 'crop:a'"),
        (("flip", "flip"), "must have each name once"),
    ],
)
def test_what_no_augmentation_is(specs, message):
    with pytest.raises(UsageError, match=message):
        ImageClassification(augment=specs)


def test_what_does_not_go_together():
    with pytest.raises(UsageError, match="must be 0 with the augmentation 'mixup'"):
        ImageClassification(augment=("mixup",), label_smoothing=0.1)
    with pytest.raises(UsageError, match="with three channels"):
        changed("randaugment", image=np.zeros((24, 6, 6, 1), "float32"))
