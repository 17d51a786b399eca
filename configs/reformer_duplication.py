"""A Reformer of one layer that repeats 511 random symbols: the duplication task at 1,024 tokens.

zoo train reformer_duplication --workdir=D

Loss and accuracy are those of the second copy (Kitaev et al. 2020, Reformer, arXiv:2001.04451,
section 5). As in the paper, one layer attends by hashing with four rounds. The columns of the axial
positions repeat every 511 positions, the distance from the symbol that is predicted next in the
first copy to the position that predicts it, so that both have a vector in common; the paper learns
150,000 updates with other positions. Two layers `window:2,lsh:4:64` with 512 columns had not left
chance after 500 updates of 4 rows.
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
