"""Handwritten digits: the 93,322-parameter classifier on the 60,000 MNIST images."""

from configs.base import base, optimizer, schedule
from trainers.recipe import unknown_variant


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
    }
    config.data.source = "mnist"
    config.optimizer = optimizer("adamw", learning_rate=4e-3, weight_decay=1e-2)
    config.schedule = schedule("cosine", warmup_steps=200)
    config.trainer.epochs = 42
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
