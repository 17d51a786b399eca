"""Compares transfer learning with training from random weights, on ten images per class.

    zoo train vgg16_transfer:pretrain --workdir=W
    python -m benchmarks.few_shot --weights=W [--seeds 0 1 2]

Each seed draws 100 training images of MNIST; the 10,000 test images are evaluated once per run. All
networks are VGG16 at 48x48 and train on the same images for 30 epochs. Whole networks train with
Adam at 1e-4, as usual for this depth without normalization; the head alone trains at the recipe's
1e-3. Rows go to results/few_shot.csv, with the number of updates of the pretraining.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.results_file import append
from trainers.evaluation.evaluate import read_evaluation
from trainers.run.workdir import read_metrics
from zoo.data import load

PER_CLASS, EPOCHS = 10, 30
WAYS = {
    "frozen base": ["--config.model.weights={weights}"],
    "all of it, from the base": [
        "--config.model.weights={weights}", "--config.model.trainable=all",
        "--config.optimizer.learning_rate=1e-4",
    ],
    "from nothing": [
        "--config.model.weights=none", "--config.model.trainable=all",
        "--config.optimizer.learning_rate=1e-4",
    ],
}  # fmt: skip


def draw(mnist, seed: int) -> dict[str, np.ndarray]:
    """Returns ten training images per class, and the whole test split."""
    train, test = mnist.splits["train"], mnist.splits["test"]
    label = np.asarray(train["label"])
    generator = np.random.default_rng(seed)
    indices = np.sort(
        np.concatenate(
            [generator.choice(np.flatnonzero(label == c), PER_CLASS, False) for c in range(10)]
        )
    )
    return {
        "train_image": np.asarray(train["image"])[indices], "train_label": label[indices],
        "test_image": np.asarray(test["image"]), "test_label": np.asarray(test["label"]),
    }  # fmt: skip


def main() -> None:
    """Trains every way with each seed, in separate processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights", required=True, help="work directory of the pretrained base")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    arguments = parser.parse_args()
    mnist = load("mnist")
    pretraining = max(line.get("step", 0) for line in read_metrics(arguments.weights))
    updates = {way: 0 if way == "from nothing" else pretraining for way in WAYS}
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            np.savez(f"{folder}/few.npz", **draw(mnist, seed))
            for number, way in enumerate(arguments.ways):
                workdir = Path(folder) / str(number)
                command = [
                    *(sys.executable, "-m", "trainers.cli.main", "train", "vgg16_transfer"),
                    f"--workdir={workdir}", f"--config.data.source=npz:{folder}/few.npz",
                    f"--config.trainer.seed={seed}", f"--config.trainer.epochs={EPOCHS}",
                    "--config.trainer.global_batch_size=25",
                    *(flag.format(weights=arguments.weights) for flag in WAYS[way]),
                ]  # fmt: skip
                subprocess.run(command, check=True)
                metrics = read_evaluation(workdir, "test").metrics
                row = {
                    "way": way,
                    "base_updates": updates[way],
                    "seed": seed,
                    "test_accuracy": round(metrics["accuracy"], 4),
                }
                append("few_shot", [row])
                print(row, flush=True)


if __name__ == "__main__":
    main()
