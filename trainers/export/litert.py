"""LiteRT files: made in a process of their own, and run in the place of the Keras model.

A conversion that fails can take the interpreter with it (full-integer calibration of a loop does),
so it runs apart, and such an end becomes one line.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from trainers.export.saved_model import write_saved_model
from zoo import processes
from zoo.errors import RunError, short
from zoo.keras_internals import all_layers
from zoo.layers.rounding import is_quantized, is_token_model, rounded_kernels
from zoo.storage.disk import atomic

# How weights are kept: as they are; as float16; as int8, with what a layer is given rounded anew in
# each call; as int8 with all arithmetic in integers, by ranges seen on examples.
QUANTISATIONS = ("float32", "float16", "dynamic", "int8")


def write(
    model, inputs: Mapping, out: str | Path, quantisation: str = "float32", examples=None,
    per_tensor: bool = False,
) -> None:  # fmt: skip
    """Converts a model in a process of its own.

    Args:
      model: Functional, computing in float32; see `zoo.models.float32.in_float32`.
      inputs: an array a name, (B, …): of which shapes and types the file takes, one at a time.
      out: the file.
      quantisation: one of `QUANTISATIONS`.
      examples: for "int8": name -> (N, …), by which ranges are chosen.
      per_tensor: whether every kernel has one scale, as clusters need it; see also `one_scale`.

    Raises:
      RunError: where the conversion fails, or ends its process.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked = prepare(model, folder, inputs)
        quantisation = asked if quantisation == "float32" else quantisation
        per_tensor = per_tensor or one_scale(model, quantisation)
        if examples is not None:
            np.savez(Path(folder) / "examples.npz", **examples)
        scales = "per_tensor" if per_tensor else "per_channel"
        done = processes.run(
            "trainers.export.litert:main", folder, str(out), quantisation, scales, tensorflow=True
        )
    if done.returncode < 0:
        raise RunError(
            f"The conversion to LiteRT {quantisation} was ended by signal {-done.returncode}"
            f"{_LOOP if quantisation == 'int8' else ''}."
        )
    if done.returncode:
        words = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RunError(f"The conversion to LiteRT {quantisation} failed: {short(words)}")


def prepare(model, folder: str, inputs: Mapping) -> str:
    """Writes what LiteRT is converted from; returns the quantisation that the model asks for.

    That is "dynamic" of a model that learned in 8 bits: where its layers' ranges tell all, the
    converter makes integers throughout; of tokens, norms and attention stay in floating point, and
    the kernels alone, rounded once, become integers.
    """
    with as_held(model):
        write_saved_model(model, folder, inputs, batch=1)
    return "dynamic" if is_quantized(model) else "float32"


def as_held(model):
    """Returns a context in which a model computes what its LiteRT file holds; see `prepare`."""
    return rounded_kernels(model) if is_token_model(model) else contextlib.nullcontext()


def one_scale(model, quantisation: str) -> bool:
    """Returns whether a model's kernels need one scale each, in place of one per output channel.

    Models of tokens that learned in 8 bits do: training rounded each kernel by one scale. So do
    tied embeddings in "dynamic": the converter stores one array for the table and the kernel only
    where both have the same scales, and a table has one. In "int8" it gives the table the range of
    its outputs, so that there are two arrays in any case.
    """
    tied = any(getattr(layer, "tie_weights", False) for layer in all_layers(model))
    return is_token_model(model) or (tied and quantisation == "dynamic")


_LOOP = ": it cannot calibrate recurrent layers; compress.ptq.format=litert_dynamic can"


def main(folder: str, out: str, quantisation: str, scales: str) -> None:
    """Converts a saved model; says in one line why not."""
    try:
        content = convert(folder, quantisation, scales == "per_tensor")
        with atomic(out) as file:
            file.write(content)
    except Exception as error:  # converters raise what they like, often over many lines
        words = short(error)
        raise SystemExit(f"{type(error).__name__}: {words}") from None


def convert(folder: str, quantisation: str = "float32", per_tensor: bool = False) -> bytes:
    """Returns the file of a saved model with a batch of one; in this process.

    Args:
      folder: of the saved model; for "int8" examples.npz lies in it.
      quantisation: one of `QUANTISATIONS`.
      per_tensor: whether every kernel has one scale, in place of one per output channel.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter._experimental_disable_per_channel = per_tensor
    if quantisation != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantisation == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantisation == "int8":
        with np.load(Path(folder) / "examples.npz") as file:
            arrays = dict(file)
        count = len(next(iter(arrays.values())))
        converter.representative_dataset = lambda: (
            {name: values[i : i + 1] for name, values in arrays.items()} for i in range(count)
        )
        # What no integer kernel exists for stays float.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS,
        ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # calibration runs an interpreter that is to go
        return converter.convert()
