"""Quantization-aware training (Jacob et al. 2018, arXiv:1712.05877) by TF-MOT's quantizers.

The forward pass rounds kernels and outputs to the 8-bit grid of their range; gradients pass
through. The scheme is TF-MOT's default for 8 bits: a range per channel for kernels of 2-D
convolutions, a range per tensor otherwise. Ranges of outputs are moving averages, those of network
inputs cover all values. Token models have a range per tensor everywhere, as in their LiteRT file
(`trainers.export.litert.needs_single_scale`). Moving averages are bias-corrected as in Adam;
TF-MOT starts at -6 and 6, which hardly changes in 20 updates.

Layers are changed in place, at any depth, so that a model keeps its names and its file. Keras loads
the .keras file without rounding, `zoo.saved.model.open_model` with rounding.

Ranges depend on the rows of a forward pass, like the statistics of batch normalization, so
micro-batches and replicas change the result slightly. Padding rows are ignored (`zoo.rows`).
"""

import contextlib
import math
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers

import zoo.rows
from zoo import keras_internals
from zoo.errors import UsageError
from zoo.layers.backbone import Backbone
from zoo.layers.tfmot import engines

RANGES = "quantization_ranges"  # name of the sublayer with the ranges of a layer
_PER_CHANNEL = (layers.Conv2D, layers.DepthwiseConv2D)
_RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
_TOKENS = (layers.Embedding, *_RECURRENT)
_KERNELS = (
    *_PER_CHANNEL, layers.Conv1D, layers.Conv3D, layers.Conv2DTranspose, layers.Dense,
    layers.EinsumDense, layers.Embedding, *_RECURRENT,
)  # fmt: skip
_WITHOUT_KERNEL = (
    layers.Add, layers.Concatenate, layers.AveragePooling1D, layers.AveragePooling2D,
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D,
    layers.BatchNormalization, layers.ReLU, layers.LeakyReLU, layers.Activation,
)  # fmt: skip
_FOLDED = (layers.BatchNormalization, layers.ReLU, layers.Activation)  # into the layer before
_BEFORE = ("softmax", "sigmoid", "tanh", "gelu")  # activations with rounded inputs
_AFTER_TOO = ("gelu",)  # and with rounded outputs, as all others


def quantize(model: keras.Model, decay: float = 0.99) -> list[str]:
    """Makes a built model simulate 8-bit inference. Call it inside the strategy's scope.

    Frozen layers are not rounded, nor is a `Backbone` with a frozen layer, nor layers without
    weights after it: no training pass would determine their ranges.

    Args:
      model: changed in place; the ranges become non-trainable weights.
      decay: decay of the moving averages of output ranges, in (0, 1); TF-MOT has 0.999.

    Returns:
      The names of the rounded layers.

    Raises:
      UsageError: if there is no supported trainable layer.
    """
    in_inference = {
        id(layer)
        for base in keras_internals.all_layers(model)
        if isinstance(base, Backbone) and not all(layer.trainable for layer in base.layers)
        for layer in keras_internals.all_layers(base)
    }
    selected_layers = [
        layer
        for layer in keras_internals.all_layers(model)
        if _is_supported(layer) and id(layer) not in in_inference
    ]
    if not any(isinstance(layer, _KERNELS) for layer in selected_layers):
        raise UsageError(
            f"No quantizable trainable layer in model {model.name!r}. Supported layers: Dense, "
            "EinsumDense, convolutions, recurrent layers and embeddings."
        )
    inputs = _input_layers(model)
    per_channel = () if any(isinstance(x, _TOKENS) for x in selected_layers) else _PER_CHANNEL
    for layer in selected_layers:
        layer.call = _Rounding(layer, inputs, decay, isinstance(layer, per_channel))
    return [layer.name for layer in selected_layers]


def is_quantized(model: keras.Model) -> bool:
    """Returns whether `quantize` has changed a model."""
    return bool(_quantized_layers(model))


def is_token_model(model: keras.Model) -> bool:
    """Returns whether a quantized model has embeddings or recurrent layers.

    Much of such a model (norms, attention, cells) is not rounded.
    """
    return any(isinstance(x, _TOKENS) for x in _quantized_layers(model))


@contextlib.contextmanager
def rounded_kernels(model: keras.Model):
    """Rounds the kernels of a quantized model and disables all other rounding inside the context.

    For runtimes with 8-bit kernels and floating-point computation.
    """
    quantized_layers = _quantized_layers(model)
    roundings = [layer.call for layer in quantized_layers]
    before = [[v.numpy() for v, *_ in rounding.kernels] for rounding in roundings]
    for layer, rounding in zip(quantized_layers, roundings, strict=True):
        for variable, quantizer, ranges in rounding.kernels:
            variable.assign(_apply(quantizer, variable.value, False, ranges))
        layer.call = rounding.original_call
    try:
        yield
    finally:
        for layer, rounding, values in zip(quantized_layers, roundings, before, strict=True):
            layer.call = rounding
            for (variable, *_), value in zip(rounding.kernels, values, strict=True):
                variable.assign(value)


