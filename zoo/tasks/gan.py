"""Adversarial training (Goodfellow et al. 2014, Generative Adversarial Nets).

Stored examples: "image" (height, width, channels) uint8; labels are ignored. Each step updates the
discriminator first, then the generator, with different noise. The noise is part of the batch and
depends only on (seed, step, index in the batch), so it is the same for any number of replicas or
micro-batches and after a resume.
"""

import numpy as np

from zoo.errors import UsageError
from zoo.lazy import ops
from zoo.tasks.base import Forward, ModelPart, Task
from zoo.tasks.gan_metrics import check_classifier, measure

LOSSES = ("non_saturating", "hinge")
# Thresholds on the means of a log interval, beyond which a network no longer learns.
_MAX_ACCURACY, _MIN_MARGIN = 0.999, 1e-3


class GenerativeAdversarial(Task):
    """Losses and metrics of a generator and a discriminator, each with its own optimizer.

    Args:
      loss: "non_saturating" (Goodfellow et al. 2014, section 3) or "hinge" (Lim and Ye 2017,
        Geometric GAN, arXiv:1705.02894, equations 12 and 13).
      r1: weight gamma of the penalty gamma/2 * |gradient of the logit at real images|^2
        (Mescheder et al. 2018, arXiv:1801.04406, equation 9); 0 for none.
      discriminator_rate: factor on the recipe's learning rate for the discriminator (Heusel et al.
        2017, arXiv:1706.08500).
      classifier: work directory of a classifier of the same images. Its features and classes
        serve to measure generated images; "" for no measurement.
      samples: number of generated images to measure.
    """

    statistics = ("real_right", "fake_right", "margin")
    monitor = "val_generator"
    keeps_best = False  # val_generator is lowest at the start, while the discriminator is weak
    sample_kind = "images"

    def __init__(
        self,
        loss: str = "non_saturating",
        r1: float = 0.0,
        discriminator_rate: float = 1.0,
        classifier: str = "",
        samples: int = 10_000,
    ):
        if loss not in LOSSES:
            raise UsageError(f"task.loss must be one of {', '.join(LOSSES)}. Received: {loss!r}.")
        if r1 < 0 or discriminator_rate <= 0:
            raise UsageError(
                "task.r1 must be 0 (off) or positive, and task.discriminator_rate must be "
                f"positive. Received: task.r1={r1}, task.discriminator_rate={discriminator_rate}."
            )
        if samples < 100:
            raise UsageError(f"task.samples must be at least 100. Received: {samples}.")
        self.loss, self.discriminator_rate = loss, discriminator_rate
        self.classifier, self.samples = classifier, samples
        self.terms = {"discriminator": 1.0, "generator": 1.0}
        if r1:
            self.terms["r1"] = r1 / 2

    def check_arguments(self, arguments, dataset) -> None:
        """Checks that the data have images, and that `task.classifier` accepts them."""
        for split, arrays in dataset.splits.items():
            if "image" not in arrays:
                raise UsageError(
                    "The task 'gan' requires the array 'image'. Received: dataset "
                    f"{dataset.name!r}, split {split!r} with the arrays {', '.join(arrays)}."
                )
        if self.classifier:
            check_classifier(self.classifier, dataset)

    def bind(self, model, dataset=None, arguments=None):
        """Reads the size of the noise from the generator.

        Raises:
          UsageError: if the model has no generator or no discriminator.
        """
        if not hasattr(model, "discriminator") or not hasattr(model, "generator"):
            raise UsageError(
                "The task 'gan' requires a model with a generator and a discriminator. "
                f"Received: {model.name!r}."
            )
        self.noise_dim = model.generator.input_shape[-1]
        return self

    def check(self, model, dataset) -> None:
        """Checks that image shapes match the discriminator's input."""
        self.check_arguments({}, dataset)
        expected = tuple(model.discriminator.input_shape[1:])
        for split, arrays in dataset.splits.items():
            shape = tuple(arrays["image"].shape[1:])
            if shape != expected:
                raise UsageError(
                    f"The model requires images of shape {expected}. Received: dataset "
                    f"{dataset.name!r}, split {split!r} with images of shape {shape}."
                )

    def prepare(self, batch, uniform, training):
        """Scales uint8 images to [-1, 1] and draws normal noise for both networks."""
        import tensorflow as tf

        image = batch["image"]
        if image.dtype == tf.uint8:
            image = tf.cast(image, tf.float32) * (2 / 255) - 1
        # The offset, below the resolution of the uniform numbers, avoids ndtri(0) = -inf.
        noise = tf.math.ndtri(uniform(2 * self.noise_dim) + 2**-25)
        discriminator_noise, generator_noise = tf.split(noise, 2, axis=1)
        return {
            "image": image, "weight": batch["weight"],
            "discriminator_noise": discriminator_noise, "noise": generator_noise,
        }  # fmt: skip

    def model_parts(self, model):
        """Returns discriminator and generator; `trainer.ema` applies to the generator alone."""
        discriminator_terms = {k: v for k, v in self.terms.items() if k != "generator"}
        return (
            ModelPart(
                "discriminator", model.discriminator, discriminator_terms,
                self._discriminator_forward, rate=self.discriminator_rate, averaged=False,
            ),
            ModelPart("generator", model.generator, {"generator": 1.0}, self._generator_forward),
        )  # fmt: skip

    def term_counts(self, batch):
        """Returns the number of real images, which equals that of generated images."""
        return dict.fromkeys(self.terms, ops.sum(batch["weight"]))

    def forward(self, model, batch, training):
        """Returns the terms of both networks; outputs are the generator's images."""
        discriminator = self._discriminator_forward(model, batch, training)
        generator = self._generator_forward(model, batch, training)
        return Forward(
            {**discriminator.sums, **generator.sums}, discriminator.statistics, generator.outputs
        )

    def _discriminator_forward(self, model, batch, training):
        weight = batch["weight"]
        fakes = ops.stop_gradient(model.generator(batch["discriminator_noise"], training=training))
        if "r1" in self.terms:
            real, gradients = self._logits_and_gradients(model.discriminator, batch, training)
        else:
            real = model.discriminator(batch["image"], training=training)[:, 0]
        fake = model.discriminator(fakes, training=training)[:, 0]
        if self.loss == "hinge":
            losses = ops.relu(1 - real) + ops.relu(1 + fake)
        else:
            losses = ops.softplus(-real) + ops.softplus(fake)
        sums = {"discriminator": ops.sum(losses * weight)}
        if "r1" in self.terms:
            sums["r1"] = ops.sum(ops.sum(ops.square(gradients), (1, 2, 3)) * weight)
        count = ops.sum(weight)
        correct = ops.cast(real > 0, "float32"), ops.cast(fake < 0, "float32")
        statistics = {
            "real_right": (ops.sum(correct[0] * weight), count),
            "fake_right": (ops.sum(correct[1] * weight), count),
            "margin": (ops.sum((real - fake) * weight), count),
        }
        return Forward(sums, statistics, fakes)

    def _generator_forward(self, model, batch, training):
        fakes = model.generator(batch["noise"], training=training)
        logits = model.discriminator(fakes, training=training)[:, 0]
        losses = -logits if self.loss == "hinge" else ops.softplus(-logits)
        return Forward({"generator": ops.sum(losses * batch["weight"])}, {}, fakes)

    def _logits_and_gradients(self, discriminator, batch, training):
        """Returns logits (B,) and their gradients with respect to the images, in image shape.

        Logits of padding rows are excluded: if a layer mixes rows, they depend on real images.
        """
        import tensorflow as tf

        image = batch["image"]
        with tf.GradientTape() as tape:
            tape.watch(image)
            logits = discriminator(image, training=training)[:, 0]
        real = tf.cast(batch["weight"], logits.dtype)
        gradients = tape.gradient(logits, image, output_gradients=real)
        return logits, tf.cast(gradients, tf.float32)

    def serving_model(self, model):
        """Returns the generator: from noise (B, noise_dim) to images in [-1, 1]."""
        return model.generator

    def warning(self, logs):
        """Returns a warning if one network has won, because learning then stops."""
        if min(logs["real_right"], logs["fake_right"]) > _MAX_ACCURACY:
            return (
                "the discriminator classifies nearly all images correctly, so the generator "
                "learns little: increase task.r1 or decrease task.discriminator_rate"
            )
        if abs(logs["margin"]) < _MIN_MARGIN:
            return (
                "the discriminator has collapsed: its logits of real and generated images are "
                "equal; decrease optimizer.learning_rate"
            )
        return ""

    def evaluate_split(self, model, dataset, split):
        """Measures generated images by `task.classifier`; returns no metrics without one."""
        if not self.classifier:
            return {}, []
        return measure(model, dataset, split, self.classifier, self.samples), []

    def synthetic(self, model, examples, seed):
        """Returns images of a bright spot at a random position, under noise.

        Without noise, many pixels would be equal, and rounding would decide which of them gets the
        gradient of max pooling.
        """
        generator = np.random.default_rng(seed)
        height, width, channels = model.discriminator.input_shape[1:]
        center = generator.uniform(0.3, 0.7, (examples, 2, 1, 1)) * [[[height]], [[width]]]
        y, x = np.arange(height)[:, None], np.arange(width)
        squares = (y - center[:, 0]) ** 2 + (x - center[:, 1]) ** 2
        image = 200 * np.exp(-squares / (0.02 * height * width))
        image += generator.uniform(0, 55, image.shape)
        return {"image": np.repeat(image[..., None], channels, -1).astype("uint8")}
