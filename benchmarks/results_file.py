"""Appends rows to a CSV in benchmarks/results, with machine, versions and date."""

import csv
from datetime import date
from pathlib import Path

from trainers.run.workdir import cpu_name

RESULTS = Path(__file__).parent / "results"


def append(name: str, rows: list[dict]) -> Path:
    """Appends rows to results/<name>.csv and returns its path; all rows have the same columns."""
    import os

    import keras
    import tensorflow as tf

    machine = {
        "date": date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {cpu_name()}",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
    }
    path = RESULTS / f"{name}.csv"
    RESULTS.mkdir(exist_ok=True)
    fresh = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *machine])
        if fresh:
            writer.writeheader()
        writer.writerows({**row, **machine} for row in rows)
    return path
