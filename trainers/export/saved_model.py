"""Writes and reads TensorFlow SavedModels; other export formats use the same helpers."""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf


def structure_inputs(model, inputs: dict):
    """Returns inputs, given by name, in the input structure of a Functional model."""
    return keras.tree.map_structure(lambda tensor: inputs[tensor.name], model.input)


def flatten(outputs) -> list[np.ndarray]:
    """Returns the outputs of a model as a flat list of float32 arrays."""
    return [np.asarray(x, np.float32) for x in keras.tree.flatten(outputs)]


def serving_function(model, inputs: dict, batch: int | None):
    """Returns a model as a `tf.function` of named tensors, and name -> `tf.TensorSpec`."""
    specs = {
        # Images have a fixed size; sequences are exported with the length of the training data.
        name: tf.TensorSpec((batch, *value.shape[1:]), value.dtype, name=name)
        for name, value in inputs.items()
    }

    def serve(**tensors):
        outputs = keras.tree.flatten(model(structure_inputs(model, tensors), training=False))
        return {f"output_{i}": tf.cast(x, tf.float32) for i, x in enumerate(outputs)}

    return tf.function(serve, autograph=False), specs


def write_saved_model(model, out: str, inputs: Mapping, batch: int | None = None) -> None:
    """Writes a serving model with the signature `serving_default` for `batch` examples per call."""
    function, specs = serving_function(model, inputs, batch)
    module = tf.Module()
    module.variables_ = [v.value for v in model.variables]
    module.serve = function
    signature = function.get_concrete_function(**specs)
    tf.saved_model.save(module, out, signatures={"serving_default": signature})


def read_saved_model(out: str, inputs: dict) -> list[np.ndarray]:
    """Returns the outputs of a SavedModel for named inputs."""
    serve = tf.saved_model.load(out).signatures["serving_default"]
    return sort_outputs(serve(**{name: tf.constant(value) for name, value in inputs.items()}))


def sort_outputs(outputs: dict) -> list[np.ndarray]:
    """Returns the outputs `output_0`, `output_1`, … as a list of float32 arrays."""
    names = sorted(outputs, key=lambda name: int(name.partition(":")[0].rpartition("_")[2]))
    return [np.asarray(outputs[name], np.float32) for name in names]
