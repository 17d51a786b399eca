"""An axial transformer on the 60,000 MNIST images, one token per pixel.

    zoo train axial_mnist --workdir=D        (zoo fetch mnist, or ZOO_DATA_DIR, first)
    zoo generate D --count=16

Measured 2026-11-29 on 2 cores of an Intel Xeon with AMX and AVX512_BF16, TensorFlow 2.21, Keras
3.15.1, by `python -m benchmarks.recipe_result axial_mnist --metric loss bits_per_byte
--argument=--config.trainer.steps=500`: 0.997 bits per dimension on the 10,000 test images after 500
of the 6,000 updates (4,000 images), seed 0. The 1,616 s of training say nothing about speed,
because other programs used the cores. The full run is not measured. For comparison, a histogram of
each pixel of the training images, with one added to each count, has 1.690 bits per dimension on the
test images; one histogram of all pixels has 1.967.

mixed_bfloat16 is off: a forward and backward pass of 16 images with a larger model takes 0.90 s of
processor time with it and 0.84 s without it.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, without a download.

    Bits per byte of the logs are bits per dimension. An image folder, as 32 rows of 96 values:
    --config.data.source=folder:F --config.data.image_size=32,32 --config.model.columns=96
    --config.model.sequence_length=3072
    """
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "axial_image_nano", "vocabulary_size": 256, "sequence_length": 784, "columns": 28,
        "num_outer_layers": 2, "num_inner_layers": 2, "hidden_dim": 64, "num_heads": 2,
        "intermediate_dim": 0, "dropout": 0.0, "activation": "gelu_tanh", "epsilon": 1e-5,
    }  # fmt: skip
    config.task = {"name": "clm", "chunk": 0, "cross_documents": False}
    config.data.update(source="mnist", tokenizer="pixels")
    config.optimizer = optimizer("muon", learning_rate=5e-3, weight_decay=0.1)
    config.schedule = schedule("cosine", warmup_steps=50)
    config.trainer.update(
        steps=6000, global_batch_size=8, steps_per_execution=5, checkpoint_every=1000
    )
    if arg == "debug":
        config.model.update(num_inner_layers=1, hidden_dim=32)
        config.data.source = "digits"
        config.trainer.update(steps=20, log_every=5)
        config.schedule.warmup_steps = 5
    return config
