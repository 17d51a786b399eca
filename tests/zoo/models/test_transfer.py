"""Networks of keras.applications with a new head."""

import keras
import numpy as np
import pytest

import zoo
from tests import toys
from trainers.config.base import optimizer
from zoo import registry
from zoo.errors import RunError, UsageError
from zoo.models import transfer

SMALL = {"input_shape": (32, 32, 3), "hidden_dim": 8, "num_classes": 3}
# With normalization and stochastic depth; its last feature maps have one pixel at 32x32.
NORMALIZED = {**SMALL, "backbone": "mobilenetv3small", "pooling": "average"}


def size(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


def images(count=4, channels=3, seed=0):
    shape = (count, 32, 32, channels)
    return np.random.default_rng(seed).uniform(0, 1, shape).astype("float32")


@pytest.fixture(scope="module")
def vgg():
    keras.utils.set_random_seed(1)
    return registry.build("vgg16_transfer", **SMALL)


def test_vgg16_layer_for_layer():
    from zoo.description import build_abstract

    model = build_abstract("vgg16_transfer")
    assert model.count_params() == 21_140_042
    assert size(model.trainable_variables) == 6_425_354
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds == ["InputLayer", "Preprocessing", "Backbone", "Flatten", "Dense", "Dense"]
    assert model.get_layer("hidden").units == 256
    names = [layer.name for layer in model.base.layers]
    expected = keras.applications.VGG16(include_top=False, weights=None, input_shape=(48, 48, 3))
    assert names[1:] == [layer.name for layer in expected.layers][1:]


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3", "efficientnet_v2"])
def test_only_the_head_of_other_backbones_learns(name):
    from zoo.description import build_abstract

    model = build_abstract(f"{name}_transfer")
    assert [v.path.split("/")[0] for v in model.trainable_variables] == [
        "hidden", "hidden", "probabilities", "probabilities"
    ]  # fmt: skip


def test_the_backbone_gets_what_its_authors_gave_it(vgg):
    image = images()
    actual = keras.Model(vgg.input, vgg.get_layer("preprocessing").output)(image)
    expected = keras.applications.vgg16.preprocess_input(image.copy() * 255)
    np.testing.assert_allclose(actual, expected, atol=1e-3)
    gray = transfer.Preprocessing("vgg16")(image[..., :1])
    np.testing.assert_allclose(
        gray, keras.applications.vgg16.preprocess_input(np.repeat(image[..., :1], 3, -1) * 255),
        atol=1e-3,
    )  # fmt: skip


def test_every_backbone_is_one_of_keras():
    for module, function in transfer.BACKBONES.values():
        assert hasattr(keras.applications, function)
        assert hasattr(getattr(keras.applications, module), "preprocess_input")


def test_head_after_extractor_is_the_model(vgg):
    image = images()
    np.testing.assert_array_equal(vgg.head(vgg.extractor(image)), vgg(image))


def test_it_comes_back_from_a_file_frozen_as_it_was(vgg, tmp_path):
    vgg.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(again(images()), vgg(images()))
    assert len(again.trainable_variables) == 4
    assert type(again) is transfer.TransferClassifier


@pytest.mark.parametrize("trainable", [False, True])
def test_a_frozen_backbone_drops_nothing(trainable):
    """Stochastic depth of an EfficientNet is off while the backbone is frozen."""
    image = keras.Input((4,))
    x = keras.layers.Dense(4, trainable=trainable)(image)
    base = transfer.Backbone(image, keras.layers.Dropout(0.5)(x), name="base")
    ones = np.ones((8, 4), "float32")
    same = np.array_equal(base(ones, training=True), base(ones, training=False))
    assert same == (not trainable)


def test_a_frozen_backbone_computes_as_in_inference():
    model = registry.build("mobilenet_v3_transfer", **NORMALIZED)
    image = images()
    before = [v.numpy() for v in model.base.weights]
    np.testing.assert_array_equal(model(image, training=True), model(image, training=False))
    for variable, value in zip(model.base.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_behind_a_named_layer_all_but_normalization_learns(run):
    arguments = {**NORMALIZED, "trainable": "expanded_conv_8", "name": "mobilenet_v3_transfer"}
    model = registry.build("mobilenet_v3_transfer", **NORMALIZED | {"trainable": "expanded_conv_8"})
    paths = [v.path for v in model.base.trainable_variables]
    assert paths
    assert not [p for p in paths if "bn" in p.lower()]
    first = int(paths[0].split("_")[2]) if paths[0].startswith("expanded") else 8
    assert first >= 8

    config = toys.recipe(
        "mobilenet_v3_transfer", "image_classification", model_arguments=arguments, steps=2,
        checkpoint_every=2,
    )  # fmt: skip
    config.optimizer = optimizer(
        "adam", learning_rate=1e-3
    )  # Adam also changes weights with small gradients
    label = (np.arange(32) % 3).astype("int32")
    image = (images(32) * 255).astype("uint8")
    data = zoo.data.Dataset("x", {"train": {"image": image, "label": label}}, (), "x")
    trainer = run(config, data)
    keras.utils.set_random_seed(0)
    fresh = registry.build("mobilenet_v3_transfer", **NORMALIZED)
    learning = {v.path for v in trainer.step.net.trainable_variables}
    changed_paths = {
        end.path
        for start, end in zip(fresh.weights, trainer.step.net.weights, strict=True)
        if not np.array_equal(start.numpy(), end.numpy())
    }
    # Some gates of an untrained network are 0: no gradient reaches the layers before them.
    assert changed_paths <= learning
    assert {"conv_1/kernel", "expanded_conv_9_depthwise/kernel", "hidden/kernel"} <= changed_paths


def test_all_layers_learn_and_normalization_updates_if_set():
    model = registry.build("mobilenet_v3_transfer", **NORMALIZED | {"trainable": "all"})
    normal = [x for x in model.base.layers if isinstance(x, keras.layers.BatchNormalization)]
    before = normal[0].moving_mean.numpy()
    model(images(), training=True)
    assert np.abs(normal[0].moving_mean.numpy() - before).max() > 0
    assert len(model.trainable_variables) == len(model.weights) - 2 * len(normal)


@pytest.mark.parametrize("kind", ["weights.h5", "keras", "backbone.keras", "work directory"])
def test_weights_come_from_a_file(vgg, kind, tmp_path, monkeypatch):
    path = tmp_path / f"w.{kind}"
    if kind == "weights.h5":
        vgg.base.save_weights(path)
    elif kind == "keras":
        vgg.save(path)
    elif kind == "backbone.keras":
        keras.Model(vgg.base.input, vgg.base.output).save(path)
    else:
        path = tmp_path / "run"
        path.mkdir()
        monkeypatch.setattr(transfer, "load_model", lambda folder: {path: vgg}[folder])
    other = registry.build("vgg16_transfer", **SMALL | {"weights": str(path), "num_classes": 5})
    for start, end in zip(vgg.base.weights, other.base.weights, strict=True):
        np.testing.assert_array_equal(start, end)
    assert not other.base.trainable_variables


def test_what_cannot_be_built_is_one_line(vgg, tmp_path):
    vgg.save(tmp_path / "vgg.keras")
    vgg.base.save_weights(tmp_path / "vgg.weights.h5")
    cases = [
        ({"backbone": "vgg61"}, "model.backbone does not support 'vgg61'. Did you mean"),
        ({"pooling": "max"}, "model.pooling must be one of flatten, average"),
        ({"trainable": "block9"}, "model.trainable must be .* Received: 'block9'"),
        ({"weights": "nowhere"}, "model.weights must be none, imagenet"),
        ({"input_shape": (32, 32, 2)}, "1 or 3 channels"),
        ({"input_shape": (16, 16, 3)}, "at least 32x32"),
        (NORMALIZED | {"weights": f"{tmp_path}/vgg.keras"}, "but the saved model has no such"),
        (NORMALIZED | {"weights": f"{tmp_path}/vgg.weights.h5"}, "does not contain the weights"),
    ]
    for arguments, message in cases:
        with pytest.raises(UsageError, match=message):
            registry.build("vgg16_transfer", **SMALL | arguments)


def test_imagenet_without_a_network_is_one_line(monkeypatch):
    def offline(*_, **options):
        raise Exception(f"URL fetch failure: {options['weights']}")

    monkeypatch.setattr(keras.applications, "VGG16", offline)
    with pytest.raises(RunError, match="ImageNet weights of 'vgg16' could not be downloaded"):
        registry.build("vgg16_transfer", **SMALL | {"weights": "imagenet"})
