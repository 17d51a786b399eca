"""Writes models in each export format, reads the files in their runtime and compares outputs."""

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainers.config.user_code import import_user_modules
from trainers.export.export import quantized_format
from trainers.export.litert import computing_as_converted, convert, needs_single_scale, prepare
from trainers.export.litert_file import LiteRTFile
from trainers.export.saved_model import (
    flatten,
    read_saved_model,
    serving_function,
    sort_outputs,
    structure_inputs,
    write_saved_model,
)
from trainers.run.workdir import read_config
from zoo import keras_internals, registry
from zoo.errors import RunError, UsageError, short
from zoo.layers.rounding import is_quantized
from zoo.models.float32 import in_float32
from zoo.saved.model import load_model, open_model
from zoo.saved.workdir import FLOATS, LITERT, data_section, is_litert, model_path
from zoo.storage.disk import atomic, read_bytes

# Largest difference, relative to the largest output.
TOLERANCE = 1e-3  # runtimes add in different orders
TOLERANCE_ROUNDED = 0.1  # with 8-bit layers a sum may round up in one runtime and down in another
_EXAMPLES = 8


def export(workdir: str, export_format: str, out: str, checkpoint: str, *modules: str) -> dict:
    """Exports a model in this process and checks it; see `trainers.export.export`."""
    import_user_modules(modules)
    saved_config = read_config(workdir)
    metadata = {
        "model": saved_config["config"]["model"]["name"],
        "labels": saved_config["class_names"],
    }
    if checkpoint == "final" and export_format == "keras" and quantized_format(saved_config):
        return {**_copy_keras(workdir, out), **metadata}
    is_quantized = is_litert(saved_config)
    model = open_model(Path(workdir) / FLOATS) if is_quantized else load_model(workdir, checkpoint)
    task, examples, source = _examples(saved_config, workdir, model)
    if is_quantized:
        description = _copy_litert(workdir, model, task, examples, out)
    else:
        description = write_checked(model, task, examples, export_format, out)
    return {**description, **metadata, "examples": source}


def _copy(path: Path, out: str) -> None:
    with atomic(out) as file:
        file.write(read_bytes(path))


def _copy_keras(workdir, out: str) -> dict:
    """Copies the quantized Keras file of `zoo compress ptq` and describes it."""
    _copy(model_path(workdir), out)
    model = open_model(out)
    outputs = {f"output_{i}": x for i, x in enumerate(keras.tree.flatten(model.outputs))}
    signature = {
        side: {name: {"shape": [*x.shape], "dtype": x.dtype} for name, x in tensors.items()}
        for side, tensors in (("inputs", {x.name: x for x in model.inputs}), ("outputs", outputs))
    }
    source = f"none: a copy of the quantized file of {workdir}, without preprocessing"
    return {
        "format": "keras", **signature, "bytes": size_of(Path(out)), "largest_difference": 0.0,
        "examples": source,
    }  # fmt: skip


def _copy_litert(workdir, model, task, examples: Mapping, out: str) -> dict:
    """Copies the LiteRT file of `zoo compress ptq` and compares it with the float model."""
    _copy(Path(workdir) / LITERT, out)
    _, inputs, expected = _compute_expected(model, task, examples)
    max_difference = difference(expected, _read_litert(out, inputs))
    if not np.isfinite(max_difference):
        raise RunError("the outputs of the LiteRT file are not finite or have unexpected shapes.")
    return _describe("litert", inputs, expected, out, max_difference)


def write_checked(model, task, examples: Mapping, export_format: str, out: str) -> dict:
    """Writes a model in an export format, reads the file in its runtime, and compares the outputs.

    Args:
      model: trained model.
      task: task that the model was trained on.
      examples: name -> (B, …): inputs of the model that `Task.serving_model` returns.
      export_format: key of `FORMATS`.
      out: path of the result.

    Returns:
      Dict with format, inputs, outputs, bytes and largest_difference.

    Raises:
      RunError: if the exported model computes different outputs.
    """
    serving_model, inputs, expected = _compute_expected(model, task, examples)
    WRITERS[export_format](serving_model, out, inputs)
    outputs = READERS[export_format](out, inputs)
    # For a token model trained in 8 bits, a LiteRT file has only the rounded kernels. The file does
    # not clip outputs to the trained ranges, which a head can exceed early in training.
    with (
        computing_as_converted(serving_model)
        if export_format == "litert"
        else contextlib.nullcontext()
    ):
        converted_outputs = flatten(
            serving_model(structure_inputs(serving_model, inputs), training=False)
        )
    max_difference = difference(converted_outputs, outputs)
    if not max_difference <= (TOLERANCE_ROUNDED if is_quantized(model) else TOLERANCE):
        raise RunError(
            f"the outputs of the exported model differ by {max_difference:.2g} of the largest "
            "output."
        )
    return _describe(export_format, inputs, expected, out, difference(expected, outputs))


def _compute_expected(model, task, examples: Mapping) -> tuple:
    """Returns the serving model in float32, its inputs by name, and its outputs."""
    serving_model = task.serving_model(in_float32(model))
    inputs = {tensor.name: np.asarray(examples[tensor.name]) for tensor in serving_model.inputs}
    return (
        serving_model,
        inputs,
        flatten(serving_model(structure_inputs(serving_model, inputs), training=False)),
    )


