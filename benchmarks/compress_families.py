"""Runs every compression method on a small model of every family, by its command.

    python -m benchmarks.compress_families [--recipes cnn_digits:debug ...] [--methods prune ...]

Trains each recipe, compresses the run in a separate process, and adds a row to
results/compress_families.csv: metric and gzip ratio, or the error message. The recipes are small:
the metrics show that a method works, not how well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import append
from trainers.compress_jobs.methods import METHODS

RECIPES = ("cnn_digits:debug", "lstm_pydoc:debug", "gpt_pydoc:debug", "bert_wiki:debug",
           "vgg16_transfer:debug")  # fmt: skip
# Overrides by method and first part of the recipe's name.
OVERRIDES = {
    ("distill", "cnn"): ("model.filters=8,16,16", "model.hidden_dim=16"),
    ("distill", "lstm"): ("model.hidden_dim=32",),
    ("distill", "gpt"): ("model.num_layers=1",),
    ("distill", "bert"): ("model.num_layers=1",),
    ("distill", "vgg16"): ("model.hidden_dim=32",),
    ("ptq", "vgg16"): ("compress.ptq.format=litert_int8",),
    ("ptq", "gpt"): ("compress.ptq.format=keras_int8",),
    ("ptq", "bert"): ("compress.ptq.format=keras_int8",),
}


def zoo(*words: str) -> subprocess.CompletedProcess:
    """Runs `zoo WORD ...`."""
    command = [sys.executable, "-m", "trainers.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True)


def compress(recipe: str, method: str, workdir: Path, out: Path) -> dict:
    """Compresses a run; returns a row."""
    overrides = OVERRIDES.get((method, recipe.partition("_")[0]), ())
    flags = (f"--config.{override}" for override in overrides)
    start = time.time()
    result = zoo("compress", method, str(workdir), f"--out={out}", *flags)
    row = {
        "recipe": recipe, "method": method, "overrides": " ".join(overrides),
        "exit": result.returncode, "seconds": round(time.time() - start), "metric": "",
        "before": "", "after": "", "gzip_ratio": "", "error": "",
    }  # fmt: skip
    if result.returncode:
        return row | {"error": result.stderr.strip().splitlines()[-1]}
    comparison = json.loads((out / "compression.json").read_text())
    metric, before, after = (comparison[key] for key in ("metric", "before", "after"))
    return row | {
        "metric": metric,
        "before": round(before["test"][metric], 4),
        "after": round(after["test"][metric], 4),
        "gzip_ratio": round(before["gzip_bytes"] / after["gzip_bytes"], 2),
    }


def main() -> None:
    """Writes one row per recipe and method as soon as it is measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    arguments = parser.parse_args()
    for recipe in arguments.recipes:
        with tempfile.TemporaryDirectory() as folder:
            workdir = Path(folder) / "trained"
            trained = zoo("train", recipe, f"--workdir={workdir}")
            if trained.returncode:
                sys.exit(trained.stderr)
            for method in arguments.methods:
                row = compress(recipe, method, workdir, Path(folder) / method)
                append("compress_families", [row])
                print(row, flush=True)


if __name__ == "__main__":
    main()
