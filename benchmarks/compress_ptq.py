"""Rounds trained models in several formats, and keeps what the comparison says.

    zoo train cnn_mnist --workdir=W
    python -m benchmarks.compress_ptq --workdir=W --format litert_int8 litert_dynamic
    python -m benchmarks.compress_ptq --workdir=W --profile litert_int8

Each is `zoo compress ptq` in a process of its own; rows go to results/compress_ptq.csv. With
--profile: the time of each operation of the rounded file and of the float file, to
results/litert_profile.csv. A file is run whole and with XNNPACK left out; then each operation
is timed as what the file takes up to it less what it takes up to the one before.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results_file import append


def main() -> None:
    """A row a format."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--format", nargs="+", default=["litert_int8", "litert_dynamic"])
    arguments = parser.parse_args()
    for form in arguments.format:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            command = [
                *(sys.executable, "-m", "trainers.cli.main", "compress", "ptq"),
                arguments.workdir, f"--out={out}", f"--config.compress.ptq.format={form}",
            ]  # fmt: skip
            subprocess.run(command, check=True)
            found = json.loads((out / "compression.json").read_text())
            saved = json.loads((out / "config.json").read_text())
        row = {"recipe": saved["source"], "steps": _steps(saved), "format": form}
        row["metric"] = metric = "accuracy" if found["metric"] == "accuracy" else "loss"
        for side in ("before", "after"):
            facts = found[side]
            row |= {f"{metric_name}_{side}": value for metric_name, value in (
                ("metric", round(facts["test"][metric], 5)),
                ("bytes", facts["bytes"]),
                ("gzip", facts["gzip_bytes"]),
                ("ms_1_thread", _ms(facts, "1")),
                ("ms_2_threads", _ms(facts, "2")),
            )}  # fmt: skip
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
