"""Measures peak memory and time of one update of a Reformer, by the part that is recomputed.

    python -m benchmarks.reformer_memory [--length=4096] [--layers 4 8] [--write]

Cases: `plain` stores all activations, `remat` recomputes each function of the reversible stack, and
`reversible` stores the outputs of the stack alone. `narrow` is `reversible` with feed-forward
layers of 1/16 of their width: feed-forward layers in chunks of positions cannot need less memory.
Each case runs in a separate process and reports the rise of resident memory during the second
update. The times are medians of processor time; one process runs the updates of all cases in turn.
"""

from benchmarks.update_cost import compare

CASES = {
    "plain": "", "remat": "(attention|feed_forward)_[0-9]+", "reversible": "reversible",
    "narrow": "reversible",
}  # fmt: skip


def make_update(case: str, layers: int, length: int, attention: str):
    """Returns a function without arguments that runs one update of a case."""
    import keras
    import tensorflow as tf

    from trainers.train.recompute.remat import apply_remat
    from trainers.train.step import TrainStep
    from zoo.models import reformer
    from zoo.tasks.clm import CausalLanguageModeling

    keras.utils.set_random_seed(0)
    model = reformer.build(
        sequence_length=length, num_layers=layers, hidden_dim=128, num_heads=4, dropout=0.1,
        intermediate_dim=32 if case == "narrow" else 512, attention=attention,
    )  # fmt: skip
    if CASES[case]:
        apply_remat(model, CASES[case])
    task = CausalLanguageModeling()
    step = TrainStep(model, task.bind(model), keras.optimizers.SGD(0.01))
    tokens = tf.random.stateless_uniform((1, length), (0, 0), 1, 256, "int32")
    ones = tf.ones((1, length))
    data = {
        "tokens": tokens, "segments": tf.ones((1, length), tf.int32), "targets": tokens,
        "counts": ones, "bytes": ones, "weight": tf.ones(1),
    }  # fmt: skip
    update = tf.function(step.update, autograph=False)
    return lambda: update(data)


if __name__ == "__main__":
    compare(
        "reformer_memory", make_update, tuple(CASES), "layers", length=4096,
        attention="window:64,lsh:2:64",
    )  # fmt: skip
