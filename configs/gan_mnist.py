"""The plain GAN on 60,000 handwritten digits.

    zoo train gan_mnist --workdir=D        (zoo fetch mnist, or ZOO_DATA_DIR, first)
    zoo generate D

With --config.task.classifier=W, where W is a work directory of `cnn_mnist`, the run also measures
the samples.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute, without a download."""
    check_variant(arg, ["debug"])
    config = base()
    config.model = {"name": "gan_mnist", "noise_dim": 100, "hidden_dim": 128, "filters": 64}
    config.task = {
        "name": "gan", "loss": "non_saturating", "r1": 0.0, "discriminator_rate": 1.0,
        "classifier": "", "samples": 10_000,
    }  # fmt: skip
    config.data.source = "mnist"
    config.optimizer = optimizer("adam", learning_rate=2e-4, beta_1=0.5)
    config.schedule = schedule("constant")
    config.trainer.update(epochs=30, global_batch_size=128, ema=0.999, steps_per_execution=10)
    if arg == "debug":
        config.data.source = "digits"
        config.trainer.update(
            epochs=0, steps=60, ema=0.9, log_every=20, evaluate_every=30, checkpoint_every=30
        )
    return config
