"""Linear baseline of text classification: hashed words, parts of words and pairs of them.

    zoo train linear_text --workdir=D --config.data.source=S
    (zoo fetch S, or ZOO_DATA_DIR, first)

S is sst2, imdb, trec, rte, sick, farstail, or your own texts: csv:FILE with --config.data.columns.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, offline."""
    check_variant(arg, ["debug"])
    config = base()
    config.model = {"name": "linear_text", "num_classes": 0, "buckets": 2**18, "ngrams": 2}
    config.task = {
        "name": "text_classification", "output": "class", "num_classes": 0, "class_weights": False,
        "trim": 16, "pooling": "mean", "dropout": 0.0,  # the model has its own head
    }  # fmt: skip
    config.data.update(
        source="sst2", tokenizer="wordpiece", vocabulary_size=30_000, sequence_length=512
    )
    config.optimizer = optimizer("adam", learning_rate=0.01)
    config.schedule = schedule("linear")
    config.trainer.update(epochs=10, global_batch_size=64)
    if arg:
        config.data.update(source="synthetic:opinions", vocabulary_size=200, sequence_length=32)
        config.trainer.update(epochs=0, steps=150, evaluate_every=50, checkpoint_every=50)
    return config
