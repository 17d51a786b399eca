"""Measures accuracy against size of a trained classifier with low-rank kernels.

    python -m benchmarks.low_rank_size --workdir=W [--budget 0.75 0.5 0.25] [--energy 0.9]
        [--change trainer.epochs=2 optimizer.learning_rate=0.001]

For each size: the test accuracy right after the decomposition ("at once"), and after further
training by `zoo compress low_rank` in a separate process ("learned on"). Rows go to
results/low_rank.csv.
"""

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results_file import append


def size(model) -> dict:
    """Returns the number of parameters, and the bytes of the weights after gzip."""
    content = b"".join(value.tobytes() for value in model.get_weights())
    return {"parameters": model.count_params(), "gzip": len(gzip.compress(content, 9, mtime=0))}


def measure_at_once(workdir: str, way: str, value: float, saved: dict) -> tuple[dict, float]:
    """Returns size and test accuracy right after the decomposition."""
    import numpy as np

    import zoo
    from trainers.compression import low_rank
    from trainers.config.recipe import of_workdir
    from zoo import registry

    original, config = zoo.load(workdir), of_workdir(saved["config"])
    settings = {"energy": 0.0, "budget": 0.0, "sensitivity": 0.0, "pattern": "", way: value}
    ranks = low_rank.decide(original, settings)
    model = low_rank.factorize(original, low_rank.format_ranks(ranks))
    values = {v.path: v.value for v in original.weights} | low_rank.initial_values(model, original)
    for variable in model.weights:
        variable.assign(values[variable.path])
    data = registry.load_data(config.data.to_dict(), config.task.to_dict()).splits["test"]
    predicted = model.predict(np.float32(data["image"]) / 255, batch_size=500, verbose=0)
    return size(model), float((predicted.argmax(-1) == data["label"]).mean())


def measure_after_training(
    workdir: str, way: str, value: float, change: list[str]
) -> tuple[dict, float]:
    """Returns size and test accuracy after `zoo compress low_rank`."""
    import zoo

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [
            *(sys.executable, "-m", "trainers.cli.main", "compress", "low_rank"),
            workdir, f"--out={out}", f"--config.compress.low_rank.{way}={value}",
            *(f"--config.{text}" for text in change),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        metrics = json.loads((out / "evaluation" / "test.json").read_text())["metrics"]
        return size(zoo.load(str(out))), metrics["accuracy"]


def main() -> None:
    """Compresses the same weights to each size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--budget", type=float, nargs="*", default=[0.75, 0.5, 0.25])
    parser.add_argument("--energy", type=float, nargs="*", default=[0.9])
    parser.add_argument("--change", nargs="*", default=["trainer.epochs=2"])
    arguments = parser.parse_args()
    workdir, change = arguments.workdir, arguments.change
    import zoo

    folder = Path(workdir)
    saved = json.loads((folder / "config.json").read_text())
    evaluation = json.loads((folder / "evaluation" / "test.json").read_text())
    accuracy, original = evaluation["metrics"]["accuracy"], size(zoo.load(workdir))
    ways = [("budget", x) for x in arguments.budget] + [("energy", x) for x in arguments.energy]
    for when, measure in (
        ("at once", lambda way, value: measure_at_once(workdir, way, value, saved)),
        (
            f"learned on: {' '.join(change)}",
            lambda *way: measure_after_training(workdir, *way, change),
        ),
    ):
        for way, value in ways:
            compressed, new_accuracy = measure(way, value)
            row = {
                "recipe": saved["source"],
                "way": way,
                "value": value,
                "when": when,
                "accuracy_before": accuracy,
                "accuracy": round(new_accuracy, 4),
                "points_lost": round(100 * (accuracy - new_accuracy), 2),
                "parameters": compressed["parameters"],
                "parameter_ratio": round(original["parameters"] / compressed["parameters"], 2),
                "gzip_ratio": round(original["gzip"] / compressed["gzip"], 2),
            }
            append("low_rank", [row])
            print(row, flush=True)


if __name__ == "__main__":
    main()
