"""Compares the trainer with plain `keras.Model.fit` on the digit classifier without augmentation.

    python -m benchmarks.cnn_overhead [--rounds=5] [--write]

Both train the same model on the 60,000 MNIST images with batch size 128 and Adam at 1e-3,
interleaved in one process. Times are those of whole epochs without tracing; the test accuracy after
three epochs is reported too.
"""

import argparse
import statistics
import tempfile
import time

import keras
import numpy as np

from benchmarks.results_file import append
from trainers.config.base import optimizer, schedule
from trainers.config.recipe import resolve
from trainers.train.trainer import Trainer
from zoo import registry
from zoo.data import load

BATCH = 128


class EpochTimes(keras.callbacks.Callback):
    """Records the seconds of each epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start_time = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(time.perf_counter() - self.start_time)


def zoo_run(precision: str, epochs: int):
    """Trains with the recipe; returns the seconds of the epochs after the first, and accuracy."""
    config = resolve("cnn_mnist", [("trainer.epochs", str(epochs))])
    for change in ("label_smoothing", "rotation", "shift", "zoom", "shear"):
        config.task[change] = 0.0
    with config.unlocked():
        config.optimizer = optimizer("adam", learning_rate=1e-3)
        config.schedule = schedule("constant")
    config.trainer.update({"precision": precision, "ema": 0.0, "global_batch_size": BATCH})
    times = EpochTimes()
    with tempfile.TemporaryDirectory() as folder:
        metrics = Trainer(config, f"{folder}/run", callbacks=[times]).train()
    return times.epochs[1:], metrics["accuracy"]


def main():
    """Measures and prints; --write appends to results/cnn_overhead.csv."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()

    splits = load("mnist").splits
    images = np.asarray(splits["train"]["image"], np.float32) / 255
    labels = np.asarray(splits["train"]["label"])
    keras.utils.set_random_seed(0)
    keras_model = registry.build("cnn_classifier")
    keras_model.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )

    def keras_fit_epochs(epochs):
        times = EpochTimes()
        keras_model.fit(
            images, labels, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[times]
        )
        return times.epochs

    keras_fit_epochs(1)  # traces
    seconds = {"keras fit float32": [], "zoo float32": [], "zoo mixed_bfloat16": []}
    accuracy = {}
    for number in range(arguments.rounds):
        seconds["keras fit float32"] += keras_fit_epochs(2)
        if number == 0:  # after three epochs in total, like the others
            test = np.asarray(splits["test"]["image"], np.float32) / 255
            accuracy["keras fit float32"] = keras_model.evaluate(
                test, np.asarray(splits["test"]["label"]), verbose=0, return_dict=True
            )["accuracy"]
        for precision in ("float32", "mixed_bfloat16"):
            times, value = zoo_run(precision, 3)
            seconds[f"zoo {precision}"] += times
            accuracy.setdefault(f"zoo {precision}", value)
        print({k: round(statistics.median(v), 2) for k, v in seconds.items()}, flush=True)

    rates = {name: 60_000 / statistics.median(times) for name, times in seconds.items()}
    rows = [
        {
            "what": name,
            "images_per_second": round(rate),
            "ratio_to_fit": round(rate / rates["keras fit float32"], 3),
            "test_accuracy_3_epochs": round(accuracy[name], 4),
            "epochs_measured": len(seconds[name]),
        }
        for name, rate in rates.items()
    ]
    for row in rows:
        print(row)
    if arguments.write:
        print(append("cnn_overhead", rows))


if __name__ == "__main__":
    main()
