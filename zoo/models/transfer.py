"""Transfer learning: a network of keras.applications without its top, and a new head.

`vgg16_transfer` is VGG16 (Simonyan and Zisserman 2015, arXiv:1409.1556), Flatten, Dense 256 and
Dense with one unit per class. It has 21,140,042 parameters at 224x224x3 and ten classes, 6,425,354
of them trainable. Any other backbone of keras.applications is selected by name.

Images are float in [0, 1], as for every classifier of the zoo. Resizing, conversion to three
channels and the backbone's preprocessing are layers of the model, so the export includes them.
"""

import functools
import logging
import warnings
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from zoo import keras_internals
from zoo.errors import RunError, UsageError, near_names, short
from zoo.layers.backbone import Backbone
from zoo.models.architecture import contains, differences
from zoo.saved.model import load_model, open_model
from zoo.storage.weight_files import check_h5

_LOG = logging.getLogger(__name__)

# Module of keras.applications -> names of its functions that build a network. The module is needed
# because it holds the `preprocess_input` of its networks.
_MODULES = {
    "vgg16": ("VGG16",),
    "vgg19": ("VGG19",),
    "resnet": ("ResNet50", "ResNet101", "ResNet152"),
    "resnet_v2": ("ResNet50V2", "ResNet101V2", "ResNet152V2"),
    "inception_v3": ("InceptionV3",),
    "inception_resnet_v2": ("InceptionResNetV2",),
    "xception": ("Xception",),
    "mobilenet": ("MobileNet",),
    "mobilenet_v2": ("MobileNetV2",),
    "mobilenet_v3": ("MobileNetV3Small", "MobileNetV3Large"),
    "densenet": ("DenseNet121", "DenseNet169", "DenseNet201"),
    "nasnet": ("NASNetMobile", "NASNetLarge"),
    "efficientnet": tuple(f"EfficientNetB{i}" for i in range(8)),
    "efficientnet_v2": (
        *(f"EfficientNetV2B{i}" for i in range(4)),
        *(f"EfficientNetV2{size}" for size in "SML"),
    ),
    "convnext": tuple(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge")),
}
BACKBONES = {name.lower(): (module, name) for module, names in _MODULES.items() for name in names}
POOLINGS = ("flatten", "average")


@keras.saving.register_keras_serializable("zoo")
class Preprocessing(layers.Layer):
    """Preprocessing of a backbone for gray or color images in [0, 1].

    Args:
      backbone: key of `BACKBONES`.
    """

    def __init__(self, backbone: str, **options):
        super().__init__(**options)
        self.backbone = backbone

    def build(self, input_shape):
        if input_shape[-1] not in (1, 3):
            raise UsageError(f"Images must have 1 or 3 channels. Received: {input_shape[-1]}.")

    def call(self, image):
        if image.shape[-1] == 1:
            image = ops.repeat(image, 3, axis=-1)
        return _module(self.backbone).preprocess_input(255 * image)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 3)

    def get_config(self):
        return {**super().get_config(), "backbone": self.backbone}


@keras.saving.register_keras_serializable("zoo")
class TransferClassifier(keras.Model):
    """Model from images (B, height, width, channels) in [0, 1] to probabilities (B, classes).

    The model equals `extractor` followed by `head`, which share its layers.
    """

    @property
    def base(self) -> keras.Model:
        """The backbone."""
        return next(layer for layer in self.layers if isinstance(layer, Backbone))

    @functools.cached_property
    def extractor(self) -> keras.Model:
        """Model from images to features (B, F): the backbone's output, flattened or averaged."""
        return keras.Model(self.input, self._features(), name="extractor")

    @functools.cached_property
    def head(self) -> keras.Model:
        """Model from features to probabilities."""
        return keras.Model(self._features(), self.output, name="head")

    def _features(self):
        kinds = (layers.Flatten, layers.GlobalAveragePooling2D)
        return next(layer.output for layer in self.layers[::-1] if isinstance(layer, kinds))


