"""Tiny models, tasks and data that show one difficulty each, registered as a user would."""

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
    """Stands for the module `time`."""

    perf_counter: Callable[[], float]
    time: Callable[[], float] = lambda: 1e9


class TokenTask(Task):
    """Next-token loss over unequal numbers of tokens: "mask" says which count."""

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
    """Two loss terms with weights and coefficients of their own."""

    terms = {"tokens": 1.0, "squares": 0.3}

    def term_counts(self, batch):
        return {"tokens": ops.sum(self._mask(batch)), "squares": ops.sum(batch["weight"])}

    def forward(self, model, batch, training):
        result = super().forward(model, batch, training)
        logits = ops.cast(model(batch["tokens"], training=training), "float32")
        squares = ops.sum(ops.mean(ops.square(logits), (1, 2)) * batch["weight"])
        return Forward({"tokens": result.sums["loss"], "squares": squares}, result.statistics)


class PoisonTask(TokenTask):
    """Multiplies the loss by the example's "poison": inf or NaN wherever a test wants it."""

    def forward(self, model, batch, training):
        result = super().forward(model, batch, training)
        result.sums["loss"] = result.sums["loss"] * ops.max(batch["poison"])
        return result


class InfiniteGradientTask(TokenTask):
    """A negative "poison" adds the root of zero: 0 to the loss, inf to its gradient."""

    def forward(self, model, batch, training):
        result = super().forward(model, batch, training)
        loss, poisoned = result.sums["loss"], ops.min(batch["poison"]) < 0
        root = ops.sqrt(ops.where(poisoned, loss - ops.stop_gradient(loss), 1.0))
        result.sums["loss"] = loss + root - ops.where(poisoned, 0.0, 1.0)
        return result


def token_model(vocabulary=11, width=8, dropout=0.0, l2=0.0, name="toy_tokens"):
    """Embedding, two residual blocks, logits; the embedding's gradient is sparse."""
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(vocabulary, width, name="embedding")(tokens)
    for i in range(2):
        x = Block(width, dropout, l2, name=f"block_{i}")(x)
    x = layers.Dense(vocabulary, name="logits", dtype="float32")(x)
    return keras.Model(tokens, x, name=name)


@keras.saving.register_keras_serializable("toys")
class Block(layers.Layer):
    """Residual: norm, dense, dropout, dense."""

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
    """Convolution and batch normalisation."""
    image = keras.Input((6, 6, 1), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="convolution")(image)
    x = layers.BatchNormalization(momentum=0.8, name="norm")(x)
    x = layers.Flatten(name="flatten")(layers.ReLU(name="relu")(x))
    x = layers.Dense(classes, activation="softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(image, x, name=name)


def frozen_model(classes=3, scale=1.0, name="toy_frozen"):
    """A frozen convolution and a head: the parts of a `TransferClassifier`."""
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
    """Sequences whose masks keep 1 to 6 tokens; repeated ids in every batch."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 11, (examples, 6)).astype("int32")
    mask = np.arange(6) < generator.integers(1, 7, (examples, 1))
    arrays = {"tokens": tokens, "targets": (tokens * 3 + 1) % 11, "mask": mask, **more}
    return Dataset("toy", {"train": arrays}, (), f"toy-{seed}-{examples}")


def image_data(examples=70, seed=0, side=6, classes=3, test=0):
    """Pictures whose brightness tells their class."""
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
    """A recipe of ten steps of 16 rows; 70 examples make the fifth batch of each epoch short."""
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
    """Largest difference between two models' weights, relative to the largest of each layer.

    Not of each variable: a bias that is a few updates old is a sum of many gradients that cancel,
    and its rounding, which depends on the CPU, was seen to be 1.3e-6 of itself and 6e-8 of the
    kernel beside it.
    """
    gaps, sizes = {}, {}
    for a, b in zip(one.weights, other.weights, strict=True):
        layer = a.path.rpartition("/")[0]
        a, b = np.asarray(a.numpy(), "float64"), np.asarray(b.numpy(), "float64")
        gaps[layer] = max(gaps.get(layer, 0.0), np.abs(a - b).max())
        sizes[layer] = max(sizes.get(layer, 1e-3), np.abs(a).max())
    return max(gap / sizes[layer] for layer, gap in gaps.items())
