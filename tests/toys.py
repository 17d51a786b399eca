"""Tiny models, tasks and data with one difficulty each, registered as a user registers them."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers, ops

from trainers.config.base import base, optimizer, schedule
from zoo import registry
from zoo.data import Dataset
from zoo.models.transfer import TransferClassifier
from zoo.tasks.base import Forward, Task


@dataclasses.dataclass
class Clock:
    """Fake of the module `time`."""

    perf_counter: Callable[[], float]
    time: Callable[[], float] = lambda: 1e9


class TokenTask(Task):
    """Token loss over unequal numbers of tokens; "mask" marks the tokens that count."""

    statistics = ("accuracy",)

    def term_counts(self, batch):
        return {"loss": ops.sum(self._mask(batch))}

    def _mask(self, batch):
        return ops.cast(batch["mask"], "float32") * batch["weight"][:, None]

    def forward(self, model, batch, training):
        logits = ops.cast(model(batch["tokens"], training=training), "float32")
        losses = ops.sparse_categorical_crossentropy(batch["targets"], logits, from_logits=True)
        mask = self._mask(batch)
        right = ops.cast(ops.argmax(logits, -1) == ops.cast(batch["targets"], "int32"), "float32")
        return Forward(
            {"loss": ops.sum(losses * mask)}, {"accuracy": (ops.sum(right * mask), ops.sum(mask))}
        )


class TwoTermTask(TokenTask):
    """Task with two loss terms, each with its own count and coefficient."""

    terms = {"tokens": 1.0, "squares": 0.3}

    def term_counts(self, batch):
        return {"tokens": ops.sum(self._mask(batch)), "squares": ops.sum(batch["weight"])}

    def forward(self, model, batch, training):
        result = super().forward(model, batch, training)
        logits = ops.cast(model(batch["tokens"], training=training), "float32")
        squares = ops.sum(ops.mean(ops.square(logits), (1, 2)) * batch["weight"])
        return Forward({"tokens": result.sums["loss"], "squares": squares}, result.statistics)


class PoisonTask(TokenTask):
    """Task that multiplies the loss by the largest "poison" of the batch, e.g. inf or NaN."""

    def forward(self, model, batch, training):
        result = super().forward(model, batch, training)
        result.sums["loss"] = result.sums["loss"] * ops.max(batch["poison"])
        return result


class InfiniteGradientTask(TokenTask):
    """Task with sqrt(0) added for a negative "poison": the loss is finite, its gradient is not."""

    def forward(self, model, batch, training):
        result = super().forward(model, batch, training)
        loss, poisoned = result.sums["loss"], ops.min(batch["poison"]) < 0
        root = ops.sqrt(ops.where(poisoned, loss - ops.stop_gradient(loss), 1.0))
        result.sums["loss"] = loss + root - ops.where(poisoned, 0.0, 1.0)
        return result


def token_model(vocabulary=11, width=8, dropout=0.0, l2=0.0, name="toy_tokens"):
    """Builds an embedding with a sparse gradient, two residual blocks and a logits layer."""
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(vocabulary, width, name="embedding")(tokens)
    for i in range(2):
        x = Block(width, dropout, l2, name=f"block_{i}")(x)
    x = layers.Dense(vocabulary, name="logits", dtype="float32")(x)
    return keras.Model(tokens, x, name=name)


@keras.saving.register_keras_serializable("toys")
class Block(layers.Layer):
    """Residual block of normalization, dense, dropout and dense layers."""

    def __init__(self, width, dropout=0.0, l2=0.0, **kwargs):
        super().__init__(**kwargs)
        self.settings = {"width": width, "dropout": dropout, "l2": l2}
        self.norm = layers.LayerNormalization(name="norm")
        self.up = layers.Dense(
            4 * width, activation="gelu", name="up",
            kernel_regularizer=keras.regularizers.L2(l2) if l2 else None,
        )  # fmt: skip
        self.dropout = layers.Dropout(dropout, name="dropout")
        self.down = layers.Dense(width, name="down")

    def build(self, shape):
        self.norm.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], 4 * shape[-1]))

    def call(self, x, training=None):
        return x + self.down(self.dropout(self.up(self.norm(x)), training=training))

    def get_config(self):
        return {**super().get_config(), **self.settings}


def norm_model(classes=3, name="toy_norm"):
    """Builds a classifier with a convolution and batch normalization."""
    image = keras.Input((6, 6, 1), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="convolution")(image)
    x = layers.BatchNormalization(momentum=0.8, name="norm")(x)
    x = layers.Flatten(name="flatten")(layers.ReLU(name="relu")(x))
    x = layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(image, x, name=name)


def frozen_model(classes=3, scale=1.0, name="toy_frozen"):
    """Builds a `TransferClassifier` of a frozen convolution and a head."""
    image = keras.Input((6, 6, 1), name="image")
    x = layers.Rescaling(scale, name="preprocessing")(image)
    x = layers.Conv2D(4, 3, activation="relu", trainable=False, name="convolution")(x)
    x = layers.Flatten(name="features")(x)
    x = layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(x)
    return TransferClassifier(image, x, name=name)


registry.register_task("toy_token", TokenTask)
registry.register_task("toy_two_terms", TwoTermTask)
registry.register_task("toy_poison", PoisonTask)
registry.register_task("toy_infinite_gradient", InfiniteGradientTask)
registry.register("toy_tokens", token_model, "toy_token")
registry.register("toy_norm", norm_model, "image_classification")
registry.register("toy_frozen", frozen_model, "image_classification")


def token_data(examples=70, seed=0, **more):
    """Returns sequences of 6 tokens with masks of 1 to 6 tokens; each batch has repeated ids."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 11, (examples, 6)).astype("int32")
    mask = np.arange(6) < generator.integers(1, 7, (examples, 1))
    arrays = {"tokens": tokens, "targets": (tokens * 3 + 1) % 11, "mask": mask, **more}
    return Dataset("toy", {"train": arrays}, (), f"toy-{seed}-{examples}")


