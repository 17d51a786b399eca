"""Every private name of Keras that the trainer leans on, in one place, each with a test.

Written against Keras 3.15; setup.cfg bounds the version.
"""

import contextlib
import copy

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.variables import AutocastScope
from keras.src.backend.tensorflow.core import Variable
from keras.src.models.functional import Functional
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR


def seed_variables(model: keras.Model) -> list:
    """States of the model's seed generators: `variables` holds them, `weights` does not."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights]


@contextlib.contextmanager
def unseeded_draws(generator: keras.random.SeedGenerator):
    """Takes random numbers that are drawn without a seed inside from a generator."""
    before = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)
    try:
        yield
    finally:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, before)


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


def last_learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the rate of the last update; `optimizer.learning_rate` is that of the next."""
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = rate(max(int(optimizer.iterations.numpy()) - 1, 0))
    return float(rate.numpy() if hasattr(rate, "numpy") else rate)


def compute_once(optimizer: keras.optimizers.Optimizer) -> None:
    """Has an optimizer compute once an update what Keras computes again for each variable.

    That is the learning rate, by its schedule, and Adam's powers of its betas. Adam's and AdamW's
    steps of float32 variables are TensorFlow's `ResourceApplyAdam`: Keras' formula in one pass over
    the memory, with 1 - beta of float32's beta (1.3e-5 from Keras' in case of 0.999). See
    docs/keras3.md.
    """
    known: dict | None = None  # of the update that is being traced
    apply, learning_rate = optimizer.apply, optimizer._get_current_learning_rate

    def once(name, function):
        if known is None:
            return function()
        # Loss scaling has a graph of its own inside, where replicas take turns.
        key = name, tf.compat.v1.get_default_graph()
        if key not in known:
            known[key] = function()
        return known[key]

    def apply_once(*arguments, **names):
        nonlocal known
        known = {}
        try:
            return apply(*arguments, **names)
        finally:
            known = None

    optimizer.apply = apply_once
    optimizer._get_current_learning_rate = lambda: once("rate", learning_rate)
    adam = keras.optimizers.Adam.update_step  # AdamW's too; another class may have its own
    if type(optimizer).update_step is not adam or optimizer.amsgrad:
        return
    update_step, betas = optimizer.update_step, (optimizer.beta_1, optimizer.beta_2)

    def powers():
        count = tf.cast(optimizer.iterations + 1, tf.float32)
        return [tf.pow(tf.constant(b, tf.float32), count) for b in betas]

    def adam_step(gradient, variable, learning_rate):
        if variable.dtype != tf.float32 or not isinstance(gradient, tf.Tensor):
            update_step(gradient, variable, learning_rate)
            return
        index = optimizer._get_variable_index(variable)
        slots = optimizer._momentums[index], optimizer._velocities[index]
        first, second = once("powers", powers)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=slots[0].value.handle, v=slots[1].value.handle,
            beta1_power=first, beta2_power=second, lr=tf.cast(learning_rate, tf.float32),
            beta1=betas[0], beta2=betas[1], epsilon=optimizer.epsilon,
            grad=tf.cast(gradient, tf.float32),
        )  # fmt: skip

    optimizer.update_step = adam_step


def needs_unbuilt_fit(model: keras.Model) -> None:
    """Keeps `fit` from running a symbolic batch through a model that is built already."""
    model._maybe_symbolic_build = lambda iterator=None, data_batch=None: None


def all_layers(model: keras.Model) -> list:
    """Returns the model and every layer inside it, at any depth."""
    return list(model._flatten_layers())


def has_batch_statistics(layer: keras.layers.Layer) -> bool:
    """Whether a layer that learns has variables of its own that no optimizer moves.

    They are what it keeps of the batches that it sees, such as moving statistics.
    """
    return layer.trainable and any(
        v.dtype != "uint32"
        for v in layer._non_trainable_variables  # the states of seeds
    )


def child_layers(layer: keras.layers.Layer) -> list:
    """Returns the layers that are directly inside a layer."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def add_layer(layer: keras.layers.Layer, name: str, part: keras.layers.Layer) -> None:
    """Makes a layer a part of a built one, its weights among the other's and in its file."""
    layer._tracker.unlock()
    setattr(layer, name, part)
    layer._tracker.lock()


def in_training() -> bool:
    """Whether the layer call that runs now is one of training."""
    context = global_state.get_global_attribute("current_call_ctx")
    return bool(context is not None and context.get_value("training"))


def call_of_now():
    """Returns a context manager in which layers are called as they are now: in training, say."""
    now = copy.copy(global_state.get_global_attribute("current_call_ctx"))

    @contextlib.contextmanager
    def later():
        before = global_state.get_global_attribute("current_call_ctx")
        global_state.set_global_attribute("current_call_ctx", now)
        try:
            yield
        finally:
            global_state.set_global_attribute("current_call_ctx", before)

    return later


