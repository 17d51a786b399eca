"""A recurrent-depth decoder of 0.1 M parameters that follows pointers: which root does a node have?

zoo train looped_chase --workdir=D               looped, trained on depths 1 to 3
zoo evaluate D --loops=12                        depths 1 to 6 of the test split with other loops
zoo train looped_chase:plain --workdir=P         a decoder of equal parameters
zoo train looped_chase:deep --workdir=P7         a decoder of equal computation: 7 blocks
zoo train looped_chase:steps --workdir=S         the plain decoder with written-out steps
python -m benchmarks.looped_depth --seeds 0 1 2  accuracy by depth and number of loops

A row lists the edges of four trees and asks for the root of each node
(`zoo/data/text/synthetic/chase.py`); the best guess is right in 25 %. The prelude reads windows of
two positions, so that a child knows its parent. The loop has no positions. During the first 450
updates the depth grows from 1 to 3, and the number of loops with it. docs/looped.md lists what was
tried before.

Measured 2026-11-30 on 2 cores of an Intel Xeon at 2.80 GHz with AVX-512, which up to 14 other
processes used too, TensorFlow 2.21, Keras 3.15.1, one run with seed 0, 684 s of training, 276 s of
processor time for the whole command; accuracy on 512 test rows (128 with 3 and 12 loops):

| model | depth 1 | 2 | 3 | 4 | 5 | 6 |
|---|---|---|---|---|---|---|
| 3 loops | 99.8 % | 99.6 % | 99.6 % | 0 % | 0 % | 0 % |
| 6 loops | 99.8 % | 99.6 % | 99.2 % | 88.2 % | 50.8 % | 14.4 % |
| 12 loops | 95.9 % | 91.4 % | 92.6 % | 78.5 % | 50.6 % | 25.4 % |
| up to 24, --halt=0.2 | 99.9 % | 99.7 % | 99.2 % | 88.0 % | 55.1 % | 26.1 % |
| `plain` | 86.1 % | 20.8 % | 19.1 % | 20.8 % | 20.0 % | 22.5 % |
| `steps` | 99.5 % | 99.2 % | 97.6 % | 95.7 % | 90.6 % | 73.9 % |

`deep`: not measured yet.
"""

from trainers.config.base import base, optimizer, schedule
from trainers.config.recipe import check_variant

_LOOPS = 6


def get_config(arg: str = ""):
    """Variants: "" is the looped decoder, "plain", "deep" and "steps" are decoders beside it.

    "debug" ends within a minute on two cores.
    """
    check_variant(arg, ["plain", "deep", "steps", "debug"])
    config = base()
    common = {
        "vocabulary_size": 0, "sequence_length": 1024, "hidden_dim": 64, "num_heads": 2,
        "num_key_value_heads": 0, "intermediate_dim": 128, "depth": 0, "rotary_base": 1e4,
        "tie_weights": True, "epsilon": 1e-5,
    }  # fmt: skip
    if arg in ("", "debug"):
        config.model = {
            "name": "looped_nano", **common, "num_layers": 1, "prelude_layers": 1,
            "coda_layers": 0, "loops": _LOOPS, "loop_range": (1, _LOOPS), "loop_draw": "uniform",
            "backprop_loops": 3, "loop_rotary_base": 0.0, "attention": "window:2,plain",
        }  # fmt: skip
    else:
        blocks = _LOOPS if arg == "deep" else 1
        config.model = {
            "name": "llama_nano", **common, "num_layers": 1 + blocks, "dropout": 0.0,
            "attention": ",".join(["window:2", *["plain"] * blocks]),
        }  # fmt: skip
    config.task = {"name": "by_depth", "depth": 3}
    config.data.update(source="synthetic:chase", tokenizer="byte")
    if arg == "steps":
        config.data.source = "synthetic:chase_steps"
    config.optimizer = optimizer("muon", learning_rate=5e-3)
    config.schedule = schedule("wsd", warmup_steps=30)
    config.trainer.update(
        steps=700, global_batch_size=64, log_every=25, evaluate_every=700, checkpoint_every=700,
        curriculum=450,
    )  # fmt: skip
    if arg == "debug":
        config.task.depth = 1
        config.schedule.warmup_steps = 5
        config.trainer.update(steps=40, evaluate_every=40, checkpoint_every=40, curriculum=0)
    return config
