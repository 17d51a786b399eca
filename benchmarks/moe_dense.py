"""Compares a mixture of experts with its dense twin of equal active parameters.

    python -m benchmarks.moe_dense [--arms moe dense] [--seeds 0 1 2] [--steps=500]
        [--seconds=0] [--change data.sequence_length=128 ...] [--write]

Both arms are variants of the recipe `moe_wiki`. Arms train for the same number of updates, or with
`--seconds` for the same processor time: the cost of an update is measured first, and the number of
updates follows from it, so that the schedule of each run ends at its last update. Each run is a
process. The rows have the metrics of the validation split and the loads of the last log window.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras

from benchmarks.results_file import append
from trainers.config.recipe import resolve
from trainers.train.trainer import Trainer
from zoo.start import start_tensorflow

VARIANTS = {"moe": "moe_wiki", "dense": "moe_wiki:dense"}
_WARM_UP = 20  # updates before the cost of an update is measured


class Cost(keras.callbacks.Callback):
    """Measures the processor time per update, after tracing."""

    def __init__(self):
        super().__init__()
        self.updates, self.seconds = 0, 0.0

    def on_train_batch_begin(self, batch, logs=None):
        if batch >= _WARM_UP:
            self._start = time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        if batch >= _WARM_UP:
            self.updates += 1
            self.seconds += time.process_time() - self._start


def train(arm: str, seed: int, steps: int, change: list[str]) -> dict:
    """Trains one arm in this process and returns its row."""
    start_tensorflow()
    overrides = [tuple(text.split("=", 1)) for text in change]
    overrides += [(f"trainer.{key}", str(steps)) for key in ("steps", "evaluate_every")]
    overrides += [("trainer.seed", str(seed)), ("trainer.steps_per_execution", "1")]
    config = resolve(VARIANTS[arm], overrides)
    cost = Cost()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / arm, callbacks=[cost])
        trainer.train()
        lines = (Path(folder) / arm / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    last = {key: value for line in lines for key, value in line.items()}
    model = trainer.step.net
    blocks = [getattr(layer, "feed_forward", None) for layer in model.layers]
    unused = sum(getattr(part, "inactive_parameters", 0) for part in blocks)
    return {
        "arm": arm, "seed": seed, "steps": steps, "parameters": model.count_params(),
        "active": model.count_params() - unused,
        "bits_per_byte": last["val_bits_per_byte"],
        "cross_entropy": last.get("val_cross_entropy", last["val_loss"]),
        "milliseconds_per_update": round(1e3 * cost.seconds / max(cost.updates, 1), 1),
        "max_load": last.get("max_load", ""), "router_entropy": last.get("router_entropy", ""),
        "change": " ".join(change),
    }  # fmt: skip


def measure(arm: str, seed: int, steps: int, change: list[str]) -> dict:
    """Returns the row of a run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.moe_dense", f"--only={arm}", f"--steps={steps}"]
    command += ["--seeds", str(seed), *(["--change", *change] if change else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Trains the arms of each seed; prints each row, and appends it with `--write`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--arms", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=0, help="processor time, for --steps")
    parser.add_argument("--change", nargs="*", default=[], help="KEY=VALUE of the configuration")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        row = train(arguments.only, arguments.seeds[0], arguments.steps, arguments.change)
        print(json.dumps(row))
        return
    steps = dict.fromkeys(arguments.arms, arguments.steps)
    if arguments.seconds:
        for arm in arguments.arms:
            cost = measure(arm, 0, 3 * _WARM_UP, arguments.change)["milliseconds_per_update"]
            steps[arm] = max(1, round(1e3 * arguments.seconds / cost))
    for seed in arguments.seeds:
        for arm in arguments.arms:
            row = measure(arm, seed, steps[arm], arguments.change)
            print(row, flush=True)
            if arguments.write:
                append("moe_dense", [row])


if __name__ == "__main__":
    main()
