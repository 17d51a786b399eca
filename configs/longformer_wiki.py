"""A small Longformer on English Wikipedia articles, whole documents packed in rows.

zoo train longformer_wiki --workdir=D        (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, without a download.

    Other windows, such as dilated ones in every second block:
    --config.model.attention=window:64,window:64:2
    """
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "longformer_nano", "vocabulary_size": 8192, "sequence_length": 1024,
        "num_layers": 4, "hidden_dim": 128, "num_heads": 4, "intermediate_dim": 0, "depth": 0,
        "dropout": 0.0, "attention": "window:64", "global_tokens": "start", "max_global": 16,
        "start_token": 2, "separator_token": 4, "epsilon": 1e-5,
    }  # fmt: skip
    config.task = {
        "name": "mlm", "mask_share": 0.15, "whole_word": False, "cross_documents": False
    }  # fmt: skip
    config.data.update(
        source="wikipedia_en", tokenizer="wordpiece", vocabulary_size=8192, sequence_length=1024,
        packing="best_fit",
    )  # fmt: skip
    config.optimizer = optimizer("muon", learning_rate=4e-3, weight_decay=0.1)
    config.schedule = schedule("linear", warmup_steps=100)
    config.trainer.update(
        steps=2000, global_batch_size=8, precision="mixed_bfloat16", steps_per_execution=10,
        evaluate_every=500, checkpoint_every=500,
    )  # fmt: skip
    if arg == "debug":
        config.model.update(
            num_layers=2, hidden_dim=64, num_heads=2, vocabulary_size=1000, sequence_length=256,
            attention="window:16",
        )  # fmt: skip
        config.data.update(source="pydoc", vocabulary_size=1000, sequence_length=256)
        config.trainer.update(steps=20, log_every=10, evaluate_every=20, precision="float32")
        config.schedule.warmup_steps = 5
    return config
