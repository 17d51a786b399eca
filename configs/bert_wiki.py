"""BERT's pretraining, masked words and next sentences together, on English Wikipedia articles.

zoo train bert_wiki --workdir=D        (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)

Measured 2026-11-26 on 2 cores of an AMD EPYC without AVX512, TensorFlow 2.21, Keras 3.15.1, in
float32 (--config.trainer.precision=float32), one seed: of the test split's masked words 14.97 %
are right (the commonest word: about 4 %), of its sentence pairs 81.87 % (chance: 50 %), loss 6.598.
Of the training's pairs 87.6 % at the end; of the validation's 65.6, 75.0, 80.1 and 83.4 % at steps
500, 1,000, 1,500 and 2,000. The run was stopped and resumed several times, with other work beside
it: its 12,298 s are no measure of speed (18 samples a second were seen when it was alone).
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import unknown_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, without a download.

    RoBERTa's way, masked words alone in rows of whole documents: --config.task.name=mlm
    --config.model.next_sentence=false --config.data.packing=best_fit
    """
    config = base()
    config.model = {
        "name": "bert_mini",
        "vocabulary_size": 8192,
        "sequence_length": 128,
        "num_layers": 4,
        "hidden_dim": 256,
        "num_heads": 4,
        "intermediate_dim": 1024,
        "depth": 0,
        "dropout": 0.0,
        "token_types": 2,
        "epsilon": 1e-12,
        "next_sentence": True,
    }
    config.task = {"name": "nsp", "mask_share": 0.15, "whole_word": False}
    config.data.source = "wikipedia_en"
    config.data.tokenizer = "wordpiece"
    config.data.vocabulary_size = 8192
    config.data.sequence_length = 128
    config.optimizer = optimizer("muon", learning_rate=4e-3, weight_decay=0.1)
    config.schedule = schedule("linear", warmup_steps=100)
    config.trainer.steps = 2000
    config.trainer.global_batch_size = 64
    config.trainer.precision = "mixed_bfloat16"
    config.trainer.steps_per_execution = 10
    config.trainer.evaluate_every = 500
    config.trainer.checkpoint_every = 500
    if arg == "debug":
        config.model.update({"num_layers": 2, "hidden_dim": 64, "num_heads": 2})
        config.model.intermediate_dim = 256
        config.data.source = "pydoc"
        config.data.vocabulary_size = config.model.vocabulary_size = 1000
        config.trainer.steps = 60
        config.trainer.log_every = 20
        config.schedule.warmup_steps = 10
    elif arg:
        raise unknown_variant(arg, ["debug"])
    return config
