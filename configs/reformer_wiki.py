"""A small Reformer on the bytes of English Wikipedia articles, 4,096 bytes per sequence.

zoo train reformer_wiki --workdir=D     (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
zoo generate D --prompt="The city of" --temperature=0.8
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, without a download.

    `trainer.remat=reversible` makes the reversible stack store its outputs alone.
    """
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "reformer_nano", "vocabulary_size": 0, "sequence_length": 4096, "num_layers": 4,
        "hidden_dim": 128, "num_heads": 4, "intermediate_dim": 0, "depth": 0, "dropout": 0.0,
        "attention": "window:64,lsh:2:64", "position_shape": (), "position_widths": (),
        "activation": "relu", "epsilon": 1e-5,
    }  # fmt: skip
    config.task = {"name": "clm", "chunk": 0, "cross_documents": False}
    config.data.update(
        source="wikipedia_en", tokenizer="byte", sequence_length=4096, packing="best_fit"
    )
    config.optimizer = optimizer("muon", learning_rate=5e-3, weight_decay=0.1)
    config.schedule = schedule("cosine", warmup_steps=50)
    config.trainer.update(
        steps=1000, global_batch_size=8, precision="mixed_bfloat16", remat="reversible",
        steps_per_execution=5, evaluate_every=500, checkpoint_every=500,
    )  # fmt: skip
    if arg == "debug":
        config.model.update(num_layers=2, hidden_dim=32)
        config.data.update(source="pydoc", sequence_length=256)
        config.trainer.update(steps=20, log_every=5, evaluate_every=20, precision="float32")
        config.schedule.warmup_steps = 5
    return config