def image_data(examples=70, seed=0, side=6, classes=3, test=0):
    """Returns images in which the brightness determines the class."""
    generator = np.random.default_rng(seed)

    def split(count):
        label = generator.integers(0, classes, count).astype("int32")
        image = generator.uniform(0, 60, (count, side, side, 1)) + 60 * label[:, None, None, None]
        return {"image": image.astype("uint8"), "label": label}

    splits = {"train": split(examples), **({"test": split(test)} if test else {})}
    return Dataset("toy", splits, tuple("abc"[:classes]), f"toy-{seed}")


def recipe(
    model="toy_tokens", task="toy_token", *, model_arguments=None, task_arguments=None, **trainer
):
    """Returns a config of 10 steps of 16 rows; of 70 examples, the fifth batch is short."""
    config = base()
    config.model = {"name": model, **(model_arguments or {})}
    config.task = {"name": task, **(task_arguments or {})}
    config.optimizer = optimizer("sgd", learning_rate=0.1)
    config.schedule = schedule("constant")
    config.trainer.update(
        {"steps": 10, "global_batch_size": 16, "log_every": 5, "checkpoint_every": 5, **trainer}
    )
    return config


def difference(one, other):
    """Returns the largest weight difference of two models, relative to the largest in the layer.

    The difference is not relative to each variable: after a few updates a bias is a sum of many
    gradients that cancel. Its rounding error depends on the CPU; one measured error was 1.3e-6 of
    the bias and 6e-8 of the kernel in the same layer.
    """
    gaps, sizes = {}, {}
    for a, b in zip(one.weights, other.weights, strict=True):
        layer = a.path.rpartition("/")[0]
        a, b = np.asarray(a.numpy(), "float64"), np.asarray(b.numpy(), "float64")
        gaps[layer] = max(gaps.get(layer, 0.0), np.abs(a - b).max())
        sizes[layer] = max(sizes.get(layer, 1e-3), np.abs(a).max())
    return max(gap / sizes[layer] for layer, gap in gaps.items())