def update_kernel_ranges(model: keras.Model) -> None:
    """Recomputes the ranges of kernels, after weights were put into a model from outside."""
    for layer in _quantized_layers(model):
        layer.call.update_kernel_ranges()


def _quantized_layers(model) -> list:
    return [x for x in keras_internals.all_layers(model) if isinstance(x.call, _Rounding)]


def _is_supported(layer) -> bool:
    if isinstance(layer, _KERNELS):
        return bool(layer.trainable_variables)
    if not isinstance(layer, _WITHOUT_KERNEL) or (
        layer.variables and not layer.trainable_variables
    ):
        return False
    if not keras_internals.layers_before(layer):
        return False  # called inside another layer, so its neighbors are unknown
    if not _has_trainable_ancestor(layer):
        return False
    return not isinstance(layer, layers.Activation) or layer.activation.__name__ != "linear"


def _input_layers(model) -> list:
    """Returns the input layers of a model, and of nested models before any trainable layer.

    So a model has the same ranges with and without its preprocessing.
    """
    inputs = keras_internals.input_layers(model)
    for layer in getattr(model, "layers", ()):
        sources = keras_internals.layers_before(layer)
        if isinstance(layer, keras.Model) and not any(map(_has_trainable_ancestor, sources)):
            inputs += _input_layers(layer)
    return inputs


def _has_trainable_ancestor(layer) -> bool:
    """Returns whether a layer, or any layer before it in the graph, has trainable weights."""
    visited, pending = set(), [layer]
    while pending:
        ancestor = pending.pop()
        if id(ancestor) not in visited:
            visited.add(id(ancestor))
            if getattr(ancestor, "trainable_variables", None):
                return True
            pending += keras_internals.layers_before(ancestor)
    return False


class _Rounding:
    """Replaces the `call` of a layer: quantizers around the original call."""

    def __init__(self, layer, inputs: list, decay: float, per_channel: bool):
        tfmot = engines()
        self.layer = layer
        self._training = False
        name = f"{layer.path or layer.name}_ranges".replace("/", "_")  # "" if it has no weights
        self._ranges = layers.Layer(name=name, dtype="float32")
        weights = _Weights(self._ranges)
        self.kernels: list[tuple] = []
        for part, variable in kernels_of(layer):
            if per_channel:
                quantizer = tfmot.default_8bit_quantizers.Default8BitConvWeightsQuantizer()
            elif isinstance(layer, layers.Conv2DTranspose):
                quantizer = tfmot.default_8bit_quantizers.Default8BitConvTransposeWeightsQuantizer()
            else:
                quantizer = tfmot.quantizers.LastValueQuantizer(
                    8, per_axis=False, symmetric=True, narrow_range=True
                )
            ranges = quantizer.build(variable.shape, part, weights)
            self.kernels.append((variable, quantizer, ranges))

        def activity(kind, part):
            quantizer = kind(8, per_axis=False, symmetric=False, narrow_range=False)
            ranges = quantizer.build(None, part, weights)
            return lambda x: _apply(quantizer, x, self._training, ranges)

        all_values = _all_values(tfmot)
        moving = _moving_average(tfmot, decay)
        self.input = None
        sources = keras_internals.layers_before(layer)
        if any(x in inputs for x in sources) and _accepts_floats(layer):
            self.input = activity(all_values, "input")
        self.before = self.after = None
        is_folded = any(isinstance(x, _FOLDED) for x in keras_internals.layers_after(layer))
        if not isinstance(layer, (*_RECURRENT, layers.Embedding)) and not is_folded:
            activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
            if activation in _BEFORE:
                self.before = activity(moving, "before_activation")
            if activation not in _BEFORE or activation in _AFTER_TOO:
                self.after = activity(moving, "output")
        self._ranges.build(())
        keras_internals.add_layer(layer, RANGES, self._ranges)
        self.original_call = layer.call

    def update_kernel_ranges(self) -> None:
        """Sets the ranges of the kernels by their current values."""
        for variable, quantizer, ranges in self.kernels:
            _apply(quantizer, variable.value, True, ranges)

    def __call__(self, inputs, *args, **kwargs):
        self._training = keras_internals.in_training()
        if self.input is not None:
            inputs = self.input(inputs)
        with keras_internals.without_autocast():  # the exported file rounds float32, not bfloat16
            rounded = [
                (variable, _apply(quantizer, variable.value, self._training, ranges))
                for variable, quantizer, ranges in self.kernels
            ]
        activation = getattr(self.layer, "activation", None)
        if self.before is not None:
            self.layer.activation = lambda x: activation(self.before(x))
        try:
            outputs = keras_internals.call_with_values(
                rounded, self.layer.variables, lambda: self.original_call(inputs, *args, **kwargs)
            )
        finally:
            if self.before is not None:
                self.layer.activation = activation
        return outputs if self.after is None else self.after(outputs)


