"""Handwritten digit classifier with 93,322 parameters, on the 60,000 MNIST images.

    zoo train cnn_mnist --workdir=D        (zoo fetch mnist, or ZOO_DATA_DIR, first)

Measured 2026-11-23 on 2 cores of an AMD EPYC with AVX512_BF16, TensorFlow 2.21, Keras 3.15.1: test
accuracy 99.69, 99.67 and 99.58 % on 10,000 images (seeds 0, 1, 2; mean 99.647 %) after 283 to 291 s
of training, 8,400 to 9,100 images/s with augmentation. The goal is 99.65 % within 300 s: the mean
rounds to it and is 0.003 points below.

The settings were chosen on 10,000 held-out training images, 36 epochs, one run each: label
smoothing 0.1 gave 99.64 %, none 99.55 %; batch 128 at 3e-3 gave 99.56 %; 1.5 times the rotation,
zoom and shear (15, 0.15, 15) gave 99.64 %; a run of 48 epochs had 99.65 % when it was stopped at
the 44th. XLA is off: with it a step takes 109 ms instead of 30 (`zoo bench cnn_mnist
--config.trainer.jit_compile=true`), because its convolutions on a CPU are slower than oneDNN's.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores."""
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "cnn_classifier", "input_shape": (28, 28, 1), "filters": (32, 64, 64),
        "hidden_dim": 64, "num_classes": 10,
    }  # fmt: skip
    config.task = {
        "name": "image_classification", "label_smoothing": 0.1, "rotation": 10.0, "shift": 2.0,
        "zoom": 0.1, "shear": 10.0, "augment": (), "feature_views": 1, "class_weights": False,
    }  # fmt: skip
    config.data.source = "mnist"
    config.optimizer = optimizer("adamw", learning_rate=4e-3, weight_decay=1e-2)
    config.schedule = schedule("cosine", warmup_steps=200)
    config.trainer.update(
        epochs=40, global_batch_size=256, precision="mixed_bfloat16", ema=0.999,
        steps_per_execution=10,
    )  # fmt: skip
    if arg == "debug":
        config.trainer.update(epochs=0, steps=30, global_batch_size=128, ema=0.9, log_every=10)
        config.schedule.warmup_steps = 5
    return config
