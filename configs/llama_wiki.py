"""A small Llama on English Wikipedia articles, whole documents packed in rows.

zoo train llama_wiki --workdir=D        (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
zoo generate D --prompt="The city of" --temperature=0.8
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, without a download.

    One even number sets all sizes: --config.model.depth=8
    """
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "llama_nano", "vocabulary_size": 8192, "sequence_length": 256, "num_layers": 0,
        "hidden_dim": 0, "num_heads": 0, "num_key_value_heads": 2, "intermediate_dim": 0,
        "depth": 4, "dropout": 0.0, "rotary_base": 10_000.0, "attention": "plain",
        "tie_weights": True, "epsilon": 1e-5, "head_dim": 0, "rotary_scaling": "",
        "query_key_value_bias": False, "query_key_norm": False, "query_scale": 1.0,
        "activation": "swiglu", "post_norm": False, "scale_embeddings": False,
        "local_rotary_base": 0.0,
    }  # fmt: skip
    config.task = {"name": "clm", "chunk": 512, "cross_documents": False}
    config.data.update(
        source="wikipedia_en", tokenizer="bpe", vocabulary_size=8192, sequence_length=256,
        packing="best_fit",
    )  # fmt: skip
    config.optimizer = optimizer("muon", learning_rate=5e-3, weight_decay=0.1)
    config.schedule = schedule("cosine", warmup_steps=50)
    config.trainer.update(
        steps=1500, global_batch_size=16, precision="mixed_bfloat16", steps_per_execution=10,
        evaluate_every=500, checkpoint_every=500,
    )  # fmt: skip
    if arg == "debug":
        config.model.update(depth=2, vocabulary_size=1000)
        config.data.update(source="pydoc", vocabulary_size=1000, sequence_length=64)
        config.trainer.update(steps=20, log_every=10, evaluate_every=20, precision="float32")
        config.schedule.warmup_steps = 5
    return config
