"""Runs a recipe by its command over some seeds, and keeps what it reached.

    python -m benchmarks.recipe_result cnn_mnist --seeds 0 1 2

Each run is `zoo train` in a process of its own; a row a seed goes to results/recipes.csv, from
which WORKSPACE.md's table is made.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results_file import append


def run(recipe: str, seed: int) -> dict:
    """Trains once; returns the row."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "trainers.cli.main", "train", recipe),
            f"--workdir={workdir}",
            f"--config.trainer.seed={seed}",
        ]
        subprocess.run(command, check=True)
        evaluation = json.loads((workdir / "evaluation" / "test.json").read_text())
        lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    metric = next(name for name in evaluation["metrics"] if name != "loss")
    return {
        "recipe": recipe,
        "seed": seed,
        "split": evaluation["split"],
        "metric": metric,
        "value": round(evaluation["metrics"][metric], 6),
        "training_seconds": max(line.get("seconds", 0) for line in lines),
        "samples_per_second": round(statistics.median(rates)),
    }


def main():
    """Runs all seeds one after the other, writing each as it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        row = run(arguments.recipe, seed)
        print(row, append("recipes", [row]), flush=True)


if __name__ == "__main__":
    main()
