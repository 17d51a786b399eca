"""Every private name of Keras that the trainer leans on, in one place, each with a test.

Written against Keras 3.15; setup.cfg bounds the version.
"""

import keras
from keras.src.backend.common import global_state


def seed_variables(model: keras.Model) -> list:
    """States of the model's seed generators: `variables` holds them, `weights` does not."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights]


def switch_off_all_reduce(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes `optimizer.apply` take gradients that are summed over the replicas already.

    Keras clips each replica's gradient first and sums then, which is not clipping.
    """
    optimizer._all_reduce_sum_gradients = list


def averaged_weights(optimizer: keras.optimizers.Optimizer) -> list:
    """Returns the optimizer's moving averages, in the order of the trainable variables."""
    return list(optimizer._model_variables_moving_average)


def variable_index(optimizer: keras.optimizers.Optimizer, variable) -> int:
    """Returns the place, among those it was built with, of what `update_step` is given."""
    return optimizer._get_variable_index(variable)


def needs_unbuilt_fit(model: keras.Model) -> None:
    """Keeps `fit` from running a symbolic batch through a model that is built already."""
    model._maybe_symbolic_build = lambda iterator=None, data_batch=None: None


def all_layers(model: keras.Model) -> list:
    """Returns the model and every layer inside it, at any depth."""
    return list(model._flatten_layers())


def child_layers(layer: keras.layers.Layer) -> list:
    """Returns the layers that are directly inside a layer."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def forget_uninitialized() -> None:
    """Takes variables that were made without values off Keras' list of those to fill later."""
    global_state.set_global_attribute("uninitialized_variables", [])


def mend_tf2onnx() -> None:
    """Gives tf2onnx the names of NumPy that it uses and that NumPy 2 lacks."""
    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    patch_tf2onnx()


def save_zero_points(layer: keras.layers.Layer) -> None:
    """Has a layer that GPTQ or AWQ rounded save all that it loads.

    Keras 3.15.1 leaves `kernel_zero` out, after which the file cannot be loaded.
    """
    layer._get_kernel_with_merged_lora = lambda: (None, None, layer.kernel_zero)
