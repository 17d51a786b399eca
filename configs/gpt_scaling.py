"""A rung of a ladder of GPTs: the same data and steps for each size, given by one dial.

    zoo train gpt_scaling:3 --workdir=D         (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
    python -m benchmarks.scaling_ladder         all rungs, the plot and the fitted power law

The argument is the depth: that many blocks, 64 times as wide. Every rung sees the same tokens in
the same order, none of them twice.

Measured 2026-11-26 on 2 cores of an AMD EPYC without AVX512, float32, TensorFlow 2.21, Keras
3.15.1, 1,500 steps of 16 rows of 128 tokens, one seed: 4.4998, 4.1834, 4.0659 and 3.9971 nats a
token of the validation split (2.187, 2.033, 1.976 and 1.943 bits a byte) at 50,112, 396,800,
1,334,976 and 3,159,552 parameters besides the embedding. Fitted: loss = 3.729 +
(17,950 / N)^0.254; four points and three numbers, so the floor says little. Other work ran beside
it: 170 s to 37 minutes are no measure of speed.

The learning rate falls as 1 / width, by the argument; --config.model.depth leaves it as it is. With
3e-3 for all, the largest came out worse than the third: 4.3225 against 4.066 (rows of
results/scaling.csv before the last of each rung).
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import unknown_variant

DEPTHS = (1, 2, 3, 4)


def get_config(arg: str = ""):
    """Variants: "1" to "4" by depth ("" is 2), "debug" ends within a minute on two cores."""
    if arg not in ("", "debug", *map(str, DEPTHS)):
        raise unknown_variant(arg, [*map(str, DEPTHS), "debug"])
    config = base()
    config.model = {
        "name": "gpt_nano",
        "vocabulary_size": 0,
        "sequence_length": 128,
        "num_layers": 0,
        "hidden_dim": 0,
        "num_heads": 0,
        "intermediate_dim": 0,
        "depth": int(arg) if arg.isdigit() else 2,
        "dropout": 0.0,
        "rotary_base": 10_000.0,
        "tie_weights": True,
    }
    config.task = {"name": "clm", "chunk": 512, "cross_documents": False}
    config.data.source = "wikipedia_en"
    config.data.tokenizer = "bpe"
    config.data.vocabulary_size = 2048
    config.data.sequence_length = 128
    rate = 6e-3 / (int(arg) if arg.isdigit() else 2)  # as 1 / width (arXiv:2203.03466, table 3)
    config.optimizer = optimizer("adamw", learning_rate=rate, weight_decay=0.1, clip_norm=1.0)
    config.schedule = schedule("cosine", warmup_steps=50, final_fraction=0.1)
    config.trainer.steps = 1500
    config.trainer.global_batch_size = 16
    config.trainer.precision = "mixed_bfloat16"
    config.trainer.evaluate_every = 1500
    config.trainer.checkpoint_every = 500
    if arg == "debug":
        config.model.depth = 1
        config.data.source = "pydoc"
        config.trainer.steps = 20
        config.trainer.log_every = 5
        config.trainer.evaluate_every = 20
        config.trainer.precision = "float32"
        config.schedule.warmup_steps = 5
    return config
