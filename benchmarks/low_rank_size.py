"""A trained classifier with kernels as products: accuracy against size.

    python -m benchmarks.low_rank_size --workdir=W [--budget 0.5 0.25] [--energy 0.9]
        [--change trainer.epochs=2]

Each is `zoo compress low_rank` in a process of its own; rows go to results/low_rank.csv. "at once"
is the accuracy before the products learn on, on the same test split.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results_file import append


def at_once(out: Path) -> float:
    """Test accuracy of the products as they were decomposed, from the recipe that was kept."""
    import numpy as np

    import zoo
    from trainers.compress.low_rank import rebuilt, start_values
    from trainers.recipe import of_workdir

    config = of_workdir(json.loads((out / "config.json").read_text())["config"])
    whole = zoo.load(config.init_from)
    model = rebuilt(whole, config.compress.low_rank.ranks)
    found = {v.path: v.value for v in whole.weights} | start_values(model, whole)
    for variable in model.weights:
        variable.assign(found[variable.path])
    data = zoo.registry.load_data(config.data.to_dict(), config.task.to_dict()).splits["test"]
    predicted = model.predict(np.float32(data["image"]) / 255, batch_size=500, verbose=0)
    return float((predicted.argmax(-1) == data["label"]).mean())


def main() -> None:
    """Compresses to each size from the same weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--budget", type=float, nargs="*", default=[0.5, 0.25])
    parser.add_argument("--energy", type=float, nargs="*", default=[0.9])
    parser.add_argument("--change", nargs="*", default=["trainer.epochs=2"])
    arguments = parser.parse_args()
    ways = [("budget", x) for x in arguments.budget] + [("energy", x) for x in arguments.energy]
    for way, value in ways:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            command = [
                *(sys.executable, "-m", "trainers.cli.main", "compress", "low_rank"),
                arguments.workdir, f"--out={out}", f"--config.compress.low_rank.{way}={value}",
                *(f"--config.{text}" for text in arguments.change),
            ]  # fmt: skip
            subprocess.run(command, check=True)
            found = json.loads((out / "compression.json").read_text())
            recipe = json.loads((out / "config.json").read_text())["source"]
            first = at_once(out)
        before, after = found["before"], found["after"]
        row = {
            "recipe": recipe,
            "way": way,
            "value": value,
            "accuracy_before": before["test"]["accuracy"],
            "accuracy_at_once": round(first, 4),
            "accuracy_after": after["test"]["accuracy"],
            "points_lost": round(100 * (before["test"]["accuracy"] - after["test"]["accuracy"]), 3),
            "parameters": after["parameters"],
            "parameter_ratio": round(before["parameters"] / after["parameters"], 2),
            "gzip_ratio": round(before["gzip_bytes"] / after["gzip_bytes"], 2),
            "changes": " ".join(arguments.change),
        }
        append("low_rank", [row])
        print(row, flush=True)


if __name__ == "__main__":
    main()
