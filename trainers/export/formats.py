"""Formats of exported models: each is written, opened in its own runtime and compared."""

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from trainers.config.recipe import import_user_modules
from trainers.export.export import rounded_format
from trainers.export.litert import as_held, convert, one_scale, prepare
from trainers.export.litert_file import LiteRTFile
from trainers.export.saved_model import (
    arranged,
    flat,
    function_of,
    in_order,
    read_saved_model,
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

TOLERANCE = 1e-3  # of the largest output: another order of additions
TOLERANCE_ROUNDED = 0.1  # where layers round to 8 bits: a sum beside an edge falls to either side
_EXAMPLES = 8


def main(workdir: str, form: str, out: str, checkpoint: str, *modules: str) -> None:
    """Exports and checks; prints the description as the last line."""
    try:
        print(json.dumps(_export(workdir, form, out, checkpoint, modules)))
    except Exception as error:  # converters raise what they like, often over many lines
        kind = "" if isinstance(error, (UsageError, RunError)) else f"{type(error).__name__}: "
        raise SystemExit(kind + short(error)) from None


def _export(workdir, form, out, checkpoint, modules) -> dict:
    import_user_modules(modules)
    saved = read_config(workdir)
    more = {"model": saved["config"]["model"]["name"], "labels": saved["class_names"]}
    if checkpoint == "final" and form == "keras" and rounded_format(saved):
        return {**_held_keras(workdir, out), **more}
    held = is_litert(saved)
    model = open_model(Path(workdir) / FLOATS) if held else load_model(workdir, checkpoint)
    task, examples, source = _examples(saved, workdir, model)
    if held:
        found = _held_litert(workdir, model, task, examples, out)
    else:
        found = write_checked(model, task, examples, form, out)
    return {**found, **more, "examples": source}


def _copy(path: Path, out: str) -> None:
    with atomic(out) as file:
        file.write(read_bytes(path))


def _held_keras(workdir, out: str) -> dict:
    """Gives the Keras file of `zoo compress ptq`, and tells what it takes and gives."""
    _copy(model_path(workdir), out)
    model = open_model(out)
    outputs = {f"output_{i}": x for i, x in enumerate(_tensors(model.outputs))}
    described = {
        side: {name: {"shape": [*x.shape], "dtype": x.dtype} for name, x in found.items()}
        for side, found in (("inputs", {x.name: x for x in model.inputs}), ("outputs", outputs))
    }
    source = f"none: the file of {workdir} as it is, of the model without its preprocessing"
    return {
        "format": "keras", **described, "bytes": size_of(Path(out)), "largest_difference": 0.0,
        "examples": source,
    }  # fmt: skip


def _tensors(outputs) -> list:
    return keras.tree.flatten(outputs)


def _held_litert(workdir, model, task, examples: Mapping, out: str) -> dict:
    """Gives the LiteRT file of `zoo compress ptq`, compared with the model before rounding."""
    _copy(Path(workdir) / LITERT, out)
    _, inputs, expected = _expected(model, task, examples)
    worst = difference(expected, _read_litert(out, inputs))
    if not np.isfinite(worst):
        raise RunError("its outputs are not those of the model that it was made of.")
    return _described("litert", inputs, expected, out, worst)


def write_checked(model, task, examples: Mapping, form: str, out: str) -> dict:
    """Writes a model in a format, opens it in its runtime, and compares.

    Args:
      model: as it was trained.
      task: with what it was trained.
      examples: what `Task.served`'s inputs are, by name; (B, …).
      form: a key of `FORMATS`.
      out: where it is written.

    Returns:
      format, inputs, outputs, bytes and largest_difference.

    Raises:
      RunError: where it computes something else.
    """
    served, inputs, expected = _expected(model, task, examples)
    WRITERS[form](served, out, inputs)
    got = READERS[form](out, inputs)
    # A LiteRT file of a token model holds rounded kernels alone. It does not clip outputs to the
    # ranges of training, which can be narrower than the outputs of a head that has just started.
    with as_held(served) if form == "litert" else contextlib.nullcontext():
        held = flat(served(arranged(served, inputs), training=False))
    worst = difference(held, got)
    if not worst <= (TOLERANCE_ROUNDED if is_quantized(model) else TOLERANCE):
        raise RunError(
            f"it computes something else: its outputs differ by {worst:.2g} of the largest."
        )
    return _described(form, inputs, expected, out, difference(expected, got))


def _expected(model, task, examples: Mapping) -> tuple:
    """Returns the served model in float32, its inputs by name, and its outputs."""
    served = task.served(in_float32(model))
    inputs = {tensor.name: np.asarray(examples[tensor.name]) for tensor in served.inputs}
    return served, inputs, flat(served(arranged(served, inputs), training=False))


def _described(form: str, inputs: Mapping, expected: Sequence, out: str, worst: float) -> dict:
    outputs = {f"output_{i}": x for i, x in enumerate(expected)}
    rows = 1 if form == "litert" else None  # a LiteRT file takes one example at a time
    described = {
        side: {k: {"shape": [rows, *x.shape[1:]], "dtype": str(x.dtype)} for k, x in found.items()}
        for side, found in (("inputs", inputs), ("outputs", outputs))
    }
    return {
        "format": form, **described, "bytes": size_of(Path(out)), "largest_difference": worst
    }  # fmt: skip


def _examples(saved: dict, workdir: str, model):
    """Returns the task, some prepared examples, and where they are from."""
    arguments = dict(saved["config"]["task"])
    task = registry.build_task(arguments.pop("name"), **arguments)
    data = data_section(workdir, saved)
    try:
        dataset = registry.load_data(data, saved["config"]["task"])
        task.complete(saved["config"]["model"], dataset)
        split = next(s for s in ("test", "validation", "train") if s in dataset.splits)
        task.check(model, dataset)
        arrays, source = dataset.splits[split], f"{dataset.name}, split {split!r}"
    except (UsageError, RunError) as error:
        task.players(model)
        arrays = task.synthetic(model, _EXAMPLES, 0)
        source = f"made up, for the data are not here: {short(error)}"
    return task, examples_of(task, arrays), source


def examples_of(task, arrays: Mapping, places: Sequence[int] = range(_EXAMPLES)) -> dict:
    """Some examples of a split, as `Task.served` takes them: the first ones, if nothing is said."""
    size = len(next(iter(arrays.values())))
    places = np.array([place for place in places if place < size])
    batch = {name: tf.constant(np.asarray(array[places])) for name, array in arrays.items()}
    count = len(next(iter(batch.values())))
    batch["weight"] = tf.ones(count)

    def uniform(number):
        return tf.random.stateless_uniform((count, number), (0, 0))

    prepared = task.prepare(dict(batch), uniform, False)
    if "image" in batch:  # what is exported prepares bytes itself
        prepared["image"] = batch["image"]
    return prepared


def difference(expected: list[np.ndarray], got: list[np.ndarray]) -> float:
    """Largest difference, relative to the largest number of each output; NaN is infinite."""
    if [x.shape for x in expected] != [x.shape for x in got]:
        return float("inf")
    gaps = [
        np.abs(a - b).max() / max(np.abs(a).max(), 1e-6) for a, b in zip(expected, got, strict=True)
    ]
    return float(np.nan_to_num(max(gaps), nan=np.inf))


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")))


# --- formats --------------------------------------------------------------------------------------


def _write_litert(model, out: str, inputs: dict) -> None:
    """One example at a time: a loop (LSTM) needs a batch of known size."""
    with tempfile.TemporaryDirectory() as folder:
        quantisation = prepare(model, folder, inputs)
        content = convert(folder, quantisation, one_scale(model, quantisation))
    with atomic(out) as file:
        file.write(content)


def _read_litert(out: str, inputs: dict) -> list[np.ndarray]:
    return LiteRTFile(out)(inputs)


def _write_onnx(model, out: str, inputs: dict) -> None:
    import tf2onnx

    function, specs = function_of(model, inputs, None)
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
    """1 - erf: of the exact GELU, for which ONNX has no operation."""
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
    given = {name.partition(":")[0]: name for name in names}
    outputs = [node.name for node in session.get_outputs()]
    values = session.run(outputs, {given[name]: value for name, value in inputs.items()})
    return in_order(dict(zip(outputs, values, strict=True)))


def _write_keras(model, out: str, inputs: dict) -> None:
    model.save(out)


def _read_keras(out: str, inputs: dict) -> list[np.ndarray]:
    model = open_model(out)
    return flat(model(arranged(model, inputs), training=False))


WRITERS = {
    "saved_model": write_saved_model, "litert": _write_litert, "onnx": _write_onnx,
    "keras": _write_keras,
}  # fmt: skip
READERS = {
    "saved_model": read_saved_model, "litert": _read_litert, "onnx": _read_onnx,
    "keras": _read_keras,
}  # fmt: skip
