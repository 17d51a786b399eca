"""Answers to questions on Wikipedia articles, as spans of the article: SQuAD 1.1.

    zoo train squad --workdir=D --config.init_from=W --config.data.tokenizer=W
    (zoo fetch squadshifts squad, or ZOO_DATA_DIR, first)

W is the work directory of a pretrained encoder, such as that of `encoder_wiki`. The training split
is SQuADShifts' new Wikipedia (Miller et al. 2020, arXiv:2004.14444), a tenth of the size of SQuAD's
training split; five of its 48 articles are the validation split, and the test split is SQuAD's
development set. SQuAD's own training file, version 1.1 or 2.0:
--config.data.source=squad:train-v1.1.json
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores.

    "debug" requires no download: it asks for facts of synthetic texts.
    """
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "encoder_nano", "vocabulary_size": 4096, "sequence_length": 256, "num_layers": 3,
        "hidden_dim": 128, "num_heads": 4, "intermediate_dim": 512, "depth": 0, "dropout": 0.1,
        "rotary_base": 10_000.0, "neighbors": 3, "attention": "plain", "activation": "gelu",
        "epsilon": 1e-5,
    }  # fmt: skip
    config.task = {
        "name": "qa", "stride": 128, "max_question": 48, "max_answer": 30, "dropout": 0.1
    }  # fmt: skip
    config.data.update(
        source="squadshifts", tokenizer="wordpiece", vocabulary_size=4096, sequence_length=256
    )
    config.optimizer = optimizer("adamw", learning_rate=5e-4, weight_decay=0.05, clip_norm=1.0)
    config.schedule = schedule("linear", warmup_steps=100)
    config.trainer.update(
        epochs=5, global_batch_size=16, log_every=50, evaluate_every=300, checkpoint_every=300
    )
    if arg == "debug":
        config.model.update(
            num_layers=2, hidden_dim=64, num_heads=2, intermediate_dim=128, vocabulary_size=0,
            sequence_length=96, dropout=0.0,
        )  # fmt: skip
        config.task.update(stride=32, max_question=16, dropout=0.0)
        config.data.update(source="synthetic:facts", vocabulary_size=200, sequence_length=96)
        config.optimizer.learning_rate = 3e-3
        config.trainer.update(
            epochs=0, steps=150, log_every=25, evaluate_every=75, checkpoint_every=150
        )
        config.schedule.warmup_steps = 20
    return config
