"""The train step of every recipe suits TPUs: no dynamic shapes, strings, float64 or host calls."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from trainers.config.recipe import list_recipes, load_recipe, resolve
from trainers.tpu_check.abstract import AbstractStep, Share, share_of
from trainers.tpu_check.lowering import lower
from zoo.errors import RunError


class Step:
    """Replaces an `AbstractStep`; its update is a function of one tensor."""

    def __init__(self, function, shape=(4,), dtype=tf.float32):
        self.step, self.spec = self, {"x": tf.TensorSpec(shape, dtype)}
        self.update = lambda batch: function(batch["x"])

    def batch(self, share):
        return self.spec


def _host(x):
    return gen_xla_ops.xla_custom_call(
        args=[x], target_name="mine", backend_config="", dtype=tf.float32, shape=[4]
    )


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: tf.cast(x, tf.float64) * 3, "float64 .*Cast"),
        (lambda x: tf.boolean_mask(x, x > 0) * 2, "dynamic shapes .*"),
        (lambda x: tf.strings.length(tf.strings.as_string(x)), "not support strings .*AsString"),
        (lambda x: tf.numpy_function(np.sin, [x], tf.float32), "TPUs do not support PyFunc"),
        (_host, "communication with the host .custom-call mine at "),
    ],
)
def test_checks_that_fail_are_named(function, message):
    with pytest.raises(RunError, match=message):
        lower(Step(function), Share(4, 1))


def test_text_in_a_batch_is_named():
    with pytest.raises(RunError, match="not support strings .input x"):
        lower(Step(lambda x: x, dtype=tf.string), Share(4, 1))


def test_what_a_tpu_can_run_passes():
    def function(x):
        tf.debugging.assert_less(x, 3.0, message="text that XLA drops")
        return tf.image.resize(tf.reshape(x, (1, 2, 2, 1)), (5, 5))  # uses float64

    assert lower(Step(function), Share(4, 1))


# All recipes, in full and in debug size, and variants with other models.
RECIPES = [
    *(
        name + variant
        for name in list_recipes()
        for variant in ("", ":debug")
        if variant or load_recipe(name).model.name  # the model of finetune comes from init_from
    ),
    "gpt_scaling:4", "vgg16_transfer:pretrain", "vgg16_transfer:finetune",
]  # fmt: skip


@pytest.mark.parametrize(
    "recipe",
    [r if r == "cnn_digits:debug" else pytest.param(r, marks=pytest.mark.slow) for r in RECIPES],
)
def test_recipes_pass(recipe):
    characters = [("data.vocabulary_size", "65")] if "shakespeare" in recipe else []
    config = resolve(recipe, characters)  # avoids reading the text to count its characters
    # Sizes that a run takes from its data, and batches of one length.
    if config.task.name == "text_classification":
        config.task.update(trim=0, num_classes=config.task.num_classes or 2)
        if "num_classes" in config.model:
            config.model.num_classes = config.task.num_classes
    if not config.model.get("vocabulary_size", 1):
        config.model.vocabulary_size = config.data.vocabulary_size
    # Recipes of long sequences have fewer sequences per update than the TPU has cores.
    config.trainer.global_batch_size = max(8, config.trainer.global_batch_size)
    abstract = AbstractStep(config)
    hlo = lower(abstract, share_of(config, 8))
    assert len(hlo) > 10_000
