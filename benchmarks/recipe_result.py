"""Trains a recipe with several random seeds and records the results.

    python -m benchmarks.recipe_result cnn_mnist --seeds 0 1 2
    python -m benchmarks.recipe_result gpt_shakespeare --metric loss --keep runs/gpt
    python -m benchmarks.recipe_result bert_wiki --argument=--config.trainer.precision=float32

Each run is `zoo train` in a separate process; with --keep it resumes. One row per seed and metric
goes to results/recipes.csv, from which the table of WORKSPACE.md is made. Metrics are those of the
final weights (averaged, with `trainer.ema`) on the test split, or on the validation split if there
is no test split.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import zoo
from benchmarks.results_file import append


def run(recipe: str, seed: int, metrics: list[str], keep: str, arguments: list[str]) -> list[dict]:
    """Trains once; returns one row per metric."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(keep or folder) / f"{recipe}-{seed}"
        command = [
            *(sys.executable, "-m", "trainers.cli.main", "train", recipe),
            f"--workdir={workdir}",
            f"--config.trainer.seed={seed}",
            *arguments,
        ]
        subprocess.run(command, check=True)
        lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
        parameters = zoo.load(str(workdir)).count_params()
        files = [workdir / "evaluation" / f"{name}.json" for name in ("test", "validation")]
        evaluation = json.loads(next(file for file in files if file.exists()).read_text())
        split, values = evaluation["split"], evaluation["metrics"]
    rates = [line["samples_per_second"] for line in lines if "samples_per_second" in line]
    return [
        {
            "recipe": recipe,
            "seed": seed,
            "split": split,
            "metric": metric,
            "value": round(values[metric], 6),
            "parameters": parameters,
            "arguments": " ".join(arguments),
            "training_seconds": max(line.get("seconds", 0) for line in lines),
            "samples_per_second": round(statistics.median(rates)),
        }
        for metric in metrics or [next(name for name in values if name != "loss")]
    ]


def main():
    """Runs the seeds one after the other; writes the rows of each when it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--metric", nargs="+", default=[], help="default: the first except loss")
    parser.add_argument("--keep", default="", help="folder that keeps the work directories")
    parser.add_argument("--argument", action="append", default=[], help="flag of zoo train")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        rows = run(arguments.recipe, seed, arguments.metric, arguments.keep, arguments.argument)
        print(rows, append("recipes", rows), flush=True)


if __name__ == "__main__":
    main()
