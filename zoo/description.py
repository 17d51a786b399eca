"""Describes the layers, parameters, FLOPs and memory of a model without allocating its weights."""

import dataclasses
import math
from collections.abc import Mapping

import keras

from zoo import registry
from zoo.errors import UsageError
from zoo.keras_internals import all_layers, forget_uninitialized
from zoo.models.inputs import sequence_length


@dataclasses.dataclass(frozen=True)
class Layer:
    """Name, class, output shape (without the batch) and number of parameters of a layer."""

    name: str
    kind: str
    shape: tuple
    parameters: int


@dataclasses.dataclass(frozen=True)
class Description:
    """Description of a model.

    Attributes:
      active: number of parameters that process a token: without the experts that are not chosen.
      positions: maximum sequence length of a model with inputs of variable length; else None.
      flops: floating-point operations of a forward pass on one sample; a multiply-add counts as 2.
      memory: bytes of training in float32 at `batch_size`: weights, gradients, two optimizer slots
        per trainable weight, and the outputs of all layers. Temporary memory of operations is not
        included.
    """

    name: str
    task: str
    paper: str
    licence: str
    layers: tuple[Layer, ...]
    parameters: int
    trainable: int
    active: int
    positions: int | None
    flops: int
    batch_size: int
    memory: int


def describe_model(name: str, batch_size: int = 1, **overrides) -> Description:
    """Describes a model; see `zoo.describe`."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UsageError(f"batch_size must be an integer >= 1. Received: {batch_size!r}.")
    row = registry.entry(name)
    model = build_abstract(name, **overrides)
    positions, lengths = None, {}
    if any(None in tensor.shape[1:] for tensor in model.inputs):
        configured_length = {**registry.arguments(name), **overrides}.get("sequence_length")
        positions = sequence_length(model) or configured_length or 1
        # BERT's head computes only the masked positions, 15 % of all.
        lengths = {i.name: positions for i in model.inputs}
        if "masked" in lengths:
            lengths["masked"] = math.ceil(0.15 * positions)
    layers, outputs = [], 0
    for layer in model.layers:
        shapes = _shapes(layer)
        outputs += sum(math.prod(d or positions for d in shape[1:]) for shape in shapes)
        shape = shapes[0][1:] if len(shapes) == 1 else tuple(s[1:] for s in shapes)
        layers.append(Layer(layer.name, type(layer).__name__, tuple(shape), layer.count_params()))
    trainable = sum(math.prod(v.shape) for v in model.trainable_weights)
    parameters = model.count_params()
    unused = sum(getattr(layer, "inactive_parameters", 0) for layer in all_layers(model))
    active = parameters - unused
    memory = 4 * (parameters + 3 * trainable + batch_size * outputs)
    return Description(
        name, row.task, row.paper, row.licence, tuple(layers), parameters, trainable, active,
        positions, forward_flops(model, lengths or None), batch_size, memory,
    )  # fmt: skip


def build_abstract(name: str, **overrides) -> keras.Model:
    """Builds a model whose variables have shapes but no values."""
    try:
        with keras.StatelessScope(initialize_variables=False):
            return registry.build(name, **overrides)
    finally:
        forget_uninitialized()  # otherwise the end of the next scope initializes them


def forward_flops(model: keras.Model, length: int | Mapping[str, int] | None = None) -> int:
    """Counts the floating-point operations of a forward pass on one sample.

    TensorFlow's profiler counts the traced graph: matrix products and convolutions exactly, most
    pointwise operations too.

    Args:
      model: a Functional model.
      length: size of the variable axes, of all inputs or by input name.
    """
    import tensorflow as tf
    from tensorflow.python.profiler import model_analyzer, option_builder

    if not isinstance(length, Mapping):
        length = {tensor.name: length for tensor in model.inputs}
    longest = max(n or 1 for n in length.values())
    if longest > 1 and any(isinstance(layer, keras.layers.RNN) for layer in model.layers):
        # The profiler counts the body of a loop once; the FLOPs of an RNN grow linearly.
        return longest * forward_flops(model, 1)

    def tensors(specs, leading_axes=()):
        return [tf.TensorSpec((*leading_axes, *(d or 1 for d in s.shape)), s.dtype) for s in specs]

    weights = model.variables
    inputs = [
        tf.TensorSpec((1, *(d or length[i.name] for d in i.shape[1:])), i.dtype)
        for i in model.inputs
    ]

    def forward(values, arguments):
        pairs = list(zip(weights, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs, initialize_variables=False):
            if isinstance(model, keras.Sequential):
                structure = arguments[0]
            else:
                structure = keras.tree.pack_sequence_as(model._inputs_struct, arguments)
            return model(structure, training=False)

    function = tf.function(forward, autograph=False)
    graph = function.get_concrete_function(tensors(weights), inputs).graph
    options = option_builder.ProfileOptionBuilder(
        option_builder.ProfileOptionBuilder.float_operation()
    )
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")  # the profiler calls deprecated functions of TensorFlow
    try:
        profile = model_analyzer.profile(graph, options=options.with_empty_output().build())
    finally:
        logger.setLevel(level)
    return profile.total_float_ops


def _shapes(layer) -> list[tuple]:
    return [tuple(tensor.shape) for tensor in keras.tree.flatten(layer.output)]
