"""Runs a recipe by its command over some seeds, and keeps what it reached.

    python -m benchmarks.recipe_result cnn_mnist --seeds 0 1 2
    python -m benchmarks.recipe_result gpt_shakespeare --metric loss --keep runs/gpt

    python -m benchmarks.recipe_result bert_wiki --argument=--config.trainer.precision=float32

Each run is `zoo train` in a process of its own, and goes on where its folder of --keep has a part
of it; a row a seed and metric goes to results/recipes.csv, from which WORKSPACE.md's table is made.
The values are those of the final (averaged, where the recipe has `trainer.ema`) weights on the test
split; on the validation split where the data have no test split.
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
    """Trains once; returns a row a metric."""
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
        found = json.loads(next(file for file in files if file.exists()).read_text())
        split, values = found["split"], found["metrics"]
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
    """Runs all seeds one after the other, writing each as it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--metric", nargs="+", default=[], help="the first but the loss if none")
    parser.add_argument("--keep", default="", help="folder in which the work directories stay")
    parser.add_argument("--argument", action="append", default=[], help="of zoo train; repeat it")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        rows = run(arguments.recipe, seed, arguments.metric, arguments.keep, arguments.argument)
        print(rows, append("recipes", rows), flush=True)


if __name__ == "__main__":
    main()
