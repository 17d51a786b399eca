"""Compresses a trained digit classifier with several sparsities and compares the results.

    zoo train cnn_mnist --workdir=W
    python -m benchmarks.compress_cnn --workdir=W [--method=prune+qat] [--sparsity 0.8 0.9 0.95] \\
        [--epochs=6] [--change optimizer.learning_rate=1e-3 trainer.ema=0.99]

Each runs `zoo compress` in a separate process; rows go to results/compress.csv. Bytes are those of
the LiteRT file after gzip (before 2026-11-26: those of the float32 weights).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results_file import append


def main() -> None:
    """Compresses the same weights once per sparsity."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--method", default="prune")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--change", nargs="*", default=[], help="keys of the recipe, KEY=VALUE")
    arguments = parser.parse_args()
    methods = arguments.method.split("+")
    shares = {"prune": "compress.prune.sparsity", "structured": "compress.structured.sparsity"}
    key = next((key for method, key in shares.items() if method in methods), None)
    for sparsity in arguments.sparsity if key else [0.0]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            command = [
                *(sys.executable, "-m", "trainers.cli.main", "compress", arguments.method),
                arguments.workdir, f"--out={out}",
                f"--config.trainer.epochs={arguments.epochs}",
                *(f"--config.{change}" for change in arguments.change),
            ]  # fmt: skip
            if sparsity:
                command.append(f"--config.{key}={sparsity}")
            subprocess.run(command, check=True)
            comparison = json.loads((out / "compression.json").read_text())
            recipe = json.loads((out / "config.json").read_text())["source"]
        before, after = comparison["before"], comparison["after"]
        row = {
            "recipe": recipe,
            "method": comparison["method"],
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
