"""A trained model as a file for other runtimes, checked in that runtime before it counts.

`export_workdir` does the work in a process of its own: a conversion that fails can take the
interpreter with it. What is exported computes in float32, takes what the data hold (bytes of
pictures, token numbers), and is written with a description beside it, `OUT.json`. Of a work
directory of `zoo compress ptq` the file that it holds is given as it is, in the file's own format.
"""

import contextlib
import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainers.workdir import (
    FLOATS,
    LITERT,
    data_section,
    is_litert,
    model_path,
    open_model,
    read_config,
)
from zoo import processes
from zoo.data.disk import atomic, atomic_path, read_bytes, write_json
from zoo.errors import RunError, UsageError, short

# Format -> ending of its name ("" for a folder), and the packages besides TensorFlow.
FORMATS = {
    "saved_model": ("", ()),
    "litert": (".tflite", ("ai_edge_litert",)),
    "onnx": (".onnx", ("tf2onnx", "onnxruntime")),
    "keras": (".keras", ()),
}
TOLERANCE = 1e-3  # of the largest output: another order of additions
TOLERANCE_ROUNDED = 0.1  # where layers round to 8 bits: a sum beside an edge falls to either side
_EXAMPLES = 8


def export_workdir(
    workdir: str, form: str, out: str, checkpoint: str = "final", modules: Sequence[str] = ()
) -> dict:
    """Exports a work directory's model; loads no TensorFlow of its own.

    Args:
      workdir: of `zoo train`.
      form: a key of `FORMATS`.
      out: what is made: a folder for saved_model, else a file of the format's ending.
      checkpoint: "final" or "best".
      modules: of the user, that register what the model is made of.

    Returns:
      What is written to `OUT.json`: inputs, outputs, labels, bytes, the largest difference from the
      Keras model on the examples, and which these were.

    Raises:
      UsageError: where `out` is there already or has another ending, or a package is missing.
      RunError: where the conversion fails, or its result computes something else; nothing is left.
    """
    ending, packages = FORMATS[form]
    path = Path(out)
    if ending and path.suffix != ending:
        raise UsageError(f"A file of the format {form} ends in {ending}. Received: {out}.")
    for place in (path, _beside(path)):
        if place.exists():
            raise UsageError(f"{place} is there already: delete it or name another --out.")
    if lacking := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"The format {form} takes the package {lacking[0]}: pip install 'keras-zoo[export]'."
        )
    saved = read_config(workdir)
    if is_litert(saved) and checkpoint == "final":
        if form != "litert":
            raise UsageError(
                f"{workdir} holds a LiteRT file ({_rounded(saved)}), of which nothing else can be "
                f"made: --format=litert gives it. Received: --format={form}; that takes the work "
                "directory that `zoo compress ptq` started from."
            )
    else:
        model_path(workdir, checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as made:
        done = processes.run("trainers.export:main", workdir, form, str(made), checkpoint, *modules)
        if done.returncode < 0:
            raise RunError(f"The conversion to {form} was ended by signal {-done.returncode}.")
        if done.returncode:
            words = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise RunError(f"The conversion to {form} failed: {short(words)}")
        found = json.loads(done.stdout.splitlines()[-1])
    write_json(_beside(path), found)
    return found


def _rounded(saved: Mapping) -> str:
    """The format of `zoo compress ptq` that a work directory has; "" for none."""
    return saved["config"].get("compress", {}).get("ptq", {}).get("format", "")


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def main(workdir: str, form: str, out: str, checkpoint: str, *modules: str) -> None:
    """Exports and checks; prints the description as the last line."""
    try:
        print(json.dumps(_export(workdir, form, out, checkpoint, modules)))
    except Exception as error:  # converters raise what they like, often over many lines
        kind = "" if isinstance(error, (UsageError, RunError)) else f"{type(error).__name__}: "
        raise SystemExit(kind + short(error)) from None


def _export(workdir, form, out, checkpoint, modules) -> dict:
    from trainers.recipe import import_user_modules
    from trainers.start import start_tensorflow
    from trainers.workdir import load_model

    start_tensorflow()
    import_user_modules(modules)
    saved = read_config(workdir)
    more = {"model": saved["config"]["model"]["name"], "labels": saved["class_names"]}
    if checkpoint == "final" and form == "keras" and _rounded(saved):
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
    import keras

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
    from trainers.compress.qat import rounds
    from trainers.litert import as_held

    served, inputs, expected = _expected(model, task, examples)
    WRITERS[form](served, out, inputs)
    got = READERS[form](out, inputs)
    # A LiteRT file of a token model holds rounded kernels alone. It does not clip outputs to the
    # ranges of training, which can be narrower than the outputs of a head that has just started.
    with as_held(served) if form == "litert" else contextlib.nullcontext():
        held = _flat(served(_arranged(served, inputs), training=False))
    worst = difference(held, got)
    if not worst <= (TOLERANCE_ROUNDED if rounds(model) else TOLERANCE):
        raise RunError(
            f"it computes something else: its outputs differ by {worst:.2g} of the largest."
        )
    return _described(form, inputs, expected, out, difference(expected, got))


def _expected(model, task, examples: Mapping) -> tuple:
    """Returns the served model in float32, its inputs by name, and its outputs."""
    served = task.served(in_float32(model))
    inputs = {tensor.name: np.asarray(examples[tensor.name]) for tensor in served.inputs}
    return served, inputs, _flat(served(_arranged(served, inputs), training=False))


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


def in_float32(model):
    """Returns a model that computes in float32 throughout, with the same weights."""
    import keras

    from trainers.compress.qat import quantize, rounds

    config = keras.saving.serialize_keras_object(model)
    text = json.dumps(config)
    if "mixed_" not in text:
        return model
    half = "bfloat16" if "mixed_bfloat16" in text else "float16"
    for policy in (f"mixed_{half}", half):  # some layers name the type that they compute in
        text = text.replace(f'"{policy}"', '"float32"')
    same = keras.saving.deserialize_keras_object(json.loads(text))
    if rounds(model):
        quantize(same)
    same.set_weights(model.get_weights())
    return same


def _examples(saved: dict, workdir: str, model):
    """Returns the task, some prepared examples, and where they are from."""
    from zoo import registry

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
    import tensorflow as tf

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


def _arranged(model, inputs: dict):
    """The inputs in the structure that a Functional model takes."""
    import keras

    return keras.tree.map_structure(lambda tensor: inputs[tensor.name], model.input)


def _flat(outputs) -> list[np.ndarray]:
    import keras

    return [np.asarray(x, np.float32) for x in keras.tree.flatten(outputs)]


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


def _function(model, inputs: dict, batch: int | None):
    """The model as a function of tensors by name, and their specifications."""
    import tensorflow as tf

    specs = {
        # Pictures have one size; sequences are exported at the length that was trained.
        name: tf.TensorSpec((batch, *value.shape[1:]), value.dtype, name=name)
        for name, value in inputs.items()
    }

    def serve(**tensors):
        import keras

        outputs = keras.tree.flatten(model(_arranged(model, tensors), training=False))
        return {f"output_{i}": tf.cast(x, tf.float32) for i, x in enumerate(outputs)}

    return tf.function(serve, autograph=False), specs


def write_saved_model(model, out: str, inputs: Mapping, batch: int | None = None) -> None:
    """Writes a served model with the signature `serving_default` for `batch` examples at once."""
    import tensorflow as tf

    function, specs = _function(model, inputs, batch)
    module = tf.Module()
    module.variables_ = [v.value for v in model.variables]
    module.serve = function
    signature = function.get_concrete_function(**specs)
    tf.saved_model.save(module, out, signatures={"serving_default": signature})


def _read_saved_model(out: str, inputs: dict) -> list[np.ndarray]:
    import tensorflow as tf

    serve = tf.saved_model.load(out).signatures["serving_default"]
    return _in_order(serve(**{name: tf.constant(value) for name, value in inputs.items()}))


def _write_litert(model, out: str, inputs: dict) -> None:
    """One example at a time: a loop (LSTM) needs a batch of known size."""
    from trainers.litert import convert, one_scale, prepare

    with tempfile.TemporaryDirectory() as folder:
        quantisation = prepare(model, folder, inputs)
        content = convert(folder, quantisation, one_scale(model, quantisation))
    with atomic(out) as file:
        file.write(content)


def _read_litert(out: str, inputs: dict) -> list[np.ndarray]:
    from trainers.litert import LiteRTFile

    return LiteRTFile(out)(inputs)


def _write_onnx(model, out: str, inputs: dict) -> None:
    import tensorflow as tf
    import tf2onnx

    from trainers import keras_internals

    function, specs = _function(model, inputs, None)
    names = list(specs)

    @tf.function(autograph=False, input_signature=[specs[name] for name in names])
    def positional(*tensors):
        return function(**dict(zip(names, tensors, strict=True)))

    keras_internals.mend_tf2onnx()
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
    return _in_order(dict(zip(outputs, values, strict=True)))


def _write_keras(model, out: str, inputs: dict) -> None:
    model.save(out)


def _read_keras(out: str, inputs: dict) -> list[np.ndarray]:
    from trainers.workdir import open_model

    model = open_model(out)
    return _flat(model(_arranged(model, inputs), training=False))


def _in_order(outputs: dict) -> list[np.ndarray]:
    names = sorted(outputs, key=lambda name: int(name.partition(":")[0].rpartition("_")[2]))
    return [np.asarray(outputs[name], np.float32) for name in names]


WRITERS = {
    "saved_model": write_saved_model, "litert": _write_litert, "onnx": _write_onnx,
    "keras": _write_keras,
}  # fmt: skip
READERS = {
    "saved_model": _read_saved_model, "litert": _read_litert, "onnx": _read_onnx,
    "keras": _read_keras,
}  # fmt: skip
