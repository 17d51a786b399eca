"""A small Llama on English Wikipedia articles, whole documents packed in rows.

zoo train llama_wiki --workdir=D        (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
zoo generate D --prompt="The city of" --temperature=0.8
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import unknown_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, without a download.

    The sizes follow from one dial, an even number: --config.model.depth=8
    """
    if arg not in ("", "debug"):
        raise unknown_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "llama_nano",
        "vocabulary_size": 8192,
        "sequence_length": 256,
        "num_layers": 0,
        "hidden_dim": 0,
        "num_heads": 0,
        "num_key_value_heads": 2,
        "intermediate_dim": 0,
        "depth": 4,
        "dropout": 0.0,
        "rotary_base": 10_000.0,
        "tie_weights": True,
        "epsilon": 1e-5,
    }
    config.task = {"name": "clm", "chunk": 512, "cross_documents": False}
    config.data.source = "wikipedia_en"
    config.data.tokenizer = "bpe"
    config.data.vocabulary_size = 8192
    config.data.sequence_length = 256
    config.data.packing = "best_fit"
    config.optimizer = optimizer("muon", learning_rate=5e-3, weight_decay=0.1)
    config.schedule = schedule("cosine", warmup_steps=50)
    config.trainer.steps = 1500
    config.trainer.global_batch_size = 16
    config.trainer.precision = "mixed_bfloat16"
    config.trainer.steps_per_execution = 10
    config.trainer.evaluate_every = 500
    config.trainer.checkpoint_every = 500
    if arg == "debug":
        config.model.depth = 2
        config.model.vocabulary_size = config.data.vocabulary_size = 1000
        config.data.source = "pydoc"
        config.data.sequence_length = 64
        config.trainer.steps = 20
        config.trainer.log_every = 10
        config.trainer.evaluate_every = 20
        config.schedule.warmup_steps = 5
        config.trainer.precision = "float32"
    return config
