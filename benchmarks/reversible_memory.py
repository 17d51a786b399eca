"""Measures peak memory and time of one update of plain, recomputed and reversible stacks.

    python -m benchmarks.reversible_memory [--pairs 4 8] [--width=256] [--rows=4096] [--write]

Each pair has two parts of norm, dense to 4x the width, GELU, dense back and dropout; `remat`
recomputes each part. Each case runs in a separate process and reports the rise of resident memory
during the second update. The times are medians of processor time; one process runs the updates of
all cases in turn.
"""

from benchmarks.update_cost import compare

CASES = ("plain", "remat", "reversible")


def make_update(case: str, pairs: int, width: int, rows: int):
    """Returns a function without arguments that runs one update of a case."""
    import keras
    import numpy as np
    import tensorflow as tf

    from trainers.train.recompute.remat import apply_remat
    from trainers.train.recompute.reversible import apply_reversible
    from trainers.train.step import TrainStep
    from zoo.layers.dropout import Dropout
    from zoo.tasks.image_classification import ImageClassification

    layers = keras.layers

    class Stack(layers.Layer):
        def __init__(self, pairs, **kwargs):
            super().__init__(**kwargs)
            self.pairs = pairs
            self.parts = [part for pair in pairs for part in pair]

        def build(self, first_shape):
            for part in self.parts:
                part.build(first_shape)

        def call(self, first, second):
            return self.run_pairs(first, second)

        def run_pairs(self, first, second):
            for f, g in self.pairs:
                first = first + f(second)
                second = second + g(first)
            return first, second

    def part(name):
        inside = [
            layers.LayerNormalization(epsilon=1e-6),
            layers.Dense(4 * width, activation="gelu"),
            layers.Dense(width),
            Dropout(0.1),
        ]
        return keras.Sequential(inside, name=name)

    image = keras.Input((2 * width,))
    halves = image[:, :width], image[:, width:]
    stack = Stack([(part(f"f_{i}"), part(f"g_{i}")) for i in range(pairs)], name="stack")
    x = layers.Concatenate()(list(stack(*halves)))
    model = keras.Model(image, layers.Dense(10, activation="softmax")(x))
    if case == "remat":
        apply_remat(model, "[fg]_[0-9]+")
    if case == "reversible":
        apply_reversible(stack)
    step = TrainStep(model, ImageClassification(), keras.optimizers.SGD(0.1))
    data = {
        "image": tf.constant(np.random.default_rng(0).normal(size=(rows, 2 * width)), tf.float32),
        "label": tf.zeros(rows, tf.int32),
        "weight": tf.ones(rows),
    }
    update = tf.function(step.update, autograph=False)
    return lambda: update(data)


if __name__ == "__main__":
    compare("reversible_memory", make_update, CASES, "pairs", width=256, rows=4096)
