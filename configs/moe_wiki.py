"""A mixture of experts on English Wikipedia articles, beside a dense model of equal computation.

zoo train moe_wiki --workdir=D          (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
zoo train moe_wiki:dense --workdir=E
zoo generate D --prompt="The city of" --temperature=0.8
python -m benchmarks.moe_dense --write

Machine, time and result: not measured yet.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, without a download.

    "dense" has one feed-forward part of width 384 in place of the two routed and one shared experts
    of width 128 that process each token: equal parameters per token, except the router's.
    """
    check_variant(arg, ["dense", "debug"])
    config = base()
    sizes = {
        "vocabulary_size": 4096, "sequence_length": 256, "num_layers": 4, "hidden_dim": 128,
        "num_heads": 4, "num_key_value_heads": 2, "depth": 0, "dropout": 0.0,
        "rotary_base": 10_000.0, "attention": "plain", "tie_weights": True, "epsilon": 1e-5,
    }  # fmt: skip
    if arg == "dense":
        config.model = {"name": "llama_nano", "intermediate_dim": 384, **sizes}
        config.task = {"name": "clm", "chunk": 512, "cross_documents": False}
    else:
        config.model = {
            "name": "moe_nano", "num_experts": 8, "experts_per_token": 2, "num_shared_experts": 1,
            "expert_dim": 128, "score": "sigmoid", "capacity_factor": 0.0, **sizes,
        }  # fmt: skip
        config.task = {
            "name": "moe", "chunk": 512, "cross_documents": False, "balance": 0.0,
            "bias_rate": 0.01,
        }  # fmt: skip
    config.data.update(
        source="wikipedia_en", tokenizer="bpe", vocabulary_size=4096, sequence_length=256,
        packing="best_fit",
    )  # fmt: skip
    config.optimizer = optimizer("adamw", learning_rate=3e-3, weight_decay=0.1)
    config.schedule = schedule("cosine", warmup_steps=50)
    config.trainer.update(
        steps=1000, global_batch_size=16, precision="float32", steps_per_execution=10,
        evaluate_every=250, checkpoint_every=250, log_every=25,
    )  # fmt: skip
    if arg == "debug":
        config.model.update(num_layers=2, hidden_dim=32, expert_dim=32, vocabulary_size=1000)
        config.data.update(source="pydoc", vocabulary_size=1000, sequence_length=64)
        config.trainer.update(steps=20, log_every=10, evaluate_every=20)
        config.schedule.warmup_steps = 5
    return config
