"""Pretraining of a small encoder on English Wikipedia and novels: masked words.

zoo train encoder_wiki --workdir=D     (zoo fetch wikipedia_en novels_en, or ZOO_DATA_DIR, first)

Measured 2026-11-30 on 2 cores of an Intel Xeon at 2.8 GHz with AVX512, TensorFlow 2.21, Keras
3.15.1, float32, one seed: 44.8 % of the masked words of the test split are predicted correctly, and
45.4 % of those of the validation split; 63 minutes of processor time on both cores together, the
preparation of the data included. docs/pretraining_log.md has the curve and the other trials.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, offline."""
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "encoder_nano", "vocabulary_size": 4096, "sequence_length": 128, "num_layers": 3,
        "hidden_dim": 128, "num_heads": 4, "intermediate_dim": 512, "depth": 0, "dropout": 0.0,
        "rotary_base": 10_000.0, "neighbors": 3, "attention": "plain", "activation": "gelu",
        "epsilon": 1e-5,
    }  # fmt: skip
    config.task = {
        "name": "mlm", "mask_share": 0.15, "whole_word": False, "cross_documents": False
    }  # fmt: skip
    # Six articles that are in SQuAD's development set, too, are left out.
    config.data.update(
        source="wikipedia_en_without_squad+novels_en", tokenizer="wordpiece",
        vocabulary_size=4096, sequence_length=128, packing="best_fit",
    )  # fmt: skip
    # At equal processor time far ahead of AdamW, see docs/pretraining_log.md.
    config.optimizer = optimizer("muon", learning_rate=1e-2, weight_decay=0.1)
    config.schedule = schedule("linear", warmup_steps=100)
    config.trainer.update(
        steps=5500, global_batch_size=32, steps_per_execution=20, evaluate_every=500,
        checkpoint_every=500,
    )  # fmt: skip
    if arg == "debug":
        config.model.update(num_layers=2, hidden_dim=64, num_heads=2, vocabulary_size=1000)
        config.data.update(source="pydoc", vocabulary_size=1000)
        config.trainer.update(steps=40, log_every=20, evaluate_every=40)
        config.schedule.warmup_steps = 10
    return config
