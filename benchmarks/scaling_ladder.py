"""Trains models of several sizes ("rungs"), plots loss against parameters, and fits a power law.

    python -m benchmarks.scaling_ladder [--recipe=gpt_scaling] [--rungs 1 2 3 4] [--argument …]

The law is loss = floor + (scale / parameters)^exponent (Hoffmann et al. 2022, arXiv:2203.15556,
equation 2, with constant data); parameters exclude embeddings (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1). Rows go to results/scaling.csv, the plot to results/scaling.svg. The
fit uses the newest row of each rung, so that rungs may be trained at different times.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.results_file import RESULTS, append


def train(recipe: str, rung: int, arguments: list[str]) -> dict:
    """Trains one rung in a separate process; returns its row."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "trainers.cli.main", "train", f"{recipe}:{rung}"),
            f"--workdir={workdir}",
            *arguments,
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        count = subprocess.run(
            [sys.executable, "-c", COUNT, str(workdir)], capture_output=True, text=True, check=True
        )
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    bits = [line["val_bits_per_byte"] for line in lines if "val_bits_per_byte" in line]
    return {
        "recipe": recipe,
        "rung": rung,
        "parameters": int(count.stdout),
        "steps": max(line["step"] for line in lines),
        "val_loss": round(losses[-1], 4),
        "val_bits_per_byte": round(bits[-1], 4),
        "training_seconds": max(line.get("seconds", 0) for line in lines),
    }


COUNT = """
import sys, zoo
model = zoo.load(sys.argv[1])
print(sum(layer.count_params() for layer in model.layers if layer.name != "embedding"))
"""


def fit(parameters: np.ndarray, losses: np.ndarray) -> tuple[float, float, float]:
    """Fits loss = floor + (scale / parameters)^exponent.

    For a given floor the law is linear in logarithms; a grid search gives the floor.

    Returns:
      `(floor, scale, exponent)`.
    """
    best = None
    for floor in np.linspace(0, losses.min() * 0.999, 2000):
        slope, intercept = np.polyfit(np.log(parameters), np.log(losses - floor), 1)
        error = np.sum((floor + np.exp(intercept) * parameters**slope - losses) ** 2)
        if best is None or error < best[0]:
            best = error, floor, slope, intercept
    _, floor, slope, intercept = best
    return float(floor), float(np.exp(-intercept / slope)), float(-slope)


def plot(rows: list[dict], law: tuple[float, float, float], path: Path) -> None:
    """Draws the measured losses and the law."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    parameters = np.array([row["parameters"] for row in rows], float)
    floor, scale, exponent = law
    figure, axes = plt.subplots(figsize=(7, 4.5))
    line = np.geomspace(parameters.min() / 1.5, parameters.max() * 1.5, 100)
    axes.plot(line, floor + (scale / line) ** exponent, color="#dd6b10", zorder=1)
    losses = [float(row["val_loss"]) for row in rows]
    axes.scatter(parameters, losses, color="#2563eb", zorder=2)
    axes.set_xscale("log")
    axes.set_xlabel("parameters without embeddings")
    axes.set_ylabel("validation loss, nats per token")
    axes.set_title(f"loss = {floor:.3f} + ({scale:.3g} / N)^{exponent:.3f}")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Trains all rungs; writes the row of each when it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="gpt_scaling")
    parser.add_argument("--rungs", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--argument", action="append", default=[], help="flag of zoo train")
    arguments = parser.parse_args()
    for rung in arguments.rungs:
        row = train(arguments.recipe, rung, arguments.argument)
        append("scaling", [row])
        print(row, flush=True)
    with open(RESULTS / "scaling.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["recipe"] == arguments.recipe]
    newest = {int(row["rung"]): row for row in rows}
    rows = [newest[rung] for rung in sorted(newest)]
    if len(rows) < 3:
        return  # the law has three parameters
    law = fit(
        np.array([row["parameters"] for row in rows], float),
        np.array([row["val_loss"] for row in rows], float),
    )
    plot(rows, law, RESULTS / "scaling.svg")
    print(f"loss = {law[0]:.3f} + ({law[1]:.4g} / N)^{law[2]:.3f}")


if __name__ == "__main__":
    main()
