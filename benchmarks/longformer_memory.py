"""Measures peak memory and time of one update of a Longformer on long rows.

    python -m benchmarks.longformer_memory [--layers 6] [--length=16384] [--cases window remat]
                                           [--write]

Width 256, 8 heads, batch 1, vocabulary 8,192, 15 % of the tokens predicted, AdamW. `window` has
windows of 128 positions to each side and one global token; `remat` recomputes its blocks in the
backward pass. `plain` is the same encoder with attention to all positions, `plain_remat` with
recomputed blocks.
"""

from benchmarks.update_cost import compare

CASES = ("window", "remat", "plain", "plain_remat")


def make_update(case: str, layers: int, length: int):
    """Returns a function without arguments that runs one update of a case."""
    import math

    import keras
    import tensorflow as tf

    from trainers.train.recompute.remat import apply_remat
    from trainers.train.step import TrainStep
    from zoo.models import bert, longformer
    from zoo.tasks.mlm import MaskedLanguageModeling

    sizes = {
        "vocabulary_size": 8192, "sequence_length": length, "num_layers": layers,
        "hidden_dim": 256, "num_heads": 8, "dropout": 0.1,
    }  # fmt: skip
    if case.startswith("plain"):
        model = bert.build(**sizes, next_sentence=False)
    else:
        model = longformer.build(**sizes, attention="window:128", max_global=1)
    if case.endswith("remat"):
        apply_remat(model, "block_[0-9]+")
    task = MaskedLanguageModeling()
    step = TrainStep(model, task.bind(model), keras.optimizers.AdamW(1e-3))
    masked = math.ceil(0.15 * length)
    ones = tf.ones((1, masked))
    data = {
        "tokens": tf.random.stateless_uniform((1, length), (0, 0), 10, 8000, "int32"),
        "segments": tf.ones((1, length), tf.int32), "masked": tf.range(masked)[None],
        "targets": tf.ones((1, masked), tf.int32), "counts": ones, "weight": tf.ones(1),
    }  # fmt: skip
    update = tf.function(step.update, autograph=False)
    return lambda: update(data)


if __name__ == "__main__":
    compare("longformer_memory", make_update, CASES, "layers", depths=[6], length=16384)
