"""All uses of private names of Keras, each with a test.

Written for Keras 3.15; setup.cfg bounds the version.
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
    """Returns the states of a model's seed generators: its variables that are not weights."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights]


@contextlib.contextmanager
def use_global_seed(generator: keras.random.SeedGenerator):
    """Sets the seed generator of random functions that are called without a seed."""
    before = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, generator)
    try:
        yield
    finally:
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, before)


def disable_all_reduce(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes `optimizer.apply` expect gradients that are summed over the replicas already.

    Keras clips the gradient of each replica before the sum, which does not clip the sum.
    """
    optimizer._all_reduce_sum_gradients = list


def averaged_weights(optimizer: keras.optimizers.Optimizer) -> list:
    """Returns the optimizer's moving averages, in the order of the trainable variables."""
    return list(optimizer._model_variables_moving_average)


def variable_index(optimizer: keras.optimizers.Optimizer, variable) -> int:
    """Returns the index of a variable, or of its value, among the optimizer's variables."""
    return optimizer._get_variable_index(variable)


def last_learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the learning rate of the last update; `optimizer.learning_rate` is the next one."""
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        rate = rate(max(int(optimizer.iterations.numpy()) - 1, 0))
    return float(rate.numpy() if hasattr(rate, "numpy") else rate)


def cache_update_values(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes an optimizer compute the learning rate and the powers of betas once per update.

    Keras computes both for each variable. Adam and AdamW update float32 variables by TensorFlow's
    `ResourceApplyAdam`: the formula of Keras in one pass over the memory, with 1 - beta in float32
    (relative difference 1.3e-5 for beta 0.999). See docs/keras3.md.
    """
    cache: dict | None = None  # of the update that is being traced
    apply, learning_rate = optimizer.apply, optimizer._get_current_learning_rate

    def cached(name, function):
        if cache is None:
            return function()
        # Loss scaling applies updates in a graph of its own.
        key = name, tf.compat.v1.get_default_graph()
        if key not in cache:
            cache[key] = function()
        return cache[key]

    def cached_apply(*arguments, **names):
        nonlocal cache
        cache = {}
        try:
            return apply(*arguments, **names)
        finally:
            cache = None

    optimizer.apply = cached_apply
    optimizer._get_current_learning_rate = lambda: cached("rate", learning_rate)
    adam = keras.optimizers.Adam.update_step  # also of AdamW; a subclass may override it
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
        first, second = cached("powers", powers)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle, m=slots[0].value.handle, v=slots[1].value.handle,
            beta1_power=first, beta2_power=second, lr=tf.cast(learning_rate, tf.float32),
            beta1=betas[0], beta2=betas[1], epsilon=optimizer.epsilon,
            grad=tf.cast(gradient, tf.float32),
        )  # fmt: skip

    optimizer.update_step = adam_step


def skip_symbolic_build(model: keras.Model) -> None:
    """Prevents `fit` from calling a built model with a symbolic batch."""
    model._maybe_symbolic_build = lambda iterator=None, data_batch=None: None


def all_layers(model: keras.Model) -> list:
    """Returns the model and every layer inside it, at any depth."""
    return list(model._flatten_layers())


def has_batch_statistics(layer: keras.layers.Layer) -> bool:
    """Returns whether a trainable layer has non-trainable variables, such as moving statistics.

    A layer whose state changes only between forward passes declares `state_changes_in_forward`.
    """
    changes = layer.trainable and getattr(layer, "state_changes_in_forward", True)
    return changes and any(
        v.dtype != "uint32"  # states of seed generators
        for v in layer._non_trainable_variables
    )


def child_layers(layer: keras.layers.Layer) -> list:
    """Returns the layers that are directly inside a layer."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def add_layer(layer: keras.layers.Layer, name: str, part: keras.layers.Layer) -> None:
    """Adds a sublayer to a built layer, so that its weights are tracked and saved."""
    layer._tracker.unlock()
    setattr(layer, name, part)
    layer._tracker.lock()


def remove_layer(layer: keras.layers.Layer, name: str) -> keras.layers.Layer:
    """Removes and returns a sublayer that `add_layer` added."""
    part = getattr(layer, name)
    layer._tracker.unlock()
    layer._tracker.untrack(part)
    delattr(layer, name)
    layer._tracker.lock()
    return part


def release_kernel(dense: keras.layers.Dense) -> None:
    """Removes the kernel of a built layer, and with it the memory of its values."""
    del dense._kernel  # unlike an assignment, also removes TensorFlow's references
    dense._kernel = None


def set_kernel(dense: keras.layers.Dense, value: np.ndarray) -> None:
    """Gives a layer a new kernel after `release_kernel`."""
    dense._tracker.unlock()
    dense._kernel = keras.Variable(value, dtype=dense.variable_dtype, name="kernel")
    dense._tracker.lock()


def in_training() -> bool:
    """Returns whether the current layer call has `training=True`."""
    context = global_state.get_global_attribute("current_call_ctx")
    return bool(context is not None and context.get_value("training"))


def capture_call_context():
    """Returns a context manager that restores the current call context, such as `training`."""
    call_context = copy.copy(global_state.get_global_attribute("current_call_ctx"))

    @contextlib.contextmanager
    def restore():
        before = global_state.get_global_attribute("current_call_ctx")
        global_state.set_global_attribute("current_call_ctx", call_context)
        try:
            yield
        finally:
            global_state.set_global_attribute("current_call_ctx", before)

    return restore


@contextlib.contextmanager
def without_updates():
    """Returns a context after which the current stateless scope forgets what it has recorded."""
    scope = get_stateless_scope()
    before = None if scope is None else dict(scope.state_mapping)
    try:
        yield
    finally:
        if scope is not None:
            scope.state_mapping.clear()
            scope.state_mapping.update(before)


def call_with_values(values: list[tuple], changing: list, function):
    """Calls a function while variables have other values.

    Inside a stateless scope, the values are added to that scope for the call, because a nested
    scope would hide it.

    Args:
      values: pairs `(variable, value)`.
      changing: all other variables that the function may assign.
      function: called without arguments.
    """
    scope = get_stateless_scope()
    if scope is None:
        with keras.StatelessScope(values) as scope:
            outputs = function()
        variable_ids = {id(variable) for variable, _ in values}
        for variable in changing:
            value = scope.get_current_value(variable)
            if value is not None and id(variable) not in variable_ids:
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


def without_autocast() -> AutocastScope:
    """Returns a context in which variables are read in their own dtype, not the compute dtype."""
    return AutocastScope(None)


def layers_before(layer: keras.layers.Layer) -> list:
    """Returns the layers that produce a layer's inputs, in all graphs of Functional models."""
    return [
        node.operation
        for inbound_node in layer._inbound_nodes
        for node in inbound_node.parent_nodes
    ]


