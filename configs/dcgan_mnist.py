"""A convolutional GAN on 60,000 handwritten digits.

    zoo train dcgan_mnist --workdir=D      (zoo fetch mnist, or ZOO_DATA_DIR, first)
    zoo generate D

With --config.task.classifier=W, W a work directory of `cnn_mnist`, the samples are measured.
"""

from configs import gan_mnist
from configs.base import optimizer


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute, without a download."""
    config = gan_mnist.get_config(arg)
    config.model = {"name": "dcgan_mnist", "noise_dim": 64, "filters": 32}
    config.task.r1 = 1.0
    config.optimizer = optimizer("adam", learning_rate=5e-4, beta_1=0.0, beta_2=0.99)
    if not arg:
        config.trainer.epochs = 20
    return config
