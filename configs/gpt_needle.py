"""A GPT that looks up four values in 128 to 32,768 bytes: needles in a haystack.

zoo train gpt_needle --workdir=D                                    128 bytes per row
zoo train gpt_needle:2k --workdir=D2 --config.init_from=D           then 2,048
zoo train gpt_needle:8k --workdir=D8 --config.init_from=D2          then 8,192
zoo train gpt_needle:16k --workdir=D16 --config.init_from=D8        then 16,384
zoo train gpt_needle:32k --workdir=D32 --config.init_from=D16 --config.trainer.steps=40 \
    --config.optimizer.learning_rate=1e-3                           then 32,768
zoo train gpt_needle:32k --workdir=D32b --config.init_from=D32      and more updates

A row has four pairs of a key of two letters and a value of four bytes at random places, and ends
with the keys in another order. Loss and accuracy are those of the values
(`zoo/data/text/synthetic/contexts.py`). The first layer reads windows of 8 positions, so that the
code of a position can hold its key and its place in the value; the second layer finds equal codes
by hashing. With base 1e9, half of the rotary wavelengths exceed 32,768 positions, so that codes
need not depend on the distance: a model of short rows starts well on long rows.

Measured 2026-11-29 on 2 cores of an Intel Xeon with AMX and AVX512_BF16, which other processes used
too, TensorFlow 2.21, Keras 3.15.1, by these commands with seed 0, on 128 test rows of the same
length (a guess is right in 0.8 %):

| bytes per row | updates | accuracy | processor time per update | training |
|---|---|---|---|---|
| 128 | 500 | 99.9 % | 0.3 s | 198 s |
| 2,048 | 200 | 99.1 % | 0.4 s | 163 s |
| 8,192 | 80 | 98.3 % | 0.9 s | 311 s |
| 16,384 | 10 | 97.5 % | not measured | 54 s |
| 32,768 | 40 | 87.3 % (32 validation rows) | 1.9 s | 284 s |
| 32,768 | 80 more | 91.3 % | 1.9 s | 663 s |

With `--config.model.attention=window:8,lsh:8:32`, 20 instead of the last 80 updates, at a learning
rate of 1e-3, reach 94.5 % in 176 s. The lengths from 16,384 on were trained once, with rates and
numbers of updates chosen on validation rows.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant

# variant -> bytes per row, rows per update, updates, updates of warm-up, learning rate
_STAGES = {
    "": (128, 32, 500, 50, 5e-3),
    "2k": (2048, 4, 200, 50, 2e-3),
    "8k": (8192, 2, 80, 10, 1e-3),
    "16k": (16_384, 1, 10, 5, 2e-4),
    "32k": (32_768, 1, 80, 5, 2e-3),
    "debug": (64, 16, 50, 5, 5e-3),
}


def get_config(arg: str = ""):
    """Variants: "" is the first stage, "2k" to "32k" are later ones, which require init_from.

    "debug" ends within a minute on two cores.
    """
    check_variant(arg, list(_STAGES))
    length, batch, steps, warmup_steps, rate = _STAGES[arg]
    config = base()
    config.model = {
        "name": "gpt_nano", "vocabulary_size": 0, "sequence_length": 32_768, "num_layers": 2,
        "hidden_dim": 64, "num_heads": 2, "intermediate_dim": 128, "depth": 0, "dropout": 0.0,
        "rotary_base": 1e9, "attention": "window:8,lsh:4:32", "tie_weights": False,
    }  # fmt: skip
    config.task = {"name": "clm", "chunk": 0, "cross_documents": False}
    config.data.update(source="synthetic:needle", tokenizer="byte", sequence_length=length)
    config.optimizer = optimizer("muon", learning_rate=rate)
    config.schedule = schedule("cosine", warmup_steps=warmup_steps)
    config.trainer.update(
        steps=steps, global_batch_size=batch, log_every=10, evaluate_every=steps,
        checkpoint_every=steps,
    )  # fmt: skip
    return config
