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

from zoo import processes
from zoo.data.disk import atomic, open_file
from zoo.errors import RunError, UsageError, short
from zoo.quiet import quiet_stderr

NO_RUNTIME = "it takes the package ai_edge_litert: pip install 'keras-zoo[export]'"

# How weights are kept: as they are; as float16; as int8, with what a layer is given rounded anew in
# each call; as int8 with all arithmetic in integers, by ranges seen on examples.
QUANTISATIONS = ("float32", "float16", "dynamic", "int8")


def write(
    model, inputs: Mapping, out: str | Path, quantisation: str = "float32", examples=None,
    per_tensor: bool = False,
) -> None:  # fmt: skip
    """Converts a model in a process of its own.

    Args:
      model: Functional, computing in float32; see `trainers.export.in_float32`.
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
        done = processes.run("trainers.litert:main", folder, str(out), quantisation, scales)
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
    from trainers.compress.qat import rounds
    from trainers.export import write_saved_model

    with as_held(model):
        write_saved_model(model, folder, inputs, batch=1)
    return "dynamic" if rounds(model) else "float32"


def as_held(model):
    """Returns a context in which a model computes what its LiteRT file holds; see `prepare`."""
    from trainers.compress.qat import of_tokens, rounded_once

    return rounded_once(model) if of_tokens(model) else contextlib.nullcontext()


def one_scale(model, quantisation: str) -> bool:
    """Returns whether a model's kernels need one scale each, in place of one per output channel.

    Models of tokens that learned in 8 bits do: training rounded each kernel by one scale. So do
    tied embeddings in "dynamic": the converter stores one array for the table and the kernel only
    where both have the same scales, and a table has one. In "int8" it gives the table the range of
    its outputs, so that there are two arrays in any case.
    """
    from trainers.compress.qat import of_tokens
    from trainers.keras_internals import all_layers

    tied = any(getattr(layer, "tie_weights", False) for layer in all_layers(model))
    return of_tokens(model) or (tied and quantisation == "dynamic")


_LOOP = ": it cannot calibrate recurrent layers; compress.ptq.format=litert_dynamic can"


def main(folder: str, out: str, quantisation: str, scales: str) -> None:
    """Converts a saved model; says in one line why not."""
    from trainers.start import start_tensorflow

    start_tensorflow()
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
    import tensorflow as tf

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


def holds_integers(path: str | Path) -> bool:
    """Whether any tensor of a file is kept in 8-bit integers; it takes the runtime."""
    from ai_edge_litert.interpreter import Interpreter

    with quiet_stderr():
        tensors = Interpreter(model_path=str(path)).get_tensor_details()
    return any(tensor["dtype"] == np.int8 for tensor in tensors)


class LiteRTFile:
    """A file in its own runtime.

    Args:
      path: of the file.
      threads: that it computes with.

    Raises:
      RunError: where it cannot be opened.
    """

    def __init__(self, path: str | Path, threads: int = 1):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise UsageError(f"{path} cannot be run: {NO_RUNTIME}.") from None
        open_file(path).close()  # LiteRT would wait for a named pipe
        try:
            with quiet_stderr():  # it logs that it uses its CPU kernels
                self.interpreter = Interpreter(model_path=str(path), num_threads=threads)
                self.interpreter.allocate_tensors()
            self._run = self.interpreter.get_signature_runner("serving_default")
        except (ValueError, RuntimeError) as error:
            raise RunError(f"Cannot open {path}: {short(error)}") from None
        self.inputs = {
            name: (tuple(detail["shape"][1:].tolist()), np.dtype(detail["dtype"]))
            for name, detail in self._run.get_input_details().items()
        }

    def one(self, inputs: Mapping) -> list[np.ndarray]:
        """Outputs, each with a first axis of one, of inputs that have it too."""
        found = self._run(**inputs)
        names = sorted(found, key=lambda name: int(name.rpartition("_")[2]))
        return [np.asarray(found[name], np.float32) for name in names]

    def __call__(self, inputs: Mapping) -> list[np.ndarray]:
        """Outputs of any number of examples, one after the other."""
        count = len(next(iter(inputs.values())))
        rows = [self.one({k: v[i : i + 1] for k, v in inputs.items()}) for i in range(count)]
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


class FileModel:
    """A LiteRT file that a task takes for the Keras model that it was made of.

    What is asked of it besides being called is the Keras model's. Where a part of that model was
    exported (the generator of a GAN), that part is the file.

    Args:
      path: of the file.
      model: of which the file was made.
      served: what `Task.served` makes of it.
    """

    def __init__(self, path: str | Path, model, served):
        self._path, self._model, self._served = path, model, served
        self._file = LiteRTFile(path)

    def __getattr__(self, name: str):
        value = getattr(self._model, name)
        return FileModel(self._path, value, value) if value is self._served else value

    def __call__(self, inputs, training: bool = False):
        import keras
        import tensorflow as tf

        named = inputs if isinstance(inputs, Mapping) else {self._served.inputs[0].name: inputs}
        names = list(self._file.inputs)

        def run(*arrays):
            given = dict(zip(names, arrays, strict=True))
            return self._file({name: self._fitted(name, given[name]) for name in names})

        flat = keras.tree.flatten(self._served.output)
        outputs = tf.numpy_function(
            run, [named[name] for name in names], [tf.float32] * len(flat), stateful=False
        )
        for got, expected in zip(outputs, flat, strict=True):
            got.set_shape([None, *expected.shape[1:]])
        return keras.tree.pack_sequence_as(self._served.output, outputs)

    def _fitted(self, name: str, values: np.ndarray) -> np.ndarray:
        shape, dtype = self._file.inputs[name]
        if values.shape[1:] != shape:
            raise RunError(
                f"The file takes {name!r} of shape {shape}. Received: {values.shape[1:]}."
            )
        if dtype == np.uint8 and values.dtype.kind == "f":  # `Task.prepare` made these of bytes
            values = np.round(values * 255)
        return values.astype(dtype)
