"""GPTs of four sizes on the same data, for a scaling law: one number sets the size.

    zoo train gpt_scaling:3 --workdir=D         (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
    python -m benchmarks.scaling_ladder         all sizes, the plot and the fitted power law

The argument is the depth: the number of blocks; the width is 64 times the depth. Every size trains
on the same tokens in the same order, each token once.

Measured 2026-11-26 on 2 cores of an AMD EPYC without AVX512, float32, TensorFlow 2.21, Keras
3.15.1, 1,500 steps of 16 rows of 128 tokens, one seed: validation loss 4.4998, 4.1834, 4.0659 and
3.9971 nats per token (2.187, 2.033, 1.976 and 1.943 bits per byte) with 50,112, 396,800, 1,334,976
and 3,159,552 parameters without the embedding. Fitted: loss = 3.729 + (17,950 / N)^0.254. Four
points determine three numbers poorly, above all the constant. Other jobs shared the machine: the
training times of 170 s to 37 minutes do not measure speed.

The argument also sets the learning rate, as 1 / width; --config.model.depth leaves the rate as it
is. With 3e-3 for all sizes the largest model was worse than the third: 4.3225 against 4.066 (rows
of results/scaling.csv before the last of each size).
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant

DEPTHS = (1, 2, 3, 4)


def get_config(arg: str = ""):
    """Variants: "1" to "4" by depth ("" is 2), "debug" ends within a minute on two cores."""
    check_variant(arg, [*map(str, DEPTHS), "debug"])
    depth = int(arg) if arg.isdigit() else 2
    config = base()
    config.model = {
        "name": "gpt_nano", "vocabulary_size": 0, "sequence_length": 128, "num_layers": 0,
        "hidden_dim": 0, "num_heads": 0, "intermediate_dim": 0, "depth": depth, "dropout": 0.0,
        "rotary_base": 10_000.0, "attention": "plain", "tie_weights": True,
    }  # fmt: skip
    config.task = {"name": "clm", "chunk": 512, "cross_documents": False}
    config.data.update(
        source="wikipedia_en", tokenizer="bpe", vocabulary_size=2048, sequence_length=128
    )
    rate = 6e-3 / depth  # as 1 / width (arXiv:2203.03466, table 3)
    config.optimizer = optimizer("adamw", learning_rate=rate, weight_decay=0.1, clip_norm=1.0)
    config.schedule = schedule("cosine", warmup_steps=50, final_fraction=0.1)
    config.trainer.update(
        steps=1500, global_batch_size=16, precision="mixed_bfloat16", evaluate_every=1500,
        checkpoint_every=500,
    )  # fmt: skip
    if arg == "debug":
        config.model.depth = 1
        config.data.source = "pydoc"
        config.trainer.update(steps=20, log_every=5, evaluate_every=20, precision="float32")
        config.schedule.warmup_steps = 5
    return config
