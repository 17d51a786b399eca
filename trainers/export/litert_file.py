"""Runs LiteRT files, alone or in place of their Keras model; does not import TensorFlow."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zoo.errors import RunError, UsageError, short
from zoo.quiet import quiet_stderr
from zoo.storage.disk import open_file

NO_RUNTIME = "LiteRT requires the package ai_edge_litert: pip install 'keras-zoo[export]'"


def has_integer_tensors(path: str | Path) -> bool:
    """Returns whether any tensor of a file is stored as 8-bit integers; needs the runtime."""
    from ai_edge_litert.interpreter import Interpreter

    with quiet_stderr():
        tensors = Interpreter(model_path=str(path)).get_tensor_details()
    return any(tensor["dtype"] == np.int8 for tensor in tensors)


class LiteRTFile:
    """A LiteRT file, opened in its runtime.

    Args:
      path: path of the file.
      threads: number of threads per call.

    Raises:
      UsageError: if the runtime is not installed.
      RunError: if the file cannot be opened.
    """

    def __init__(self, path: str | Path, threads: int = 1):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise UsageError(f"{path} cannot be run: {NO_RUNTIME}.") from None
        open_file(path).close()  # LiteRT would block on a named pipe
        try:
            with quiet_stderr():  # LiteRT logs that it uses its CPU kernels
                self.interpreter = Interpreter(model_path=str(path), num_threads=threads)
                self.interpreter.allocate_tensors()
            self._run = self.interpreter.get_signature_runner("serving_default")
        except (ValueError, RuntimeError) as error:
            raise RunError(f"Cannot open {path}: {short(error)}") from None
        self.inputs = {
            name: (tuple(detail["shape"][1:].tolist()), np.dtype(detail["dtype"]))
            for name, detail in self._run.get_input_details().items()
        }

    def run_example(self, inputs: Mapping) -> list[np.ndarray]:
        """Returns the outputs, each (1, …), for one example: input name -> (1, …)."""
        outputs = self._run(**inputs)
        names = sorted(outputs, key=lambda name: int(name.rpartition("_")[2]))
        return [np.asarray(outputs[name], np.float32) for name in names]

    def __call__(self, inputs: Mapping) -> list[np.ndarray]:
        """Returns the outputs, each (N, …), for N examples, which run one by one."""
        count = len(next(iter(inputs.values())))
        rows = [
            self.run_example({k: v[i : i + 1] for k, v in inputs.items()}) for i in range(count)
        ]
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


class FileModel:
    """A LiteRT file with the interface of the Keras model that it was converted from.

    Calls run the file; all other attributes come from the Keras model. If only a part of the model
    was exported, such as the generator of a GAN, calls of that part run the file.

    Args:
      path: path of the file.
      model: the Keras model that the file was converted from.
      serving_model: the model that `Task.serving_model` returns for `model`.
    """

    def __init__(self, path: str | Path, model, serving_model):
        self._path, self._model, self._serving_model = path, model, serving_model
        self._file = LiteRTFile(path)

    def __getattr__(self, name: str):
        value = getattr(self._model, name)
        return FileModel(self._path, value, value) if value is self._serving_model else value

    def __call__(self, inputs, training: bool = False):
        import keras
        import tensorflow as tf

        inputs_by_name = (
            inputs if isinstance(inputs, Mapping) else {self._serving_model.inputs[0].name: inputs}
        )
        names = list(self._file.inputs)

        def run(*arrays):
            pairs = zip(names, arrays, strict=True)
            return self._file({name: self._convert_input(name, array) for name, array in pairs})

        flat = keras.tree.flatten(self._serving_model.output)
        outputs = tf.numpy_function(
            run, [inputs_by_name[name] for name in names], [tf.float32] * len(flat), stateful=False
        )
        for output, expected in zip(outputs, flat, strict=True):
            output.set_shape([None, *expected.shape[1:]])
        return keras.tree.pack_sequence_as(self._serving_model.output, outputs)

    def _convert_input(self, name: str, values: np.ndarray) -> np.ndarray:
        shape, dtype = self._file.inputs[name]
        if values.shape[1:] != shape:
            raise RunError(
                f"{self._path} requires {name!r} of shape {shape}. Received: {values.shape[1:]}."
            )
        if dtype == np.uint8 and values.dtype.kind == "f":  # `Task.prepare` scaled values to [0, 1]
            values = np.round(values * 255)
        return values.astype(dtype)
