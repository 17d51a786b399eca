"""Measures the cost per update of pruning, quantization-aware training and clustering.

    python -m benchmarks.compress_step_cost [--recipes cnn_mnist gpt_pydoc] [--rounds=150] [--write]

Model, batch and optimizer are those of the recipe, in float32 and without chunked logits, as
quantization-aware training needs. Input batches are cached, so only the update is timed. The
methods run in turns in one process, a few updates each, in a random order per round. `ratio` is the
median over rounds of a method's time divided by that of plain training in the same round;
`cpu_ratio` is the same for CPU seconds, which other load on the machine affects less;
`cpu_ratio_of_sums` is the ratio of total CPU seconds, which includes new masks every 100 updates.

Measured 2026-11-26 on 2 cores of a loaded AMD EPYC, for cnn_mnist: pruning 1.02 (CPU 1.05), 8 bits
1.11 (1.14), clusters 1.05 (1.05), plain training against itself 0.97 (1.00). Goals: 1.05 for
pruning, 1.25 for 8 bits. gpt_pydoc did not finish on that machine in 50 minutes.
"""

import argparse
import random
import statistics
import time

import tensorflow as tf

from benchmarks.results_file import append
from trainers.config.recipe import resolve
from trainers.distributed.strategy import make_strategy, prepare_devices
from trainers.train.build import build_step, update_function
from zoo import registry
from zoo.data import pipeline

CHUNK, STEPS = 2, 100_000
METHODS = {
    "plain": {},
    "plain again": {},  # shows the noise of the measurement
    "prune": {"compress.prune.sparsity": "0.8"},
    "qat": {"compress.qat.on": "True"},
    "cluster": {"compress.cluster.number": "16"},
}


def make(recipe: str, changes: dict, dataset):
    """Returns a function that measures one update: (wall seconds, CPU seconds)."""
    config = resolve(recipe, list(changes.items()))
    if "chunk" in config.task:
        config.task.chunk = 0
    config.trainer.precision = "float32"
    step, task = build_step(config, make_strategy("one_device", 0), STEPS, dataset)
    if registry.has_loader(config.task.name):
        task.check(step.net, dataset)
        arrays = dataset.splits["train"]
    else:
        arrays = task.synthetic(step.net, 4 * config.trainer.global_batch_size, 0)
    for compressor in step.compressors:
        compressor.begin()
    batches = pipeline.training_batches(
        arrays, task.prepare, batch_size=config.trainer.global_batch_size, replicas=1, seed=0,
        first_step=0, last_step=4,
    )  # fmt: skip
    run = update_function(step, make_strategy("one_device", 0))
    iterator = iter(batches.cache().repeat())

    def measure() -> tuple[float, float]:
        start = time.perf_counter(), time.process_time()
        run(iterator, tf.constant(CHUNK))
        step.means.take()  # waits for the device
        end = time.perf_counter(), time.process_time()
        return tuple((b - a) / CHUNK for a, b in zip(start, end, strict=True))

    measure()  # traces
    measure()
    return measure


def compare(recipe: str, rounds: int) -> list[dict]:
    """Returns one row per method."""
    config = resolve(recipe)
    dataset = None
    if registry.has_loader(config.task.name):
        dataset = registry.load_data(config.data.to_dict(), config.task.to_dict())
    measures = {name: make(recipe, changes, dataset) for name, changes in METHODS.items()}
    seconds = {name: [] for name in METHODS}
    for number in range(rounds):
        for name in random.Random(number).sample(list(measures), len(measures)):
            seconds[name].append(measures[name]())
    rows, plain_cpu = [], sum(cpu for _, cpu in seconds["plain"])
    for name, times in seconds.items():
        pairs = list(zip(times, seconds["plain"], strict=True))
        wall, cpu = (statistics.median(a[k] / b[k] for a, b in pairs) for k in (0, 1))
        rows.append(
            {
                "recipe": recipe,
                "method": name,
                "ms_median": round(1e3 * statistics.median(t[0] for t in times), 2),
                "ratio": round(wall, 3),
                "cpu_ratio": round(cpu, 3),
                "cpu_ratio_of_sums": round(sum(a[1] for a, _ in pairs) / plain_cpu, 3),
                "updates": CHUNK * rounds,
            }
        )
    return rows


def main() -> None:
    """Measures and prints; --write appends to results/compress_step_cost.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipes", nargs="+", default=["cnn_mnist", "gpt_pydoc"])
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    prepare_devices(0, False)
    for recipe in arguments.recipes:
        rows = compare(recipe, arguments.rounds)
        for row in rows:
            print(row, flush=True)
        if arguments.write:
            print(append("compress_step_cost", rows))


if __name__ == "__main__":
    main()
