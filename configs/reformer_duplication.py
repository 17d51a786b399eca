"""A Reformer of one layer that repeats 511 random symbols: the duplication task at 1,024 tokens.

zoo train reformer_duplication --workdir=D

Loss and accuracy are those of the second copy (Kitaev et al. 2020, Reformer, arXiv:2001.04451,
section 2, "Analysis on a synthetic task"). As in the paper, one layer attends by hashing with four
rounds. The axial positions have 511 columns, the distance from a symbol of the first copy to the
position that predicts its repetition, so that both have the vector of a column in common: the hash
need not learn the distance. Two layers `window:2,lsh:4:64` with 512 columns, which have to learn a
step by one position, were at chance after 500 updates.

Measured 2026-11-29 on 2 cores of an Intel Xeon with AMX and AVX512_BF16, which other processes used
too, TensorFlow 2.21, Keras 3.15.1, by `python -m benchmarks.recipe_result reformer_duplication
--seeds 0 1 --metric accuracy loss`: 99.94 and 99.98 % of the second copy's symbols on 128 test
rows, 0.18 s of processor time per update, 465 and 409 s of training.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores."""
    check_variant(arg, ["debug"])
    length = 64 if arg else 1024
    config = base()
    config.model = {
        "name": "reformer_nano", "vocabulary_size": 0, "sequence_length": length, "num_layers": 1,
        "hidden_dim": 64, "num_heads": 2, "intermediate_dim": 128, "depth": 0, "dropout": 0.0,
        "attention": "lsh:4:64", "position_shape": (3, length // 2 - 1),
        "position_widths": (16, 48), "activation": "relu", "epsilon": 1e-5,
    }  # fmt: skip
    config.task = {"name": "clm", "chunk": 0, "cross_documents": False}
    config.data.update(source="synthetic:duplication", tokenizer="byte", sequence_length=length)
    config.optimizer = optimizer("muon", learning_rate=5e-3)
    config.schedule = schedule("wsd", warmup_steps=50)
    config.trainer.update(
        steps=600, global_batch_size=4, log_every=50, evaluate_every=300, checkpoint_every=300
    )
    if arg == "debug":
        config.trainer.update(steps=150, global_batch_size=32, evaluate_every=150)
        config.schedule.warmup_steps = 5
    return config
