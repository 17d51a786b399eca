"""Pictures to one class each: cross-entropy on integer labels.

Stored examples: "image" (height, width, channels) uint8 and "label" () integer. Models take float
pictures in [0, 1] and give probabilities.
"""

import numpy as np
from keras import ops

from zoo.errors import UsageError
from zoo.tasks.base import Forward, Task


class ImageClassification(Task):
    """Cross-entropy over classes, with accuracy.

    Args:
      label_smoothing: share of the target spread evenly over the classes (Szegedy et al. 2016,
        Rethinking the Inception Architecture, section 7), in [0, 1).
      rotation: largest turn, in degrees, of a training picture.
      shift: largest move, in pixels.
      zoom: largest relative change of size: 0.1 is 0.9 to 1.1.
      shear: largest shear, in degrees.
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
    ):
        if not 0 <= label_smoothing < 1:
            raise UsageError(f"task.label_smoothing lies in [0, 1). Received: {label_smoothing}.")
        self.label_smoothing = label_smoothing
        self.affine = {"rotation": rotation, "shift": shift, "zoom": zoom, "shear": shear}
        for name, value in self.affine.items():
            if value < 0:
                raise UsageError(f"task.{name} is 0 (off) or positive. Received: {value}.")

    def check(self, model, dataset) -> None:
        """Compares picture shape and labels with the model's input and output."""
        expected, classes = tuple(model.input_shape[1:]), model.output_shape[-1]
        for split, arrays in dataset.splits.items():
            for key in ("image", "label"):
                if key not in arrays:
                    raise UsageError(
                        f"Image classification needs the array {key!r}. Data set "
                        f"{dataset.name!r}, split {split!r} has: {', '.join(arrays)}."
                    )
            shape = tuple(arrays["image"].shape[1:])
            if shape != expected:
                raise UsageError(
                    f"The model takes pictures of shape {expected}. Data set {dataset.name!r}, "
                    f"split {split!r} has {shape}; set model.input_shape."
                )
            labels = np.asarray(arrays["label"])
            if labels.ndim != 1 or labels.dtype.kind not in "iu":
                raise UsageError(
                    f"Labels are one integer a picture. Data set {dataset.name!r}, split "
                    f"{split!r} has shape {labels.shape}, {labels.dtype}."
                )
            if labels.min() < 0 or labels.max() >= classes:
                raise UsageError(
                    f"The model has {classes} classes. Data set {dataset.name!r}, split {split!r} "
                    f"has labels {labels.min()} to {labels.max()}; set model.num_classes."
                )

    def prepare(self, batch, uniform, training):
        """uint8 to float in [0, 1]; a random affine map of each training picture."""
        import tensorflow as tf

        image = batch["image"]
        if image.dtype == tf.uint8:
            image = tf.cast(image, tf.float32) * (1 / 255)
        if training and any(self.affine.values()):
            from zoo.data.images import random_affine

            image = random_affine(image, uniform, **self.affine)
        return {**batch, "image": image}

    def weights(self, batch):
        """One a picture that does not pad."""
        return {"loss": ops.sum(batch["weight"])}

    def forward(self, model, batch, training):
        """Returns the summed cross-entropy and accuracy."""
        probabilities = model(batch["image"], training=training)
        labels, weight = batch["label"], batch["weight"]
        if training and self.label_smoothing:
            classes = probabilities.shape[-1]
            target = ops.one_hot(labels, classes) * (1 - self.label_smoothing)
            losses = ops.categorical_crossentropy(
                target + self.label_smoothing / classes, probabilities
            )
        else:
            losses = ops.sparse_categorical_crossentropy(labels, probabilities)
        right = ops.cast(
            ops.equal(ops.argmax(probabilities, -1), ops.cast(labels, "int32")), "float32"
        )
        return Forward(
            sums={"loss": ops.sum(losses * weight)},
            statistics={"accuracy": (ops.sum(right * weight), ops.sum(weight))},
            outputs=probabilities,
        )

    def predictions(self, outputs, batch):
        """The probabilities and the true label of each picture."""
        return {"probabilities": outputs, "labels": batch["label"]}

    def synthetic(self, model, examples, seed):
        """Pictures whose brightness tells their class, under noise: learnable in a few steps."""
        generator = np.random.default_rng(seed)
        classes = model.output_shape[-1]
        label = generator.integers(0, classes, examples).astype("int32")
        image = generator.uniform(0, 64, (examples, *model.input_shape[1:]))
        image += (label * (190 / classes)).reshape(-1, *[1] * (image.ndim - 1))
        return {"image": image.astype("uint8"), "label": label}
