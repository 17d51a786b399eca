"""Further training of a published decoder on a text of your own.

    zoo train finetune --workdir=D --config.init_from=FOLDER --config.data.source=text:mine.txt
    zoo generate D --prompt="Once"

FOLDER was written by `save_pretrained` of transformers, or is a work directory. Model and tokenizer
come from the folder. Their settings, and the tokenizer, stay in the work directory.

Machine, time and result: not measured yet.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant, shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" takes the model from init_from; "debug" is a new, small Llama on Python's help.

    "debug" ends within a minute on two cores, and its work directory may be the init_from of "".
    """
    check_variant(arg, ["debug"])
    config = base()
    config.task = {"name": "clm", "chunk": 512, "cross_documents": False}
    config.data.update(sequence_length=512, packing="best_fit", normalization="none")
    config.optimizer = optimizer("adamw", learning_rate=2e-5, weight_decay=0.01)
    config.schedule = schedule("cosine", warmup_steps=20)
    config.trainer.update(
        epochs=3, global_batch_size=8, micro_batch_size=1, precision="mixed_bfloat16",
    )  # fmt: skip
    if arg == "debug":
        config.model = shipped_recipe("llama_wiki", "debug").model
        config.data.update(
            source="pydoc", tokenizer="bpe", vocabulary_size=1000, sequence_length=64
        )
        config.optimizer.learning_rate = 1e-3
        config.trainer.update(
            epochs=0, steps=20, micro_batch_size=0, log_every=10, evaluate_every=20,
            precision="float32",
        )  # fmt: skip
        config.schedule.warmup_steps = 5
    return config
