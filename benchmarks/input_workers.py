"""Batches a second that input pipelines give with and without processes of their own.

    python -m benchmarks.input_workers [--workers 0 1 2] [--rounds=5] [--write]

No step is behind them. Pipelines differ in what they spend their time on: TensorFlow's ops
("pictures", "augmented"), Python that holds its lock ("windows": tokens cut from a stream that is
mapped), and waiting ("storage": 20 ms a batch, as for a disk on a network). Rounds are interleaved.
Workers share the cores of this machine with the process that fetches from them.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from trainers.input_workers import InputWorkers
from zoo.data.windows import Windows
from zoo.tasks.clm import CausalLanguageModeling
from zoo.tasks.image_classification import ImageClassification


def pictures(side: int, channels: int) -> dict:
    """Made-up pictures, in memory."""
    numbers = np.random.default_rng(0)
    image = numbers.integers(0, 256, (2000, side, side, channels), np.uint8)
    return {"image": image, "label": np.arange(len(image), dtype=np.int32) % 10}


def stored_later(batch, uniform, training):
    """Waits as long as a slow disk might."""
    import tensorflow as tf

    def wait(image):
        time.sleep(0.02)
        return image

    image = tf.numpy_function(wait, [batch["image"]], tf.uint8)
    return {**batch, "image": tf.ensure_shape(image, batch["image"].shape)}


def pipelines(folder: Path) -> dict:
    """Name -> (arrays, prepare, batch size)."""
    np.random.default_rng(0).integers(0, 50_000, 5_000_000, np.uint16).tofile(folder / "tokens")
    stream = np.memmap(folder / "tokens", np.uint16, "r").view(np.ndarray)
    changed = ImageClassification(rotation=10.0, shift=2.0, zoom=0.1, shear=0.0)
    augmented = ImageClassification(augment=("flip", "crop:0.5", "randaugment:0.5"))
    return {
        "pictures": (pictures(28, 1), changed.prepare, 128),
        "augmented": (pictures(32, 3), augmented.prepare, 16),
        "windows": ({"tokens": Windows(stream, 256)}, CausalLanguageModeling().prepare, 64),
        "storage": (pictures(28, 1), stored_later, 128),
    }


def rate(iterator, seconds: float) -> float:
    """Batches a second."""
    count, start = 0, time.perf_counter()
    while count < 10 or time.perf_counter() < start + seconds:
        next(iterator)
        count += 1
    return count / (time.perf_counter() - start)


def measure(name: str, pipeline: tuple, counts: list[int], rounds: int) -> list[dict]:
    """Returns a row of results for each number of workers."""
    arrays, prepare, size = pipeline
    where = {"batch_size": size, "replicas": 1, "seed": 0, "first_step": 0, "last_step": 10**9}
    found = {count: [] for count in counts}
    load = os.getloadavg()[0]  # before this script adds to it
    pools = {count: InputWorkers(count) for count in counts}
    try:
        iterators = {c: iter(pool.batches(arrays, prepare, **where)) for c, pool in pools.items()}
        # Everything has been started then.
        slowest = min(rate(iterator, 1.0) for iterator in iterators.values())
        for _ in range(rounds):
            for count, iterator in iterators.items():
                # Until the others' buffers are full and their processes rest.
                time.sleep(12 / slowest)
                for _ in range(16):  # what was prepared while others were measured
                    next(iterator)
                found[count].append(rate(iterator, 2.0))
        del iterators, iterator
    finally:
        for pool in pools.values():
            pool.__exit__()
    base = statistics.median(found[counts[0]])
    return [
        {
            "pipeline": name,
            "batch_size": size,
            "input_workers": count,
            "batches_a_second": round(statistics.median(rates), 1),
            "slowest_round": round(min(rates), 1),
            "fastest_round": round(max(rates), 1),
            f"times_{counts[0]}_workers": round(statistics.median(rates) / base, 2),
            "load_average": round(load, 1),
        }
        for count, rates in found.items()
    ]


def main():
    """Prints the results; --write appends them to results/input_workers.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, pipeline in pipelines(Path(folder)).items():
            if arguments.only and name not in arguments.only:
                continue
            rows = measure(name, pipeline, arguments.workers, arguments.rounds)
            for row in rows:
                print(row, flush=True)
            if arguments.write:
                from benchmarks.results_file import append

                append("input_workers", rows)


if __name__ == "__main__":
    # Under its own name, by which other processes can import what is sent to them.
    from benchmarks import input_workers

    input_workers.main()
