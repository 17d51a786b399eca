"""Compares training a head with and without cached features of the frozen base.

    zoo train vgg16_transfer:pretrain --workdir=W
    python -m benchmarks.feature_cache --weights=W

Both train the head of VGG16 at 48x48 on 4,000 digits for three epochs with the same random seed.
The rate is that of the epochs after the first, as the trainer logs it. Rows go to
results/feature_cache.csv.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results_file import append
from trainers.evaluation.evaluate import read_evaluation
from trainers.run.workdir import read_metrics


def main() -> None:
    """Trains both in separate processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True, help="work directory of the pretrained base")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for views in (0, 1):
            workdir = Path(folder) / str(views)
            command = [
                *(sys.executable, "-m", "trainers.cli.main", "train", "vgg16_transfer"),
                f"--workdir={workdir}", f"--config.model.weights={arguments.weights}",
                f"--config.task.feature_views={views}", "--config.trainer.epochs=3",
                "--config.trainer.log_every=25",
            ]  # fmt: skip
            subprocess.run(command, check=True)
            lines = [x for x in read_metrics(workdir) if "samples_per_second" in x]
            rates = [x["samples_per_second"] for x in lines if x["epoch"] > 1.01]
            rows.append(
                {
                    "features": "kept" if views else "computed each time",
                    "images_per_second": round(statistics.median(rates), 1),
                    "test_accuracy": read_evaluation(workdir, "test").metrics["accuracy"],
                    "test_loss": round(read_evaluation(workdir, "test").metrics["loss"], 5),
                }
            )
            print(rows[-1], flush=True)
    append("feature_cache", rows)


if __name__ == "__main__":
    main()
