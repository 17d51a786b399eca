"""Handwritten digits: the 93,322-parameter classifier on the 60,000 MNIST images.

    zoo train cnn_mnist --workdir=D        (zoo fetch mnist, or ZOO_DATA_DIR, first)

Measured 2026-11-23 on 2 cores of an AMD EPYC with AVX512_BF16, TensorFlow 2.21, Keras 3.15.1:
99.69, 99.67 and 99.58 % of the 10,000 test images (seeds 0, 1, 2; mean 99.647 %) after 283 to 291 s
of training, 8,400 to 9,100 images a second with augmentation. The goal is 99.65 % within 300 s: the
mean rounds to it and is 0.003 points under it.

Chosen on 10,000 held-out training images, 36 epochs, one run each: label smoothing 0.1 gave
99.64 % where none gave 99.55 %; batch 128 at 3e-3 gave 99.56 %; half as much rotation, zoom and
shear again (15, 0.15, 15) gave 99.64 %; a run of 48 epochs stood at 99.65 % when it was stopped at
the 44th. XLA is off: with it a step takes 109 ms instead of 30 (`zoo bench cnn_mnist
--config.trainer.jit_compile=true`), since its convolutions on a CPU are slower than oneDNN's.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import unknown_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores."""
    config = base()
    config.model = {
        "name": "cnn_classifier",
        "input_shape": (28, 28, 1),
        "filters": (32, 64, 64),
        "hidden_dim": 64,
        "num_classes": 10,
    }
    config.task = {
        "name": "image_classification",
        "label_smoothing": 0.1,
        "rotation": 10.0,
        "shift": 2.0,
        "zoom": 0.1,
        "shear": 10.0,
        "augment": (),
        "feature_views": 1,
    }
    config.data.source = "mnist"
    config.optimizer = optimizer("adamw", learning_rate=4e-3, weight_decay=1e-2)
    config.schedule = schedule("cosine", warmup_steps=200)
    config.trainer.epochs = 40
    config.trainer.global_batch_size = 256
    config.trainer.precision = "mixed_bfloat16"
    config.trainer.ema = 0.999
    config.trainer.steps_per_execution = 10
    if arg == "debug":
        config.trainer.epochs, config.trainer.steps = 0, 30
        config.trainer.global_batch_size = 128
        config.trainer.ema = 0.9
        config.trainer.log_every = 10
        config.schedule.warmup_steps = 5
    elif arg:
        raise unknown_variant(arg, ["debug"])
    return config
