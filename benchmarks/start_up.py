"""Measures the time from `Trainer(...)` to the end of the first update of a recipe.

    python -m benchmarks.start_up [RECIPE] [--rounds=5] [--write]

Each round runs in a separate process. The time includes loading the prepared dataset, building,
tracing and the first update, but not imports.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time


def measure(recipe: str) -> float:
    """Returns the seconds of one start in this process."""
    import keras

    from trainers.config.recipe import resolve
    from trainers.train.trainer import Trainer

    class FirstUpdateDone(Exception):
        pass

    class StopAfterUpdate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            int(self.model.count.numpy())  # waits for the update
            raise FirstUpdateDone

    config = resolve(recipe, [("trainer.steps_per_execution", "1")])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            Trainer(config, f"{folder}/run", callbacks=[StopAfterUpdate()]).train()
        except FirstUpdateDone:
            return time.perf_counter() - start
    raise AssertionError("training ended without an update")


def main():
    """Prints the median; --write appends to results/start_up.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", nargs="?", default="cnn_mnist")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(measure(arguments.recipe))
        return
    command = [sys.executable, "-m", "benchmarks.start_up", arguments.recipe, "--once"]
    seconds = []
    for _ in range(arguments.rounds):
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds.append(float(result.stdout.splitlines()[-1]))
    row = {"recipe": arguments.recipe, "seconds": round(statistics.median(seconds), 2)}
    print(row, [round(s, 2) for s in seconds])
    if arguments.write:
        from benchmarks.results_file import append

        append("start_up", [row | {"rounds": arguments.rounds}])


if __name__ == "__main__":
    main()
