"""The digit classifier on 5,000 MNIST images that come with a dependency: no download."""

from configs import cnn_mnist
from trainers.recipe import unknown_variant


def get_config(arg: str = ""):
    """Variants: "" trains to the end, "debug" ends within a minute on two cores."""
    if arg not in ("", "debug"):
        raise unknown_variant(arg, ["debug"])
    config = cnn_mnist.get_config(arg)
    config.data.source = "digits"
    config.data.validation_size = 500
    config.trainer.global_batch_size = 64
    config.trainer.precision = "float32"
    config.schedule.warmup_steps = 20
    if not arg:
        config.trainer.ema = 0.99
        config.trainer.epochs = 20
        config.trainer.log_every = 55
    return config