def build(
    backbone: str = "vgg16",
    input_shape: tuple[int, int, int] = (224, 224, 3),
    image_size: tuple[int, int] | None = None,
    num_classes: int = 10,
    hidden_dim: int = 256,
    pooling: str = "flatten",
    weights: str | None = "none",
    trainable: str = "none",
    name: str = "vgg16_transfer",
) -> TransferClassifier:
    """Builds a backbone and a new head.

    Args:
      backbone: name of a network of keras.applications in lower case, such as "vgg16".
      input_shape: height, width and channels (1 or 3) of the images.
      image_size: height and width to which images are resized; None for no resizing.
      num_classes: number of classes.
      hidden_dim: units of the head's hidden layer; 0 for no hidden layer.
      pooling: "flatten" or "average", applied to the backbone's output.
      weights: "none" or None for random weights; "imagenet", which Keras downloads once and checks
        by hash; or a path: a .weights.h5 file of the backbone, or a .keras file or work directory
        of this zoo with the same backbone.
      trainable: "none"; "all"; or the name or a prefix of a backbone layer such as "block5". The
        first such layer and all later ones are trained, except batch normalization.
      name: name of the Keras model.

    Raises:
      UsageError: if the backbone or the layer is unknown, or the weights do not match the backbone.
      RunError: if weights cannot be downloaded or read.
    """
    if backbone not in BACKBONES:
        raise UsageError(
            f"model.backbone does not support {backbone!r}.{near_names(backbone, BACKBONES)} "
            f"Supported: {', '.join(BACKBONES)}."
        )
    if pooling not in POOLINGS:
        raise UsageError(
            f"model.pooling must be one of {', '.join(POOLINGS)}. Received: {pooling!r}."
        )
    size = tuple(image_size or input_shape[:2])
    base = _backbone(backbone, (*size, 3), "none" if weights is None else weights)
    _set_trainable(base, trainable)

    image = keras.Input(tuple(input_shape), name="image")
    x = image
    if size != tuple(input_shape[:2]):
        x = layers.Resizing(*size, dtype="float32", name="resizing")(x)
    # In float32, because bfloat16 would round pixels in [0, 255] and their difference to a mean.
    x = Preprocessing(backbone, dtype="float32", name="preprocessing")(x)
    x = base(x)
    pool = layers.Flatten if pooling == "flatten" else layers.GlobalAveragePooling2D
    x = pool(name="features")(x)
    if hidden_dim:
        x = layers.Dense(hidden_dim, activation="relu", name="hidden")(x)
    x = layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities")(x)
    return TransferClassifier(image, x, name=name)


def _module(backbone: str):
    return getattr(keras.applications, BACKBONES[backbone][0])


def _backbone(backbone: str, shape: tuple[int, int, int], weights: str) -> Backbone:
    module, function = BACKBONES[backbone]
    builder = getattr(keras.applications, function, None) or getattr(_module(backbone), function)
    keras_weights = "imagenet" if weights == "imagenet" else None
    try:
        network = builder(include_top=False, weights=keras_weights, input_shape=shape)
    except ValueError:
        raise  # the images are too small for the network
    except Exception as error:
        if keras_weights is None:
            raise
        raise RunError(
            f"The ImageNet weights of {backbone!r} could not be downloaded: {short(error)}. "
            "Without a network, copy Keras' weight file into ~/.keras/models, or set "
            "model.weights to a path."
        ) from None
    base = Backbone(network.input, network.output, name="base")
    if weights not in ("none", "imagenet"):
        _load(base, weights)
    return base


