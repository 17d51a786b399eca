"""Measures peak memory and time of one update of plain, recomputed and reversible stacks.

    python -m benchmarks.reversible_memory [--pairs 4 8] [--width=256] [--rows=4096] [--write]

Each pair has two parts of norm, dense to 4x the width, GELU, dense back and dropout; `remat`
recomputes each part. Each case runs in a separate process and reports the rise of resident memory
during the second update. The times are medians of processor time; one process runs the updates of
all cases in turn.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time

CASES = ("plain", "remat", "reversible")


def resident(key: str) -> float:
    """Returns the current (VmRSS) or peak (VmHWM) resident memory of this process in MiB."""
    with open("/proc/self/status") as file:
        return int(re.search(key + r":\s+(\d+)", file.read())[1]) / 1024


def make_update(case: str, pairs: int, width: int, rows: int):
    """Returns a function without arguments that runs one update of a case."""
    import keras
    import numpy as np
    import tensorflow as tf

    from trainers.train.remat import apply_remat
    from trainers.train.reversible import apply_reversible
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


def measure_memory(case: str, *sizes) -> float:
    """Returns the rise of resident memory during one update of a case in MiB."""
    update = make_update(case, *sizes)
    update()  # the first update also optimizes the graph
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before = resident("VmRSS")
    update()
    return round(resident("VmHWM") - before, 1)


def measure_times(*sizes, updates: int) -> list[float]:
    """Returns the processor seconds of one update of each case; the cases alternate."""
    functions = [make_update(case, *sizes) for case in CASES]
    for update in functions:
        update()
    times = [[] for _ in CASES]
    for _ in range(updates):
        for update, seconds in zip(functions, times, strict=True):
            start = time.process_time()
            update()
            seconds.append(time.process_time() - start)
    return [round(statistics.median(seconds), 3) for seconds in times]


def main():
    """Prints all cases as JSON; --write appends to results/reversible_memory.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--updates", type=int, default=7, help="number of updates per median")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--case", choices=(*CASES, "times"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = (arguments.width, arguments.rows)
    if arguments.case:
        pairs = arguments.pairs[0]
        measured = (
            measure_times(pairs, *sizes, updates=arguments.updates)
            if arguments.case == "times"
            else measure_memory(arguments.case, pairs, *sizes)
        )
        print(json.dumps(measured))
        return

    def run(case, pairs, **variables):
        command = [sys.executable, "-m", "benchmarks.reversible_memory", f"--case={case}"]
        command += [f"--pairs={pairs}", f"--width={sizes[0]}", f"--rows={sizes[1]}"]
        command += [f"--updates={arguments.updates}"]
        env = {**os.environ, **variables}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
        return json.loads(done.stdout.splitlines()[-1])

    rows = []
    for pairs in arguments.pairs:
        times = run("times", pairs)
        for case, seconds in zip(CASES, times, strict=True):
            # glibc returns freed tensors to the system at once, so that only live ones count.
            mib = run(case, pairs, MALLOC_MMAP_THRESHOLD_=str(2**20))
            row = {"case": case, "pairs": pairs, "width": sizes[0], "rows": sizes[1]}
            rows.append({**row, "peak_mib": mib, "processor_seconds": seconds})
    print(json.dumps(rows))
    if arguments.write:
        from benchmarks.results_file import append

        append("reversible_memory", rows)


if __name__ == "__main__":
    main()