def with_values(values: list[tuple], changing: list, function):
    """Calls a function in which variables have other values.

    Inside a stateless scope these join it for the call: a scope of their own would hide it.

    Args:
      values: `(variable, value)`.
      changing: all other variables that the function may assign to.
      function: without arguments.
    """
    scope = get_stateless_scope()
    if scope is None:
        with keras.StatelessScope(values) as scope:
            outputs = function()
        given = {id(variable) for variable, _ in values}
        for variable in changing:
            value = scope.get_current_value(variable)
            if value is not None and id(variable) not in given:
                variable.assign(value)
        return outputs
    before = {id(variable): scope.state_mapping.get(id(variable)) for variable, _ in values}
    for update in values:
        scope.add_update(update)
    try:
        return function()
    finally:
        for key, value in before.items():
            if value is None:
                del scope.state_mapping[key]
            else:
                scope.state_mapping[key] = value


def as_stored() -> AutocastScope:
    """While it lasts variables are read as they are stored, whatever a layer computes in."""
    return AutocastScope(None)


def layers_before(layer: keras.layers.Layer) -> list:
    """Returns the layers whose outputs a layer takes, in all graphs of Functional models."""
    return [node.operation for one in layer._inbound_nodes for node in one.parent_nodes]


def layers_after(layer: keras.layers.Layer) -> list:
    """Returns the layers that take a layer's outputs, in all graphs of Functional models."""
    return [node.operation for node in layer._outbound_nodes]


def input_layers(model: keras.Model) -> list:
    """Returns what stands for a Functional model's own inputs in its graph."""
    return [tensor._keras_history.operation for tensor in getattr(model, "inputs", None) or ()]


def final_layers(model: keras.Model) -> list:
    """Returns the layers that give a graph's outputs."""
    return [tensor._keras_history.operation for tensor in model.outputs]


def connections(model: keras.Model) -> list[tuple]:
    """Returns `(layer, tensors that it takes, layers they come from)` of a graph's every call."""
    graph = getattr(model, "_functional", model)  # that of a Sequential
    return [
        (node.operation, node.input_tensors, [one.operation for one in node.parent_nodes])
        for nodes in graph._nodes_by_depth.values()
        for node in nodes
    ]


def is_graph(model: keras.Model) -> bool:
    """Whether a model is a graph of layers, which can be cloned; not a class of its own."""
    return isinstance(model, (keras.Sequential, Functional))


def forget_uninitialized() -> None:
    """Takes variables that were made without values off Keras' list of those to fill later."""
    global_state.set_global_attribute("uninitialized_variables", [])


@contextlib.contextmanager
def variables_without_values():
    """Variables that are made inside have shapes, types and places, but no values.

    Their memory is asked for and never written, which takes none of the machine's. All of one shape
    and type share it, so that a model of any size can be traced; nothing may be run on them.
    """
    shared, usual = {}, Variable._initialize_with_initializer

    def initialize(variable, initializer):
        key = tuple(variable._shape), variable._dtype
        if key not in shared:
            shared[key] = tf.raw_ops.Empty(shape=key[0], dtype=key[1], init=False)
        variable._initialize(shared[key])

    Variable._initialize_with_initializer = initialize
    try:
        yield
    finally:
        Variable._initialize_with_initializer = usual


def mend_tf2onnx() -> None:
    """Gives tf2onnx the names of NumPy that it uses and that NumPy 2 lacks."""
    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    patch_tf2onnx()


def set_calibrated(layer: keras.layers.Dense, form: str, rounded, group: int) -> None:
    """Replaces the kernel of a layer, after `layer.quantize(form)`, by 4-bit integers.

    Args:
      layer: of Keras.
      form: "gptq" or "awq".
      rounded: a `trainers.compress.int4.Rounded`, of the transposed kernel.
      group: number of inputs that share a scale.
    """
    del layer._kernel
    packed, *_ = keras.quantizers.pack_int4(rounded.integers, axis=0, dtype="uint8")
    layer.quantized_kernel.assign(packed)
    layer.kernel_scale.assign(rounded.scale)
    layer.kernel_zero.assign(rounded.zero)
    layer.g_idx.assign(np.arange(rounded.integers.shape[1]) // group)
    if form == "awq":
        layer.awq_scales.assign(rounded.channels)
    setattr(layer, f"is_{form}_calibrated", True)
    layer.quantization_config = None  # the type of the layer says it all
    save_zero_points(layer)


def save_zero_points(layer: keras.layers.Layer) -> None:
    """Has a layer that GPTQ or AWQ rounded save all that it loads.

    Keras 3.15.1 leaves `kernel_zero` out, after which the file cannot be loaded.
    """
    layer._get_kernel_with_merged_lora = lambda: (None, None, layer.kernel_zero)
