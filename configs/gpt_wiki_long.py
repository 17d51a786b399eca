"""A small GPT on the bytes of English Wikipedia articles with 4,096 or 16,384 bytes of context.

zoo train gpt_wiki_long --workdir=D         (zoo fetch wikipedia_en, or ZOO_DATA_DIR, first)
zoo train gpt_wiki_long:16k --workdir=D     16,384 bytes per sequence
zoo generate D --prompt="The city of" --temperature=0.8

Windows and attention by hashing alternate, so that time and memory grow with the length instead of
its square: with 16,384 bytes, the scores of one layer of plain attention would take 4 GiB. Both
variants train on 16,384 bytes per update.

Measured 2026-11-29 on 2 cores of an Intel Xeon with AMX and AVX512_BF16, which other processes used
too, TensorFlow 2.21, Keras 3.15.1, seed 0: an update takes 5.5 s of processor time with 4,096 bytes
of context and 4.1 s with 16,384, and the process peaks at 1.7 GiB in both cases. float32 is faster
than bfloat16 here (1.1 s instead of 1.5 for one row of 4,096 bytes). The first 60 updates, by
`python -m benchmarks.recipe_result gpt_wiki_long --metric bits_per_byte loss
--argument=--config.trainer.steps=60`: test 3.70 bits per byte (2.564 nats), 940 s of training. The
whole run and the training of the variant 16k have not been measured.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant


def get_config(arg: str = ""):
    """Variants: "" has 4,096 bytes of context, "16k" 16,384; "debug" ends within a minute."""
    check_variant(arg, ["16k", "debug"])
    length = {"16k": 16_384, "debug": 256}.get(arg, 4096)
    config = base()
    config.model = {
        "name": "gpt_nano", "vocabulary_size": 0, "sequence_length": length, "num_layers": 4,
        "hidden_dim": 128, "num_heads": 4, "intermediate_dim": 0, "depth": 0, "dropout": 0.0,
        "rotary_base": 1e6, "attention": "window:128,lsh:2:64", "tie_weights": True,
    }  # fmt: skip
    config.task = {"name": "clm", "chunk": 1024, "cross_documents": False}
    config.data.update(
        source="wikipedia_en", tokenizer="byte", sequence_length=length, packing="best_fit"
    )
    config.optimizer = optimizer("muon", learning_rate=5e-3, weight_decay=0.1)
    config.schedule = schedule("cosine", warmup_steps=10)
    config.trainer.update(
        steps=300, global_batch_size=16_384 // length, remat="block_[0-9]+", log_every=10,
        evaluate_every=300, checkpoint_every=100,
    )  # fmt: skip
    if arg == "debug":
        config.model.update(num_layers=2, hidden_dim=32, attention="window:16,lsh:2:16")
        config.data.update(source="pydoc")
        config.trainer.update(steps=20, global_batch_size=8, evaluate_every=20)
        config.schedule.warmup_steps = 5
    return config
