"""Image classification: one class per image, cross-entropy on integer labels.

Stored examples: "image" (height, width, channels) uint8 and "label" () integer. Models take float
images in [0, 1] and return probabilities. If the `extractor` of a model is frozen, it runs once per
image, and the `head` is trained on cached features.
"""

import functools

import numpy as np

from zoo import registry
from zoo.data.arrays.augmentations import check_channels, parse
from zoo.data.balance import class_weights as weights_of
from zoo.data.classes import check_classes
from zoo.errors import UsageError
from zoo.lazy import ops
from zoo.tasks.base import Forward, FrozenPart, Task


class ImageClassification(Task):
    """Mean cross-entropy and accuracy per image.

    Args:
      label_smoothing: share of the target spread evenly over the classes (Szegedy et al. 2016,
        Rethinking the Inception Architecture, section 7), in [0, 1).
      rotation: largest random rotation of training images, in degrees.
      shift: largest random shift of training images, in pixels.
      zoom: largest relative change of size of training images; 0.1 is 0.9 to 1.1.
      shear: largest random shear of training images, in degrees.
      augment: further augmentations, by the names of `zoo.data.arrays.augmentations`, such as
        ("flip", "crop:0.5").
      feature_views: number of augmented views per training image with cached features of a frozen
        extractor. 1 caches features of unchanged images, and only if no augmentation is set; 0
        caches no features.
      class_weights: whether each class has the same total weight in the training loss.
    """

    statistics = ("accuracy",)
    monitor = "val_accuracy"
    monitor_mode = "max"

    def __init__(
        self,
        label_smoothing: float = 0.0,
        rotation: float = 0.0,
        shift: float = 0.0,
        zoom: float = 0.0,
        shear: float = 0.0,
        augment: tuple[str, ...] = (),
        feature_views: int = 1,
        class_weights: bool = False,
    ):
        if not 0 <= label_smoothing < 1:
            raise UsageError(
                f"task.label_smoothing must be in [0, 1). Received: {label_smoothing}."
            )
        self.label_smoothing = label_smoothing
        self.affine = {"rotation": rotation, "shift": shift, "zoom": zoom, "shear": shear}
        for name, value in self.affine.items():
            if value < 0:
                raise UsageError(f"task.{name} must be 0 (off) or positive. Received: {value}.")
        if zoom >= 1 or shear >= 90:
            raise UsageError(
                "task.zoom must be less than 1, and task.shear less than 90 degrees. Received: "
                f"task.zoom={zoom}, task.shear={shear}."
            )
        if feature_views < 0:
            raise UsageError(f"task.feature_views must be at least 0. Received: {feature_views}.")
        self.feature_views = feature_views
        self.class_weights, self.weights_of_classes = class_weights, None
        self.amounts = parse(augment)
        if "mixup" in self.amounts and label_smoothing:
            raise UsageError(
                "task.label_smoothing must be 0 with the augmentation 'mixup', which also softens "
                "the labels."
            )
        if "mixup" in self.amounts and class_weights:
            raise UsageError(
                "task.class_weights must be false with the augmentation 'mixup', whose images "
                "belong to two classes."
            )

    @functools.cached_property
    def augment(self):
        """The recipe's `zoo.data.arrays.augment.Augment`, created with the first batch."""
        import tensorflow as tf

        augment_class = registry.resolve("zoo.data.arrays.augment:Augment")
        with tf.init_scope():  # outside the graph of tf.data, because layers create variables
            return augment_class(self.amounts)

    def complete(self, arguments, dataset):
        """Completes `num_classes` and `input_shape` of models by those of the data."""
        if dataset is None or "image" not in dataset.splits["train"]:
            return arguments
        if arguments.get("num_classes", 1) == 0:
            labels = [np.max(arrays["label"], initial=0) for arrays in dataset.splits.values()]
            count = max(len(dataset.class_names), int(max(labels)) + 1)
            arguments = {**arguments, "num_classes": count}
        if "input_shape" in arguments and not arguments["input_shape"]:
            shape = tuple(map(int, dataset.splits["train"]["image"].shape[1:]))
            arguments = {**arguments, "input_shape": shape}
        return arguments

    def bind(self, model, dataset=None, arguments=None):
        """Reads the frequency of the classes."""
        if self.class_weights and dataset is not None and "train" in dataset.splits:
            labels = np.asarray(dataset.splits["train"]["label"])
            self.weights_of_classes = weights_of(labels, model.output_shape[-1])
        return self

    def check_arguments(self, arguments, dataset) -> None:
        """Checks image shapes and labels against `input_shape` and `num_classes`."""
        shape, classes = arguments.get("input_shape"), arguments.get("num_classes")
        self._check_data(dataset, tuple(shape) if shape else None, classes)

    def check(self, model, dataset) -> None:
        """Checks image shapes and labels against the model's input and output."""
        self._check_data(dataset, tuple(model.input_shape[1:]), model.output_shape[-1])

    def _check_data(self, dataset, expected: tuple | None, classes: int | None) -> None:
        for split, arrays in dataset.splits.items():
            for key in ("image", "label"):
                if key not in arrays:
                    raise UsageError(
                        f"Image classification requires the array {key!r}. Received: dataset "
                        f"{dataset.name!r}, split {split!r} with the arrays {', '.join(arrays)}."
                    )
            shape = tuple(arrays["image"].shape[1:])
            check_channels(self.amounts, shape[-1])
            if expected and shape != expected:
                raise UsageError(
                    f"The model requires images of shape {expected}. Received: dataset "
                    f"{dataset.name!r}, split {split!r} with shape {shape}; set model.input_shape."
                )
            labels = np.asarray(arrays["label"])
            if labels.ndim != 1 or labels.dtype.kind not in "iu":
                raise UsageError(
                    f"Labels must be one integer per image. Received: dataset {dataset.name!r}, "
                    f"split {split!r} with labels of shape {labels.shape} and type {labels.dtype}."
                )
            if classes is not None and (labels.min() < 0 or labels.max() >= classes):
                raise UsageError(
                    f"Labels must be less than the model's number of classes, {classes}, and not "
                    f"negative. Received: dataset {dataset.name!r}, split {split!r} with labels "
                    f"{labels.min()} to {labels.max()}; set model.num_classes."
                )
        names = dataset.class_names
        # Without class names in the data, the names are the labels, and the highest may be absent.
        label_names = tuple(map(str, range(len(names))))
        if classes and names and names != label_names and len(names) != classes:
            raise UsageError(
                f"The model has {classes} classes, but dataset {dataset.name!r} has {len(names)} "
                f"({', '.join(names[:3])}{' …' * (len(names) > 3)}); set "
                f"model.num_classes={len(names)}."
            )

    def data_warnings(self, dataset):
        """Returns warnings about absent or dominant classes of validation and test split."""
        warnings = [
            check_classes(dataset, split)
            for split in ("validation", "test")
            if {"train", split} <= dataset.splits.keys()
        ]
        return [warning for warning in warnings if warning]

    def prepare(self, batch, uniform, training):
        """Scales uint8 images to [0, 1], augments training images and weights their classes."""
        import tensorflow as tf

        if training and self.weights_of_classes is not None:
            weights = tf.gather(tf.constant(self.weights_of_classes), batch["label"])
            batch = {**batch, "counts": batch["weight"] * weights}
        if "feature" in batch:
            return self._select_view(batch, uniform)
        image = batch["image"]
        if image.dtype == tf.uint8:
            image = tf.cast(image, tf.float32) * (1 / 255)
        mixup_inputs = {}
        if training and any(self.affine.values()):
            random_affine = registry.resolve("zoo.data.arrays.affine:random_affine")
            image = random_affine(image, uniform, **self.affine)
        if training and self.amounts:
            image, partner_label, share = self.augment(
                image, batch["label"], uniform, batch["weight"]
            )
            if partner_label is not None:
                mixup_inputs = {"other_label": partner_label, "share": share}
        return {**batch, "image": image, **mixup_inputs}

    def _select_view(self, batch, uniform):
        """Selects one of the cached views of each training image at random."""
        import tensorflow as tf

        feature = batch["feature"]
        if feature.shape.rank == 2:
            return batch
        view = tf.cast(uniform(1)[:, 0] * feature.shape[1], tf.int32)
        return {**batch, "feature": tf.gather(feature, view, batch_dims=1)}

    def frozen_part(self, model):
        """Returns the model's `extractor` if it has no trainable variables."""
        extractor = getattr(model, "extractor", None)
        if extractor is None or extractor.trainable_variables or not self.feature_views:
            return FrozenPart()
        if not (any(self.affine.values()) or self.amounts):
            return FrozenPart(extractor)
        if "mixup" in self.amounts:
            return FrozenPart(reason="off: mixup combines other images in each epoch")
        if self.feature_views == 1:
            return FrozenPart(
                reason="off: training images are augmented at random "
                "(task.feature_views=4 caches four augmented views of each)"
            )
        return FrozenPart(extractor, self.feature_views)

    def term_counts(self, batch):
        """Returns the number of images that are not padding, weighted by class in training."""
        return {"loss": ops.sum(batch.get("counts", batch["weight"]))}

    def forward(self, model, batch, training):
        """Returns the summed cross-entropy and the accuracy."""
        if "feature" in batch:
            probabilities = model.head(batch["feature"], training=training)
        else:
            probabilities = model(batch["image"], training=training)
        labels, weight = batch["label"], batch["weight"]
        if "share" in batch:
            own, other = (
                ops.sparse_categorical_crossentropy(batch[key], probabilities)
                for key in ("label", "other_label")
            )
            losses = batch["share"] * own + (1 - batch["share"]) * other
        elif training and self.label_smoothing:
            classes = probabilities.shape[-1]
            target = ops.one_hot(labels, classes) * (1 - self.label_smoothing)
            losses = ops.categorical_crossentropy(
                target + self.label_smoothing / classes, probabilities
            )
        else:
            losses = ops.sparse_categorical_crossentropy(labels, probabilities)
        correct = ops.cast(
            ops.equal(ops.argmax(probabilities, -1), ops.cast(labels, "int32")), "float32"
        )
        return Forward(
            sums={"loss": ops.sum(losses * batch.get("counts", weight))},
            statistics={"accuracy": (ops.sum(correct * weight), ops.sum(weight))},
            outputs=probabilities,
        )

    def serving_model(self, model):
        """Returns a model from uint8 images (B, height, width, channels) to probabilities."""
        import keras

        image = keras.Input(model.input_shape[1:], dtype="uint8", name="image")
        scaled_image = keras.layers.Rescaling(1 / 255, dtype="float32", name="bytes")(image)
        return keras.Model(image, model(scaled_image), name=model.name)

    def predictions(self, outputs, batch):
        """Returns the probabilities and the true label of each image."""
        return {"probabilities": outputs, "labels": batch["label"]}

    def synthetic(self, model, examples, seed):
        """Returns noisy images with a brightness per class, which a few updates can learn."""
        generator = np.random.default_rng(seed)
        classes = model.output_shape[-1]
        label = generator.integers(0, classes, examples).astype("int32")
        image = generator.uniform(0, 64, (examples, *model.input_shape[1:]))
        image += (label * (190 / classes)).reshape(-1, *[1] * (image.ndim - 1))
        return {"image": image.astype("uint8"), "label": label}
