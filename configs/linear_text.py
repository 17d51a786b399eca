"""Linear baseline of text classification."""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores."""
    check_variant(arg, ["debug"])
    config = base()
    config.model = {"name": "linear_text", "num_classes": 0}
    config.task = {"name": "text_classification", "output": "class"}
    config.data.update(
        source="trec", tokenizer="wordpiece", vocabulary_size=8000, sequence_length=512,
        validation_size=500,
    )  # fmt: skip
    config.optimizer = optimizer("adam", learning_rate=0.03)
    config.schedule = schedule("linear")
    config.trainer.update(global_batch_size=64, epochs=10)
    if arg:
        config.trainer.update(epochs=2)
    return config
