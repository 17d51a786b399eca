"""BERT pretraining on English Wikipedia: masked words and next sentences.

zoo train bert_wiki --workdir=D        (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)

Measured 2026-11-26 on 2 cores of an AMD EPYC without AVX512, TensorFlow 2.21, Keras 3.15.1, in
float32 (--config.trainer.precision=float32), one seed: on the test split 14.97 % of the masked
words are predicted correctly (the most frequent word alone: about 4 %) and 81.87 % of the sentence
pairs (chance: 50 %), loss 6.598. Sentence pairs of the training split at the end: 87.6 %; of the
validation split at steps 500, 1,000, 1,500 and 2,000: 65.6, 75.0, 80.1 and 83.4 %. The run was
stopped and resumed several times, and other jobs shared the machine: its 12,298 s do not measure
speed (alone it reached 18 samples/s).
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, without a download.

    As RoBERTa, masked words alone in rows of whole documents: --config.task.name=mlm
    --config.model.next_sentence=false --config.data.packing=best_fit
    """
    check_variant(arg, ["debug"])
    config = base()
    config.model = {
        "name": "bert_mini", "vocabulary_size": 8192, "sequence_length": 128, "num_layers": 4,
        "hidden_dim": 256, "num_heads": 4, "intermediate_dim": 1024, "depth": 0, "dropout": 0.0,
        "attention": "plain", "token_types": 2, "epsilon": 1e-12, "next_sentence": True,
    }  # fmt: skip
    config.task = {"name": "nsp", "mask_share": 0.15, "whole_word": False}
    config.data.update(
        source="wikipedia_en", tokenizer="wordpiece", vocabulary_size=8192, sequence_length=128
    )
    config.optimizer = optimizer("muon", learning_rate=4e-3, weight_decay=0.1)
    config.schedule = schedule("linear", warmup_steps=100)
    config.trainer.update(
        steps=2000, global_batch_size=64, precision="mixed_bfloat16", steps_per_execution=10,
        evaluate_every=500, checkpoint_every=500,
    )  # fmt: skip
    if arg == "debug":
        config.model.update(
            num_layers=2, hidden_dim=64, num_heads=2, intermediate_dim=256, vocabulary_size=1000
        )
        config.data.update(source="pydoc", vocabulary_size=1000)
        config.trainer.update(steps=60, log_every=20)
        config.schedule.warmup_steps = 10
    return config
