"""draft"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants."""
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "looped_nano", "vocabulary_size": 0, "sequence_length": 1024, "num_layers": 1,
        "hidden_dim": 64, "num_heads": 2, "num_key_value_heads": 0, "intermediate_dim": 128,
        "depth": 0, "prelude_layers": 1, "coda_layers": 0, "loops": 8, "loop_range": (4, 6),
        "loop_draw": "uniform", "backprop_loops": 3, "rotary_base": 10000.0,
        "loop_rotary_base": 0.0, "attention": "window:2,plain", "tie_weights": False,
        "epsilon": 1e-5,
    }  # fmt: skip
    config.task = {"name": "by_depth", "depth": 4}
    config.data.update(source="synthetic:chase", tokenizer="byte")
    config.optimizer = optimizer("muon", learning_rate=5e-3)
    config.schedule = schedule("cosine", warmup_steps=30, final_fraction=0.05)
    config.trainer.update(
        steps=600, global_batch_size=64, log_every=50, evaluate_every=600, checkpoint_every=600,
        curriculum=400,
    )  # fmt: skip
    return config