def layers_after(layer: keras.layers.Layer) -> list:
    """Returns the layers that consume a layer's outputs, in all graphs of Functional models."""
    return [node.operation for node in layer._outbound_nodes]


def input_layers(model: keras.Model) -> list:
    """Returns the layers that produce the inputs of a Functional model; [] for other models."""
    return [tensor._keras_history.operation for tensor in getattr(model, "inputs", None) or ()]


def output_layers(model: keras.Model) -> list:
    """Returns the layers that produce the outputs of a Functional model."""
    return [tensor._keras_history.operation for tensor in model.outputs]


def connections(model: keras.Model) -> list[tuple]:
    """Returns `(layer, input tensors, producing layers)` of every layer call in a model's graph."""
    graph = getattr(model, "_functional", model)  # of a Sequential
    return [
        (node.operation, node.input_tensors, [parent.operation for parent in node.parent_nodes])
        for nodes in graph._nodes_by_depth.values()
        for node in nodes
    ]


def origin(tensor) -> tuple:
    """Returns the layer that gave a tensor of a graph, and the tensors that it took for it."""
    layer, node, _ = tensor._keras_history
    return layer, layer._inbound_nodes[node].input_tensors


def input_path(tensor) -> list[tuple]:
    """Returns `(layer, its inputs)` of the layers on the path of first inputs to a tensor."""
    steps = []
    while True:
        steps.append(origin(tensor))
        if not steps[-1][1]:
            return steps[::-1]
        tensor = steps[-1][1][0]


def is_graph(model: keras.Model) -> bool:
    """Returns whether a model is Functional or Sequential, not a subclass with its own `call`."""
    return isinstance(model, (keras.Sequential, Functional))


def forget_uninitialized() -> None:
    """Clears Keras' list of variables without values that it would initialize later."""
    global_state.set_global_attribute("uninitialized_variables", [])


@contextlib.contextmanager
def variables_without_values():
    """Creates variables with shape, dtype and device, but without values, inside the context.

    Their memory is allocated but never written, so it takes no physical memory. Variables of equal
    shape and dtype share it, so a model of any size can be traced; no computation may use them.
    """
    shared_values, original = {}, Variable._initialize_with_initializer

    def initialize(variable, initializer):
        key = tuple(variable._shape), variable._dtype
        if key not in shared_values:
            shared_values[key] = tf.raw_ops.Empty(shape=key[0], dtype=key[1], init=False)
        variable._initialize(shared_values[key])

    Variable._initialize_with_initializer = initialize
    try:
        yield
    finally:
        Variable._initialize_with_initializer = original


def patch_tf2onnx() -> None:
    """Adds names of NumPy 1 that tf2onnx uses and NumPy 2 lacks."""
    from keras.src.export import tf2onnx_lib

    tf2onnx_lib.patch_tf2onnx()


def assign_int4_kernel(layer: keras.layers.Dense, form: str, rounded, group: int) -> None:
    """Replaces the kernel of a layer by 4-bit integers, after `layer.quantize(form)`.

    Args:
      layer: a Dense layer of Keras.
      form: "gptq" or "awq".
      rounded: `trainers.compress_jobs.int4.Int4Matrix` of the transposed kernel.
      group: number of inputs per scale.
    """
    del layer._kernel
    packed_kernel, *_ = keras.quantizers.pack_int4(rounded.integers, axis=0, dtype="uint8")
    layer.quantized_kernel.assign(packed_kernel)
    layer.kernel_scale.assign(rounded.scale)
    layer.kernel_zero.assign(rounded.zero)
    layer.g_idx.assign(np.arange(rounded.integers.shape[1]) // group)
    if form == "awq":
        layer.awq_scales.assign(rounded.channels)
    setattr(layer, f"is_{form}_calibrated", True)
    layer.quantization_config = None  # the dtype policy is enough for loading
    save_zero_points(layer)


def save_zero_points(layer: keras.layers.Layer) -> None:
    """Makes a layer quantized by GPTQ or AWQ save `kernel_zero`.

    Keras 3.15.1 does not save it, so the file could not be loaded.
    """
    layer._get_kernel_with_merged_lora = lambda: (None, None, layer.kernel_zero)
