"""Prunes a trained digit classifier to several sparsities, and compares.

    zoo train cnn_mnist --workdir=W
    python -m benchmarks.compress_cnn --workdir=W [--sparsity 0.8 0.9 0.95] [--epochs=6]

Each is `zoo compress prune` in a process of its own; rows go to results/compress.csv.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results_file import append


def main() -> None:
    """Prunes to each sparsity from the same weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    for sparsity in arguments.sparsity:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            command = [
                *(sys.executable, "-m", "trainers.cli.main", "compress", "prune"),
                arguments.workdir, f"--out={out}", f"--config.compress.sparsity={sparsity}",
                f"--config.trainer.epochs={arguments.epochs}",
            ]  # fmt: skip
            subprocess.run(command, check=True)
            found = json.loads((out / "compression.json").read_text())
            recipe = json.loads((out / "config.json").read_text())["source"]
        before, after = found["before"], found["after"]
        row = {
            "recipe": recipe,
            "method": found["method"],
            "sparsity": sparsity,
            "epochs": arguments.epochs,
            "accuracy_before": before["test"]["accuracy"],
            "accuracy_after": after["test"]["accuracy"],
            "nonzeros": after["nonzeros"],
            "gzip_bytes": after["gzip_bytes"],
            "gzip_ratio": round(before["gzip_bytes"] / after["gzip_bytes"], 2),
        }
        append("compress", [row])
        print(row, flush=True)


if __name__ == "__main__":
    main()
