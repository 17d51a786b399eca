"""Measures the overhead of MirroredStrategy at equal total work, on a CPU with two logical devices.

    python -m benchmarks.replica_overhead [--rounds=7] [--write]

The model multiplies its rows by one small matrix many times, so an update is nearly only matrix
products. Two replicas with half the batch each have the same work as one device with the whole
batch, on the same cores. A ratio above 1 is the overhead: two programs, the sum of gradients and
synchronization. Rounds of both are interleaved.
"""

import argparse
import os
import statistics
import time

import keras
import numpy as np
import tensorflow as tf

from trainers.config.base import base, optimizer, schedule
from trainers.distributed.strategy import distribute, make_strategy, prepare_devices
from trainers.train.build import build_step, update_function
from zoo import registry
from zoo.data import pipeline

WIDTH, PRODUCTS, CHUNK = 256, 24, 5


@keras.saving.register_keras_serializable("benchmarks")
class Products(keras.layers.Layer):
    """Multiplies `x` by the same (WIDTH, WIDTH) kernel PRODUCTS times."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(WIDTH, WIDTH), initializer="orthogonal")

    def call(self, x):
        x = keras.ops.reshape(keras.ops.cast(x, self.compute_dtype), (-1, WIDTH)) / 255
        for _ in range(PRODUCTS):
            x = keras.ops.matmul(x, self.kernel)
        return x


def model():
    """Returns a classifier of images of WIDTH bytes."""
    image = keras.Input((16, 16, 1), name="image")
    return keras.Model(image, keras.layers.Dense(4, dtype="float32")(Products()(image)))


def make(strategy_name: str, replicas: int, batch: int):
    """Returns a function that measures the seconds of one update."""
    config = base()
    config.model = {"name": "products"}
    config.task = {"name": "image_classification"}
    config.optimizer = optimizer("sgd")
    config.schedule = schedule("constant")
    config.trainer.update({"steps": 10**9, "global_batch_size": batch})
    strategy = make_strategy(strategy_name, replicas)
    step, task = build_step(config, strategy, 10**9)
    generator = np.random.default_rng(0)
    arrays = {
        "image": generator.integers(0, 256, (2 * batch, 16, 16, 1)).astype("uint8"),
        "label": generator.integers(0, 4, 2 * batch).astype("int32"),
    }

    def batches(shares):
        return pipeline.training_batches(
            arrays, task.prepare, batch_size=batch, replicas=max(replicas, 1), seed=0,
            first_step=0, last_step=10**9, local_replicas=shares,
        )  # fmt: skip

    run, iterator = update_function(step, strategy), iter(distribute(strategy, batches))

    def measure() -> float:
        start = time.perf_counter()
        run(iterator, tf.constant(CHUNK))
        step.means.take()  # waits for the device
        return (time.perf_counter() - start) / CHUNK

    measure()  # traces
    return measure


def main():
    """Prints medians; --write appends to results/replica_overhead.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    prepare_devices(2)
    registry.register("products", model, task="image_classification")
    kinds = {
        "one_device": make("one_device", 0, arguments.batch),
        "mirrored, 2 logical devices": make("mirrored", 2, arguments.batch),
    }
    seconds = {name: [] for name in kinds}
    for _ in range(arguments.rounds):
        for name, measure in kinds.items():
            seconds[name].append(measure())
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    rows = [
        {
            "what": name,
            "step_ms": round(1e3 * statistics.median(times), 1),
            "ratio_to_one_device": round(ratio, 3),
            "rounds": arguments.rounds,
            "note": f"shared machine, load average {os.getloadavg()[0]:.0f}",
        }
        for (name, times), ratio in zip(
            seconds.items(), (1.0, statistics.median(ratios)), strict=True
        )
    ]
    for row in rows:
        print(row)
    if arguments.write:
        from benchmarks.results_file import append

        print(append("replica_overhead", rows))


if __name__ == "__main__":
    main()