def _accepts_floats(layer) -> bool:
    tensors = keras.tree.flatten(layer.input)
    return len(tensors) == 1 and keras.backend.is_float_dtype(tensors[0].dtype)


def kernels_of(layer) -> list[tuple]:
    """Returns `(name, variable)` of the kernels of a layer; [] for unsupported layers."""
    if isinstance(layer, _RECURRENT):
        return [(name, getattr(layer.cell, name)) for name in ("kernel", "recurrent_kernel")]
    if isinstance(layer, layers.Embedding):
        names = ["embeddings"]
        if not getattr(layer, "tie_weights", True):
            names.append("reverse_embeddings")
        return [(name, getattr(layer, name)) for name in names]
    return [("kernel", layer.kernel)] if isinstance(layer, _KERNELS) else []


def _apply(quantizer, x, training: bool, ranges: dict):
    """Rounds in float32, whatever the compute dtype of the layer."""
    return tf.cast(quantizer(tf.cast(x, tf.float32), training, ranges), x.dtype)


class _Weights:
    """Adapts `add_weight` of a Keras 3 layer to the calls of TF-MOT's quantizers."""

    def __init__(self, ranges):
        self._ranges = ranges

    def add_weight(self, name, initializer, trainable, shape=()):
        shape = () if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
        return _Range(
            self._ranges.add_weight(
                shape=shape, initializer=keras.initializers.Constant(float(initializer.value)),
                trainable=trainable, autocast=False, aggregation="mean", name=name,
            )
        )  # fmt: skip


class _Range:
    """Adapts a Keras variable to the TensorFlow variable that TF-MOT's quantizers expect.

    Assignments go through Keras, so that a stateless scope can record them.
    """

    def __init__(self, variable):
        self.variable = variable

    def get_shape(self):
        """Returns the static shape."""
        return tf.TensorShape(self.variable.shape)

    def assign(self, value, name=None):
        """Assigns and returns the value, without a gradient."""
        value = tf.stop_gradient(value)
        self.variable.assign(value)
        return value

    def __tf_tensor__(self, dtype=None, name=None):
        return tf.convert_to_tensor(self.variable.value, dtype, name=name)


def _min_max(inputs) -> tuple:
    """Returns the minimum and maximum over real rows; the range always includes 0."""
    weights = zoo.rows.row_weights(inputs)
    if weights is None:
        ends = tf.reduce_min(inputs), tf.reduce_max(inputs)
    else:  # reduces each row first, so that masking is cheap
        inside = list(range(1, len(inputs.shape)))
        real = weights > 0
        ends = (
            tf.reduce_min(tf.where(real, tf.reduce_min(inputs, inside), 0.0)),
            tf.reduce_max(tf.where(real, tf.reduce_max(inputs, inside), 0.0)),
        )
    return tf.minimum(ends[0], 0.0), tf.maximum(ends[1], 0.0)


def _all_values(tfmot) -> Callable:
    class AllValues(tfmot.quantizers.AllValuesQuantizer):
        """TF-MOT's quantizer without padding rows."""

        def __call__(self, inputs, training, weights, **kwargs):
            ends = weights["min_var"], weights["max_var"]
            if training:
                minimum, maximum = _min_max(inputs)
                ends = (
                    ends[0].assign(tf.minimum(tf.convert_to_tensor(ends[0]), minimum)),
                    ends[1].assign(tf.maximum(tf.convert_to_tensor(ends[1]), maximum)),
                )
            return tf.quantization.fake_quant_with_min_max_vars(
                inputs, *ends, num_bits=self.num_bits, narrow_range=self.narrow_range
            )

    return AllValues


def _moving_average(tfmot, decay: float) -> Callable:
    class MovingAverage(tfmot.quantizers.MovingAverageQuantizer):
        """TF-MOT's quantizer with bias correction (Kingma and Ba 2015, section 3).

        TF-MOT merges replicas inside the forward pass. Here each replica updates its own ranges,
        and the train step averages them.
        """

        def build(self, tensor_shape, name, layer):
            zero = keras.initializers.Constant(0.0)
            updates = layer.add_weight(f"{name}_updates", initializer=zero, trainable=False)
            return {**super().build(tensor_shape, name, layer), "updates": updates}

        def __call__(self, inputs, training, weights, **kwargs):
            ends = weights["min_var"], weights["max_var"]
            if training:
                updates = weights["updates"]
                updates = updates.assign(tf.convert_to_tensor(updates) + 1.0)
                # (1 - decay) / (1 - decay ** updates): 1 at the first update.
                rate = (1.0 - decay) / -tf.math.expm1(math.log(decay) * updates)
                ends = [
                    self._move(*pair, tf.minimum(rate, 1.0))
                    for pair in zip(ends, _min_max(inputs), strict=True)
                ]
            return tf.quantization.fake_quant_with_min_max_vars(
                inputs, *ends, num_bits=self.num_bits, narrow_range=self.narrow_range
            )

        @staticmethod
        def _move(end, value, rate):
            before = tf.convert_to_tensor(end)
            return end.assign(before - (before - value) * rate)

    return MovingAverage
