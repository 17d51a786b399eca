"""Measures the growth of resident memory during training, which should be zero.

    python -m benchmarks.memory_growth [--recipe=gpt_pydoc:debug] [--steps=2000] [--write]

Trains the recipe as `zoo train` does, with checkpoints, evaluations and samples every 500 updates,
and reads the resident memory every 100 updates. Growth is the difference between the means of the
last and the second quarter; the first quarter includes tracing.
"""

import argparse
import json
import os
import statistics
import tempfile

import keras


def resident() -> float:
    """Returns the resident memory of this process in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class MemoryWatch(keras.callbacks.Callback):
    """Reads the memory every 100 updates; a call may run several updates."""

    def on_train_begin(self, logs=None):
        self.readings = []

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.count.numpy()) >= 100 * (len(self.readings) + 1):
            self.readings.append(resident())


def measure(recipe: str, steps: int) -> dict:
    """Trains in this process; returns a row with memory in MiB."""
    from trainers.config.recipe import resolve
    from trainers.train.trainer import Trainer

    changes = {"steps": steps, "log_every": 100, "evaluate_every": 500, "checkpoint_every": 500}
    config = resolve(recipe, [(f"trainer.{key}", str(value)) for key, value in changes.items()])
    watch = MemoryWatch()
    with tempfile.TemporaryDirectory() as folder:
        Trainer(config, f"{folder}/run", callbacks=[watch]).train()
    quarter = len(watch.readings) // 4
    early, late = watch.readings[quarter : 2 * quarter], watch.readings[-quarter:]
    growth = statistics.mean(late) - statistics.mean(early)
    return {
        "recipe": recipe,
        "steps": steps,
        "resident_mib": round(watch.readings[-1], 1),
        "growth_mib": round(growth, 1),
    }


def main():
    """Prints the numbers as JSON; --write appends to results/memory_growth.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="gpt_pydoc:debug")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    row = measure(arguments.recipe, arguments.steps)
    if arguments.write:
        from benchmarks.results_file import append

        append("memory_growth", [row])
    print(json.dumps(row))


if __name__ == "__main__":
    main()
