"""Measures the peak memory of one update with and without recomputed blocks.

    python -m benchmarks.remat_memory [--blocks=12] [--width=256] [--rows=4096] [--write]

The model is a stack of residual blocks (norm, dense to 4x the width, GELU, dropout, dense back).
Each case runs in a separate process and reports the rise of resident memory during the update.
"""

import argparse
import json
import subprocess
import sys
import time

from benchmarks.update_cost import resident


def measure(blocks: int, width: int, rows: int, pattern: str) -> dict:
    """Runs one update twice in this process; returns MiB above the start, and seconds."""
    import keras
    import numpy as np
    import tensorflow as tf

    from trainers.train.recompute.remat import apply_remat
    from trainers.train.step import TrainStep
    from zoo.tasks.image_classification import ImageClassification

    layers = keras.layers
    x = image = keras.Input((width,))
    for i in range(blocks):
        inside = keras.Sequential(
            [
                layers.LayerNormalization(),
                layers.Dense(4 * width, activation="gelu"),
                layers.Dropout(0.1),
                layers.Dense(width),
            ],
            name=f"block_{i}",
        )
        x = layers.Add()([x, inside(x)])
    model = keras.Model(image, layers.Dense(10, activation="softmax")(x))
    if pattern:
        apply_remat(model, pattern)
    step = TrainStep(model, ImageClassification(), keras.optimizers.SGD(0.1))
    data = {
        "image": tf.constant(np.random.default_rng(0).normal(size=(rows, width)), tf.float32),
        "label": tf.zeros(rows, tf.int32),
        "weight": tf.ones(rows),
    }
    update = tf.function(step.update, autograph=False)
    before = resident("VmHWM")
    update(data)
    rise = resident("VmHWM") - before
    start = time.perf_counter()
    update(data)
    return {"peak_mib": round(rise, 1), "seconds": round(time.perf_counter() - start, 3)}


def main():
    """Prints both cases as JSON; --write appends to results/remat_memory.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.blocks, arguments.width, arguments.rows)
    if arguments.case is not None:
        print(json.dumps(measure(*sizes, arguments.case)))
        return
    rows = []
    for case, pattern in (("kept", ""), ("recomputed", "block_.*")):
        command = [sys.executable, "-m", "benchmarks.remat_memory", f"--case={pattern}"]
        command += [f"--{n}={v}" for n, v in zip(("blocks", "width", "rows"), sizes, strict=True)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        row = {"case": case, "blocks": sizes[0], "width": sizes[1], "rows": sizes[2]}
        rows.append(row | json.loads(result.stdout.splitlines()[-1]))
    print(json.dumps(rows))
    if arguments.write:
        from benchmarks.results_file import append

        append("remat_memory", rows)


if __name__ == "__main__":
    main()
