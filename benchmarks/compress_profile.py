"""Times each layer of a trained classifier in LiteRT, in float32 and in full integers.

    zoo train cnn_mnist --workdir=W
    python -m benchmarks.compress_profile --workdir=W

Each layer is exported alone; its inputs are the outputs of the previous layers for real images. The
float32 and int8 files run alternately on one thread. Convolutions of 64 and 128 channels on 28 x 28
follow, whose time is that of the arithmetic. Rows go to results/compress_profile.csv.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.results_file import append
from zoo.start import start_tensorflow

_EXAMPLES = 40


def main() -> None:
    """Writes one row per layer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    arguments = parser.parse_args()
    start_tensorflow()
    import keras

    from trainers.compress_jobs.loaded_run import load

    run = load(arguments.workdir)
    values = run.examples("train", range(_EXAMPLES))["image"].astype("float32") / 255
    rows = []
    for layer in run.model.layers[1:]:
        inputs = keras.Input(values.shape[1:], name="inputs")
        model = keras.Model(inputs, layer(inputs))
        rows.append(_row(run.saved["source"], layer.name, model, values))
        values = np.asarray(model(values))
    for channels in (64, 128):
        values = np.random.default_rng(0).random((_EXAMPLES, 28, 28, channels), np.float32)
        inputs = keras.Input(values.shape[1:], name="inputs")
        layer = keras.layers.Conv2D(channels, 3, padding="same", activation="relu")
        model = keras.Model(inputs, layer(inputs))
        rows.append(_row("", f"convolution of {channels}", model, values))
    append("compress_profile", rows)


def _row(recipe: str, name: str, model, values) -> dict:
    from trainers.compress_jobs.latency import measure_latencies
    from trainers.export.litert import convert
    from trainers.export.saved_model import write_saved_model

    with tempfile.TemporaryDirectory() as folder:
        files = {}
        write_saved_model(model, folder, {"inputs": values}, batch=1)
        np.savez(Path(folder) / "examples.npz", inputs=values)
        for quantization in ("float32", "int8"):
            files[quantization] = Path(folder) / f"{quantization}.tflite"
            files[quantization].write_bytes(convert(folder, quantization))
        times = measure_latencies(files, {"inputs": values[:8]})
    row = {"recipe": recipe, "layer": name, "input": "x".join(map(str, values.shape[1:]))}
    row |= {f"ms_{name}": round(by_threads["1"], 4) for name, by_threads in times.items()}
    row["speed"] = round(row["ms_float32"] / row["ms_int8"], 2)
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
