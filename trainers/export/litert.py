"""Converts models to LiteRT files, in a child process.

A failing conversion can end the interpreter, for example the int8 calibration of a recurrent layer.
The child process turns this failure into a one-line error.
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
from zoo.keras_internals import all_layers
from zoo.layers.rounding import is_quantized, is_token_model, rounded_kernels
from zoo.storage.disk import atomic

# Number formats. "dynamic" has int8 weights and quantizes activations in each call. "int8" computes
# only in integers, with ranges of activations calibrated on examples.
QUANTIZATIONS = ("float32", "float16", "dynamic", "int8")


def write(
    model, inputs: Mapping, out: str | Path, quantization: str = "float32", examples=None,
    per_tensor: bool = False,
) -> None:  # fmt: skip
    """Converts a model in a child process.

    Args:
      model: Functional model that computes in float32, see `zoo.models.float32.in_float32`.
      inputs: name -> (B, …): arrays with the shapes and types of the inputs. The file takes one
        example per call.
      out: path of the file.
      quantization: one of `QUANTIZATIONS`.
      examples: name -> (N, …): examples for the calibration of "int8".
      per_tensor: whether every kernel has a single scale, which clustered kernels need; see also
        `needs_single_scale`.

    Raises:
      RunError: if the conversion fails or ends its process.
    """
    with tempfile.TemporaryDirectory() as folder:
        required_quantization = prepare(model, folder, inputs)
        quantization = required_quantization if quantization == "float32" else quantization
        per_tensor = per_tensor or needs_single_scale(model, quantization)
        if examples is not None:
            np.savez(Path(folder) / "examples.npz", **examples)
        scales = "per_tensor" if per_tensor else "per_channel"
        processes.call(
            f"The conversion to LiteRT {quantization}", "trainers.export.litert:write_converted",
            folder, str(out), quantization, scales, tensorflow=True,
            killed=_CALIBRATION_HINT if quantization == "int8" else "",
        )  # fmt: skip


def prepare(model, folder: str, inputs: Mapping) -> str:
    """Writes the SavedModel to convert, and returns the quantization that the model requires.

    A model from 8-bit training requires "dynamic". If its layers have all ranges, the converter
    uses only integers. In a token model, normalization and attention stay in floating point, and
    only the kernels, rounded once, become integers.
    """
    with computing_as_converted(model):
        write_saved_model(model, folder, inputs, batch=1)
    return "dynamic" if is_quantized(model) else "float32"


def computing_as_converted(model):
    """Returns a context in which a model computes like its LiteRT file; see `prepare`."""
    return rounded_kernels(model) if is_token_model(model) else contextlib.nullcontext()


def needs_single_scale(model, quantization: str) -> bool:
    """Returns whether each kernel of a model needs a single scale, not one per output channel.

    A token model from 8-bit training needs a single scale, because training rounds each kernel with
    one scale. Tied embeddings need it in "dynamic": the converter stores one array for table and
    kernel if their scales are equal, and a table has one scale. In "int8" the converter gives the
    table the range of its outputs, so the file has two arrays in any case.
    """
    tied = any(getattr(layer, "tie_weights", False) for layer in all_layers(model))
    return is_token_model(model) or (tied and quantization == "dynamic")


_CALIBRATION_HINT = (
    ": LiteRT cannot calibrate recurrent layers; use compress.ptq.format=litert_dynamic"
)


def write_converted(folder: str, out: str, quantization: str, scales: str) -> None:
    """Converts a SavedModel to a LiteRT file in this process; see `convert`."""
    content = convert(folder, quantization, scales == "per_tensor")
    with atomic(out) as file:
        file.write(content)


def convert(folder: str, quantization: str = "float32", per_tensor: bool = False) -> bytes:
    """Converts a SavedModel with a batch size of 1 in this process.

    Args:
      folder: folder of the SavedModel; "int8" reads examples.npz from this folder.
      quantization: one of `QUANTIZATIONS`.
      per_tensor: whether every kernel has a single scale, not one per output channel.

    Returns:
      Content of the LiteRT file.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter._experimental_disable_per_channel = per_tensor
    if quantization != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        with np.load(Path(folder) / "examples.npz") as file:
            arrays = dict(file)
        count = len(next(iter(arrays.values())))
        converter.representative_dataset = lambda: (
            {name: values[i : i + 1] for name, values in arrays.items()} for i in range(count)
        )
        # Operations without an integer kernel stay in float32.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS,
        ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # calibration uses a deprecated interpreter
        return converter.convert()