def _describe(
    export_format, inputs: Mapping, expected: Sequence, out: str, max_difference: float
) -> dict:
    outputs = {f"output_{i}": x for i, x in enumerate(expected)}
    rows = 1 if export_format == "litert" else None  # a LiteRT file takes one example at a time
    signature = {
        side: {k: {"shape": [rows, *x.shape[1:]], "dtype": str(x.dtype)} for k, x in arrays.items()}
        for side, arrays in (("inputs", inputs), ("outputs", outputs))
    }
    size = size_of(Path(out))
    return {
        "format": export_format,
        **signature,
        "bytes": size,
        "largest_difference": max_difference,
    }


def _examples(saved_config: dict, workdir: str, model):
    """Returns the task, some prepared examples, and the source of the examples."""
    task = registry.build_task(**saved_config["config"]["task"])
    data = data_section(workdir, saved_config)
    try:
        dataset = registry.load_data(data, saved_config["config"]["task"])
        task.bind(model, dataset, saved_config["config"]["model"])
        split = next(s for s in ("test", "validation", "train") if s in dataset.splits)
        task.check(model, dataset)
        arrays, source = dataset.splits[split], f"{dataset.name}, split {split!r}"
    except (UsageError, RunError) as error:
        task.bind(model)
        arrays = task.synthetic(model, _EXAMPLES, 0)
        source = f"synthetic, because the data are missing: {short(error)}"
    return task, examples_of(task, arrays), source


def examples_of(task, arrays: Mapping, indices: Sequence[int] = range(_EXAMPLES)) -> dict:
    """Returns the examples at these indices as inputs of the result of `Task.serving_model`."""
    size = len(next(iter(arrays.values())))
    indices = np.array([index for index in indices if index < size])
    batch = {name: tf.constant(np.asarray(array[indices])) for name, array in arrays.items()}
    count = len(next(iter(batch.values())))
    batch["weight"] = tf.ones(count)

    def uniform(number):
        return tf.random.stateless_uniform((count, number), (0, 0))

    prepared_batch = task.prepare(dict(batch), uniform, False)
    if "image" in batch:  # the exported model takes the uint8 image
        prepared_batch["image"] = batch["image"]
    return prepared_batch


def difference(expected: list[np.ndarray], outputs: list[np.ndarray]) -> float:
    """Returns the largest difference, relative to the largest value of each expected output.

    The difference is infinite if a shape differs or a value is NaN.
    """
    if [x.shape for x in expected] != [x.shape for x in outputs]:
        return float("inf")
    pairs = zip(expected, outputs, strict=True)
    differences = [np.abs(a - b).max() / max(np.abs(a).max(), 1e-6) for a, b in pairs]
    return float(np.nan_to_num(max(differences), nan=np.inf))


def size_of(path: Path) -> int:
    """Returns the size in bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")))


# --- formats --------------------------------------------------------------------------------------


def _write_litert(model, out: str, inputs: dict) -> None:
    """Writes a file for one example per call, because an LSTM needs a fixed batch size."""
    with tempfile.TemporaryDirectory() as folder:
        quantization = prepare(model, folder, inputs)
        content = convert(folder, quantization, needs_single_scale(model, quantization))
    with atomic(out) as file:
        file.write(content)


def _read_litert(out: str, inputs: dict) -> list[np.ndarray]:
    return LiteRTFile(out)(inputs)


def _write_onnx(model, out: str, inputs: dict) -> None:
    import tf2onnx

    function, specs = serving_function(model, inputs, None)
    names = list(specs)

    @tf.function(autograph=False, input_signature=[specs[name] for name in names])
    def positional(*tensors):
        return function(**dict(zip(names, tensors, strict=True)))

    keras_internals.patch_tf2onnx()
    tf2onnx.convert.from_function(
        positional, input_signature=positional.input_signature, output_path=out,
        custom_op_handlers={"Erfc": (_erfc, [])},
    )  # fmt: skip


def _erfc(graph, node, name, arguments):
    """Converts erfc, which the exact GELU uses and ONNX lacks, to 1 - erf."""
    shape, kind = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0])
    one = graph.make_const(f"{name}_one", np.float32(1))
    erf = graph.make_node("Erf", [node.input[0]])
    graph.remove_node(node.name)
    graph.make_node(
        "Sub", [one.output[0], erf.output[0]], name=name, outputs=node.output, shapes=[shape],
        dtypes=[kind],
    )  # fmt: skip


def _read_onnx(out: str, inputs: dict) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    onnx_names = {name.partition(":")[0]: name for name in names}
    outputs = [node.name for node in session.get_outputs()]
    values = session.run(outputs, {onnx_names[name]: value for name, value in inputs.items()})
    return sort_outputs(dict(zip(outputs, values, strict=True)))


def _write_keras(model, out: str, inputs: dict) -> None:
    model.save(out)


def _read_keras(out: str, inputs: dict) -> list[np.ndarray]:
    model = open_model(out)
    return flatten(model(structure_inputs(model, inputs), training=False))


WRITERS = {
    "saved_model": write_saved_model, "litert": _write_litert, "onnx": _write_onnx,
    "keras": _write_keras,
}  # fmt: skip
READERS = {
    "saved_model": read_saved_model, "litert": _read_litert, "onnx": _read_onnx,
    "keras": _read_keras,
}  # fmt: skip
