"""Tests of Grad-CAM heat maps."""

import keras
import numpy as np
import pytest
from keras import layers

from tests import toys
from trainers.evaluation.grad_cam import choose, grad_cam
from zoo import registry


def spots(corner):
    """Returns 12x12 images with one bright corner."""
    image = np.zeros((1, 12, 12, 1), "float32")
    rows, columns = (slice(0, 4) if c == 0 else slice(8, 12) for c in corner)
    image[0, rows, columns] = 1
    return image


@pytest.fixture(scope="module")
def model():
    """Returns a model: class 0 is bright images, class 1 dark images.

    Its feature maps are the image and its negative at half the size.
    """
    image = keras.Input((12, 12, 1))
    x = layers.Conv2D(2, 2, strides=2, name="maps")(image)
    x = layers.GlobalAveragePooling2D()(x)
    out = layers.Dense(2, activation="softmax", dtype="float32")(x)
    model = keras.Model(image, out)
    kernel = np.zeros((2, 2, 1, 2), "float32")
    kernel[..., 0], kernel[..., 1] = 0.25, -0.25
    model.set_weights([kernel, np.array([0, 1]), 50 * np.array([[1, -1], [0, 1]]), np.zeros(2)])
    return model


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_map_is_bright_where_the_class_is_seen(model, corner):
    image = spots(corner)
    heat = grad_cam(model, image, np.array([0]))[0]
    assert heat.shape == (12, 12)
    assert heat.max() == 1
    inside = image[0, ..., 0] == 1
    assert heat[inside].mean() > 0.8
    assert heat[~inside].mean() < 0.1
    dark = grad_cam(model, image, np.array([1]))[0]
    assert dark[inside].mean() < 0.2 < 0.9 < dark[~inside].mean()


def test_a_sure_model_has_a_map_too(model):
    """The gradient of a saturated softmax is 0, that of the logit is not."""
    heat = grad_cam(model, 100 * spots((0, 0)), np.array([0]))
    assert heat.max() == 1


def test_through_a_backbone_and_for_many(model):
    cnn = registry.build("cnn_classifier", filters=(4, 4, 4), hidden_dim=8)
    image = np.random.default_rng(0).uniform(0, 1, (19, 28, 28, 1)).astype("float32")
    heat = grad_cam(cnn, image, np.arange(19) % 10)
    assert heat.shape == (19, 28, 28)
    np.testing.assert_allclose(heat[17:], grad_cam(cnn, image[17:], np.array([7, 8])), atol=1e-5)
    vgg = registry.build("vgg16_transfer", **registry.entry("vgg16_transfer").tiny)
    assert grad_cam(vgg, np.zeros((1, 32, 32, 3), "float32"), np.array([0])).shape == (1, 32, 32)


def test_models_without_maps_have_none():
    assert grad_cam(toys.token_model(), np.zeros((1, 6)), np.array([0])) is None
    image = keras.Input((4, 4, 1))
    flat = layers.Dense(2, activation="softmax")(layers.Flatten()(image))
    assert grad_cam(keras.Model(image, flat), np.zeros((1, 4, 4, 1)), np.array([0])) is None


def test_the_surest_of_each_class_and_the_worst_are_chosen():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.6, 0.4]])
    labels = np.array([0, 0, 1, 1])
    assert choose(labels, probabilities, np.array([3])).tolist() == [0, 2, 3]


def test_the_report_shows_them(run, tmp_path):
    config = toys.recipe("toy_frozen", "image_classification")
    trainer = run(config, toys.image_data(test=30))
    with np.load(trainer.workdir / "evaluation" / "test.npz") as arrays:
        assert arrays["heat_maps"].shape == arrays["heat_inputs"].shape[:3]
    page = (trainer.workdir / "report.html").read_text()
    assert "Heat maps, test" in page
