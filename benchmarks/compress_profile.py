"""Times each layer of a trained classifier in LiteRT, in floats and in full integers.

    zoo train cnn_mnist --workdir=W
    python -m benchmarks.compress_profile --workdir=W

Each layer is a file of its own, given what the layers before it make of real pictures; the float
and the integer file run in turn on one thread. Last come convolutions of 64 and 128 channels on
28 x 28, where nothing but the arithmetic counts. Rows go to results/compress_profile.csv.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.results_file import append
from zoo.start import start_tensorflow

_EXAMPLES = 40


def main() -> None:
    """A row a layer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    arguments = parser.parse_args()
    start_tensorflow()
    import keras

    from trainers.compress_jobs.loaded_run import load

    found = load(arguments.workdir)
    values = found.examples("train", range(_EXAMPLES))["image"].astype("float32") / 255
    rows = []
    for layer in found.model.layers[1:]:
        given = keras.Input(values.shape[1:], name="given")
        model = keras.Model(given, layer(given))
        rows.append(_row(found.saved["source"], layer.name, model, values))
        values = np.asarray(model(values))
    for channels in (64, 128):
        values = np.random.default_rng(0).random((_EXAMPLES, 28, 28, channels), np.float32)
        given = keras.Input(values.shape[1:], name="given")
        layer = keras.layers.Conv2D(channels, 3, padding="same", activation="relu")
        rows.append(
            _row("", f"convolution of {channels}", keras.Model(given, layer(given)), values)
        )
    append("compress_profile", rows)


def _row(recipe: str, name: str, model, values) -> dict:
    from trainers.compress_jobs.latency import interleaved
    from trainers.export.litert import convert
    from trainers.export.saved_model import write_saved_model

    with tempfile.TemporaryDirectory() as folder:
        files = {}
        write_saved_model(model, folder, {"given": values}, batch=1)
        np.savez(Path(folder) / "examples.npz", given=values)
        for quantisation in ("float32", "int8"):
            files[quantisation] = Path(folder) / f"{quantisation}.tflite"
            files[quantisation].write_bytes(convert(folder, quantisation))
        times = interleaved(files, {"given": values[:8]})
    row = {"recipe": recipe, "layer": name, "given": "x".join(map(str, values.shape[1:]))}
    row |= {f"ms_{name}": round(found["1"], 4) for name, found in times.items()}
    row["speed"] = round(row["ms_float32"] / row["ms_int8"], 2)
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
