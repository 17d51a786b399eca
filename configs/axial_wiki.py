"""A small axial transformer on the bytes of English Wikipedia articles, in grids of 64 x 64 bytes.

zoo train axial_wiki --workdir=D     (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
zoo generate D --prompt="The city of" --temperature=0.8
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, without a download.

    Attention crosses the ends of documents, because a grid is one text for the model.
    """
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "axial_text_nano", "vocabulary_size": 0, "sequence_length": 4096, "columns": 64,
        "num_outer_layers": 4, "num_inner_layers": 2, "hidden_dim": 128, "num_heads": 4,
        "intermediate_dim": 0, "dropout": 0.0, "activation": "gelu_tanh", "epsilon": 1e-5,
    }  # fmt: skip
    config.task = {"name": "clm", "chunk": 0, "cross_documents": False}
    config.data.update(source="wikipedia_en", tokenizer="byte", sequence_length=4096)
    config.optimizer = optimizer("muon", learning_rate=5e-3, weight_decay=0.1)
    config.schedule = schedule("cosine", warmup_steps=50)
    config.trainer.update(
        steps=1000, global_batch_size=8, steps_per_execution=5, evaluate_every=500,
        checkpoint_every=500,
    )  # fmt: skip
    if arg == "debug":
        config.model.update(num_outer_layers=2, num_inner_layers=1, hidden_dim=32, columns=16)
        config.data.update(source="pydoc", sequence_length=256)
        config.trainer.update(steps=20, log_every=5, evaluate_every=20)
        config.schedule.warmup_steps = 5
    return config
