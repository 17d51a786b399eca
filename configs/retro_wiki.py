"""A small RETRO on English Wikipedia articles: a decoder that reads similar passages.

zoo train retro_wiki --workdir=D            (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
zoo train retro_wiki --workdir=P --config.model.neighbors=0      the same decoder without neighbors

Neighbors of each 64 tokens are found by BM25 in the training split, once, and kept in the cache;
never in the article itself or a near duplicate of it. Not measured yet.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, without a download.

    The twin without neighbors has the same decoder, and neither encoder nor cross-attention.
    """
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "retro_nano", "vocabulary_size": 0, "sequence_length": 256, "num_layers": 4,
        "hidden_dim": 128, "num_heads": 4, "intermediate_dim": 0, "depth": 0, "dropout": 0.0,
        "rotary_base": 10_000.0, "neighbors": 2, "chunk_size": 64, "num_encoder_layers": 1,
        "cross_every": 2, "tie_weights": True,
    }  # fmt: skip
    config.task = {
        "name": "retro", "chunk": 512, "cross_documents": False, "index": "", "neighbors": 2,
        "chunk_size": 64,
    }  # fmt: skip
    config.data.update(
        source="wikipedia_en", tokenizer="bpe", vocabulary_size=4096, sequence_length=256,
        packing="stream",
    )  # fmt: skip
    config.optimizer = optimizer("muon", learning_rate=5e-3, weight_decay=0.1)
    config.schedule = schedule("cosine", warmup_steps=50)
    config.trainer.update(
        steps=1500, global_batch_size=16, evaluate_every=500, checkpoint_every=250
    )
    if arg == "debug":
        config.model.update(num_layers=2, hidden_dim=32, num_heads=2, sequence_length=64)
        config.model.update(chunk_size=16)
        config.task.update(chunk_size=16)
        config.data.update(source="pydoc", vocabulary_size=1000, sequence_length=64)
        config.trainer.update(steps=20, global_batch_size=8, log_every=10, evaluate_every=20)
        config.schedule.warmup_steps = 5
    return config
