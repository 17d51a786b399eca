"""Quantizes a trained model to several formats and records the comparison.

    zoo train cnn_mnist --workdir=W
    python -m benchmarks.compress_ptq --workdir=W --format litert_int8 litert_dynamic

Each runs `zoo compress ptq` in a separate process; rows go to results/compress_ptq.csv.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results_file import append


def main() -> None:
    """Writes one row per format."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--format", nargs="+", default=["litert_int8", "litert_dynamic"])
    arguments = parser.parse_args()
    for export_format in arguments.format:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            command = [
                *(sys.executable, "-m", "trainers.cli.main", "compress", "ptq"),
                arguments.workdir, f"--out={out}", f"--config.compress.ptq.format={export_format}",
            ]  # fmt: skip
            subprocess.run(command, check=True)
            comparison = json.loads((out / "compression.json").read_text())
            saved = json.loads((out / "config.json").read_text())
        metric = comparison["metric"]
        row = {"recipe": saved["source"], "steps": _steps(saved), "format": export_format}
        row["metric"] = metric
        for side in ("before", "after"):
            facts = comparison[side]
            row[f"metric_{side}"] = round(facts["test"][metric], 5)
            row[f"bytes_{side}"] = facts["bytes"]
            row[f"gzip_{side}"] = facts["gzip_bytes"]
            for threads in (1, 2):
                row[f"ms_{threads}_threads_{side}"] = _ms(facts, str(threads))
        row["times_smaller"] = round(row["bytes_before"] / row["bytes_after"], 2)
        append("compress_ptq", [row])
        print(row, flush=True)


def _ms(facts: dict, threads: str):
    return round(facts["milliseconds"][threads], 4) if facts["milliseconds"] else ""


def _steps(saved: dict) -> str:
    trainer = saved["config"]["trainer"]
    return f"{trainer['steps']} steps" if trainer["steps"] else f"{trainer['epochs']} epochs"


if __name__ == "__main__":
    main()