def _load(base: Backbone, weights: str) -> None:
    """Loads the weights of a backbone, and logs a warning about unused weights of the file."""
    path = Path(weights).expanduser()
    if path.is_file() and path.name.endswith(".weights.h5"):
        try:
            check_h5(path)
            with warnings.catch_warnings():  # about missing weights; errors cover them
                warnings.simplefilter("ignore")
                base.load_weights(path)
        except (ValueError, OSError, KeyError) as error:
            message = short(error)
            raise UsageError(
                f"{path} does not contain the weights of this backbone: {message}"
            ) from None
        unused_paths = _compare_with_file(base, path)
    elif path.is_dir() or path.suffix == ".keras" and path.is_file():
        unused_paths = _copy(base, path)
    else:
        raise UsageError(
            "model.weights must be none, imagenet, a .weights.h5 or .keras file, or a work "
            f"directory. Received: {weights!r}."
        )
    if unused_paths:
        _LOG.warning(
            f"model.weights: the backbone's {len(base.weights)} weights are from {path}; unused "
            f"weights or layers: {', '.join(unused_paths)}"
        )


def _copy(base: Backbone, path: Path) -> list[str]:
    """Copies the backbone weights of a saved model; returns the paths of its unused weights."""
    saved_model = load_model(path) if path.is_dir() else open_model(path)
    source = saved_model.base if isinstance(saved_model, TransferClassifier) else saved_model
    source_weights = {v.path.removeprefix("base/"): v for v in source.weights}
    for variable in base.weights:
        source_weight = source_weights.get(variable.path.removeprefix("base/"))
        if source_weight is None or tuple(source_weight.shape) != tuple(variable.shape):
            description = (
                "has no such weight"
                if source_weight is None
                else f"has shape {tuple(source_weight.shape)}"
            )
            raise UsageError(
                f"{path}does not match the backbone: {variable.path} must have shape "
                f"{tuple(variable.shape)}, but the saved model {description}."
            )
    mismatches = differences(source, base, ends=False)
    if not mismatches and keras_internals.is_graph(source) and not contains(source, base):
        mismatches = ["no tensor of the saved model equals the backbone's output"]
    if mismatches:
        raise UsageError(
            f"{path}does not match the backbone: its architecture differs: "
            f"{'; '.join(mismatches[:5])}."
        )
    copied_paths = set()
    for variable in base.weights:
        source_weight = source_weights[variable.path.removeprefix("base/")]
        variable.assign(source_weight.value)
        copied_paths.add(id(source_weight))
    return [v.path for v in saved_model.weights if id(v) not in copied_paths]


def _compare_with_file(base: Backbone, path: Path) -> list[str]:
    """Checks that each layer got the weights that a .weights.h5 file contains under its name.

    Keras matches layers by class and order, and ignores the rest of the file. From the file of a
    deeper network, a layer may get the weights of a different layer of the same shape.

    Returns:
      The names of layers in the file that the backbone does not have.

    Raises:
      UsageError: if a layer got the weights of a different layer.
    """
    import h5py

    file_weights = {}

    def collect(_, group):
        if isinstance(group, h5py.Group) and "name" in group.attrs and len(group):
            arrays = [group[key][()] for key in sorted(group, key=int)]
            file_weights[str(group.attrs["name"])] = arrays

    with h5py.File(path, "r") as file:
        file.visititems(lambda name, item: collect(name, item) if name.endswith("vars") else None)
    if not file_weights:  # the file is from a Keras version that did not store layer names
        return []
    for layer in base.layers:
        in_file = file_weights.pop(layer.name, [])
        in_backbone = [keras.ops.convert_to_numpy(v) for v in layer.weights]
        if len(in_file) != len(in_backbone) or not all(map(np.array_equal, in_file, in_backbone)):
            raise UsageError(
                f"{path} does not contain the weights of this backbone: the weights of layer "
                f"{layer.name!r} differ."
            )
    return list(file_weights)


def _set_trainable(base: Backbone, trainable: str) -> None:
    base.trainable = trainable == "all"
    if trainable in ("none", "all"):
        return
    names = [layer.name for layer in base.layers]
    first = next((i for i, name in enumerate(names) if name.startswith(trainable)), None)
    if first is None:
        raise UsageError(
            "model.trainable must be none, all, or the name of a backbone layer. Received: "
            f"{trainable!r}.{near_names(trainable, names)} Layers: {', '.join(names)}."
        )
    base.trainable = True
    for i, layer in enumerate(base.layers):
        layer.trainable = i >= first and not isinstance(layer, layers.BatchNormalization)
