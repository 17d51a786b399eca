"""Quantisation-aware training (Jacob et al. 2018, arXiv:1712.05877) by TF-MOT's quantizers.

In a forward pass kernels and outputs are rounded to the 8-bit grid of their range; gradients pass
through. The scheme is TF-MOT's default for 8 bits: kernels of two-dimensional convolutions have a
range a channel, all else one a tensor; outputs a moving average, the input of a network all that
was seen. Models of tokens have a range a tensor throughout, as in their LiteRT file
(`trainers.export.litert.one_scale`). The moving average is corrected for its start as Adam's
moments are: TF-MOT's begins at -6 and 6, which 20 updates hardly change.

Layers are changed in place, at any depth, so that a model keeps its names and its file: opened by
Keras alone a .keras file holds the trained weights without their rounding; the zoo opens it with it
(`zoo.saved.model.open_model`).

What is seen in training decides the ranges, as it decides batch normalisation's: rows that are
computed together have one. Micro-batches and replicas therefore change the result a little. Rows
that pad a batch are not seen (`zoo.rows`).
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

RANGES = "quantization_ranges"  # a layer inside each layer that rounds
_PER_CHANNEL = (layers.Conv2D, layers.DepthwiseConv2D)
_RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
_TOKENS = (layers.Embedding, *_RECURRENT)
_KERNELS = (
    *_PER_CHANNEL, layers.Conv1D, layers.Conv3D, layers.Conv2DTranspose, layers.Dense,
    layers.EinsumDense, layers.Embedding, *_RECURRENT,
)  # fmt: skip
_ALONE = (
    layers.Add, layers.Concatenate, layers.AveragePooling1D, layers.AveragePooling2D,
    layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D,
    layers.BatchNormalization, layers.ReLU, layers.LeakyReLU, layers.Activation,
)  # fmt: skip
_FOLDED = (layers.BatchNormalization, layers.ReLU, layers.Activation)  # into what stands before
_BEFORE = ("softmax", "sigmoid", "tanh", "gelu")  # these are rounded before they are applied …
_AFTER_TOO = ("gelu",)  # … and all others after


def quantize(model: keras.Model, decay: float = 0.99) -> list[str]:
    """Makes a built model compute as it will in 8 bits; inside the strategy's scope.

    Args:
      model: changed in place; its ranges become weights of it that are not trained.
      decay: of the moving average of outputs' ranges, in (0, 1); TF-MOT has 0.999.

    Returns:
      The names of the layers that round now. Layers that learn nothing stay as they are, and so
      does a base of which any part is frozen, and what stands behind it without weights: they
      never see a training pass that could find their ranges.

    Raises:
      UsageError: where there is no such layer.
    """
    as_in_inference = {
        id(layer)
        for base in keras_internals.all_layers(model)
        if isinstance(base, Backbone) and not all(layer.trainable for layer in base.layers)
        for layer in keras_internals.all_layers(base)
    }
    chosen = [
        layer
        for layer in keras_internals.all_layers(model)
        if _rounds(layer) and id(layer) not in as_in_inference
    ]
    if not any(isinstance(layer, _KERNELS) for layer in chosen):
        raise UsageError(
            "Quantisation knows Dense, EinsumDense, convolutions, recurrent layers and embeddings. "
            f"The model {model.name!r} trains none."
        )
    inputs = _entries(model)
    per_channel = () if any(isinstance(x, _TOKENS) for x in chosen) else _PER_CHANNEL
    for layer in chosen:
        layer.call = _Rounding(layer, inputs, decay, isinstance(layer, per_channel))
    return [layer.name for layer in chosen]


def rounds(model: keras.Model) -> bool:
    """Whether `quantize` has changed a model."""
    return bool(_changed(model))


def of_tokens(model: keras.Model) -> bool:
    """Whether much of a model (norms, attention, cells) lies between the layers that round."""
    return any(isinstance(x, _TOKENS) for x in _changed(model))


@contextlib.contextmanager
def rounded_once(model: keras.Model):
    """Rounds a model's kernels and lets its layers compute as they did before `quantize`.

    For runtimes that keep kernels in 8 bits and compute in floating point; undone at the end.
    """
    changed = _changed(model)
    roundings = [layer.call for layer in changed]
    before = [[v.numpy() for v, *_ in rounding.kernels] for rounding in roundings]
    for layer, rounding in zip(changed, roundings, strict=True):
        for variable, quantizer, ranges in rounding.kernels:
            variable.assign(_apply(quantizer, variable.value, False, ranges))
        layer.call = rounding.plain
    try:
        yield
    finally:
        for layer, rounding, values in zip(changed, roundings, before, strict=True):
            layer.call = rounding
            for (variable, *_), value in zip(rounding.kernels, values, strict=True):
                variable.assign(value)


class FreshRanges:
    """Keeps the ranges of kernels those of the weights that are in a model."""

    variables = ()

    def __init__(self, model: keras.Model):
        self._model = model

    def update(self) -> None:
        """Training finds them."""

    def restore(self) -> None:
        """After other weights were put into the model: averages, or those of the start."""
        for layer in _changed(self._model):
            layer.call.look_at_kernels()

    begin = restore


def _changed(model) -> list:
    return [x for x in keras_internals.all_layers(model) if isinstance(x.call, _Rounding)]


def _rounds(layer) -> bool:
    if isinstance(layer, _KERNELS):
        return bool(layer.trainable_variables)
    if not isinstance(layer, _ALONE) or (layer.variables and not layer.trainable_variables):
        return False
    if not keras_internals.layers_before(layer):
        return False  # called by another layer's code, where what is around it is not known
    if not _learns_up_to(layer):
        return False
    return not isinstance(layer, layers.Activation) or layer.activation.__name__ != "linear"


def _entries(model) -> list:
    """What stands for a model's inputs, also inside models that take them before anything learns.

    So a model has the same ranges by itself as with its preprocessing around it.
    """
    found = keras_internals.input_layers(model)
    for layer in getattr(model, "layers", ()):
        sources = keras_internals.layers_before(layer)
        if isinstance(layer, keras.Model) and not any(map(_learns_up_to, sources)):
            found += _entries(layer)
    return found


def _learns_up_to(layer) -> bool:
    """Whether anything in a graph up to a layer, this included, has weights that learn."""
    seen, waiting = set(), [layer]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            if getattr(one, "trainable_variables", None):
                return True
            waiting += keras_internals.layers_before(one)
    return False


class _Rounding:
    """What a layer's `call` becomes: the call it had, between quantizers."""

    def __init__(self, layer, inputs: list, decay: float, per_channel: bool):
        tfmot = engines()
        self.layer = layer
        self._training = False
        name = f"{layer.path or layer.name}_ranges".replace("/", "_")  # no weights, no path
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

        of_all = _all_values(tfmot)
        moving = _moving_average(tfmot, decay)
        self.input = None
        sources = keras_internals.layers_before(layer)
        if any(x in inputs for x in sources) and _takes_numbers(layer):
            self.input = activity(of_all, "input")
        self.before = self.after = None
        folded = any(isinstance(x, _FOLDED) for x in keras_internals.layers_after(layer))
        if not isinstance(layer, (*_RECURRENT, layers.Embedding)) and not folded:
            activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
            if activation in _BEFORE:
                self.before = activity(moving, "before_activation")
            if activation not in _BEFORE or activation in _AFTER_TOO:
                self.after = activity(moving, "output")
        self._ranges.build(())
        keras_internals.add_layer(layer, RANGES, self._ranges)
        self.plain = layer.call

    def look_at_kernels(self) -> None:
        """Makes the kernels' ranges those of their values now."""
        for variable, quantizer, ranges in self.kernels:
            _apply(quantizer, variable.value, True, ranges)

    def __call__(self, inputs, *args, **kwargs):
        self._training = keras_internals.in_training()
        if self.input is not None:
            inputs = self.input(inputs)
        with keras_internals.as_stored():  # the file holds what becomes of float32, not of bfloat16
            rounded = [
                (variable, _apply(quantizer, variable.value, self._training, ranges))
                for variable, quantizer, ranges in self.kernels
            ]
        activation = getattr(self.layer, "activation", None)
        if self.before is not None:
            self.layer.activation = lambda x: activation(self.before(x))
        try:
            outputs = keras_internals.with_values(
                rounded, self.layer.variables, lambda: self.plain(inputs, *args, **kwargs)
            )
        finally:
            if self.before is not None:
                self.layer.activation = activation
        return outputs if self.after is None else self.after(outputs)


def _takes_numbers(layer) -> bool:
    tensors = keras.tree.flatten(layer.input)
    return len(tensors) == 1 and keras.backend.is_float_dtype(tensors[0].dtype)


def kernels_of(layer) -> list[tuple]:
    """Returns `(name, variable)` of the kernels of a layer, none where it is of no known kind."""
    if isinstance(layer, _RECURRENT):
        return [(name, getattr(layer.cell, name)) for name in ("kernel", "recurrent_kernel")]
    if isinstance(layer, layers.Embedding):
        names = ["embeddings"]
        if not getattr(layer, "tie_weights", True):
            names.append("reverse_embeddings")
        return [(name, getattr(layer, name)) for name in names]
    return [("kernel", layer.kernel)] if isinstance(layer, _KERNELS) else []


def _apply(quantizer, x, training: bool, ranges: dict):
    """Rounds in float32, whatever the layer computes in."""
    return tf.cast(quantizer(tf.cast(x, tf.float32), training, ranges), x.dtype)


class _Weights:
    """`add_weight` as TF-MOT's quantizers call it, for a layer of Keras 3."""

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
    """A Keras variable as TF-MOT's quantizers use one of TensorFlow.

    What they assign goes through Keras, so that inside a train step it is noted, not done.
    """

    def __init__(self, variable):
        self.variable = variable

    def get_shape(self):
        """The static shape."""
        return tf.TensorShape(self.variable.shape)

    def assign(self, value, name=None):
        """Returns the value, through which no gradient flows: ranges are not learned."""
        value = tf.stop_gradient(value)
        self.variable.assign(value)
        return value

    def __tf_tensor__(self, dtype=None, name=None):
        return tf.convert_to_tensor(self.variable.value, dtype, name=name)


def _seen(inputs) -> tuple:
    """Returns the least and the greatest value of real rows, and 0 in any case between them."""
    weights = zoo.rows.row_weights(inputs)
    if weights is None:
        ends = tf.reduce_min(inputs), tf.reduce_max(inputs)
    else:  # of each row first: rows are left out of a small tensor
        inside = list(range(1, len(inputs.shape)))
        real = weights > 0
        ends = (
            tf.reduce_min(tf.where(real, tf.reduce_min(inputs, inside), 0.0)),
            tf.reduce_max(tf.where(real, tf.reduce_max(inputs, inside), 0.0)),
        )
    return tf.minimum(ends[0], 0.0), tf.maximum(ends[1], 0.0)


def _all_values(tfmot) -> Callable:
    class AllValues(tfmot.quantizers.AllValuesQuantizer):
        """TF-MOT's, of real rows."""

        def __call__(self, inputs, training, weights, **kwargs):
            ends = weights["min_var"], weights["max_var"]
            if training:
                least, greatest = _seen(inputs)
                ends = (
                    ends[0].assign(tf.minimum(tf.convert_to_tensor(ends[0]), least)),
                    ends[1].assign(tf.maximum(tf.convert_to_tensor(ends[1]), greatest)),
                )
            return tf.quantization.fake_quant_with_min_max_vars(
                inputs, *ends, num_bits=self.num_bits, narrow_range=self.narrow_range
            )

    return AllValues


def _moving_average(tfmot, decay: float) -> Callable:
    class MovingAverage(tfmot.quantizers.MovingAverageQuantizer):
        """TF-MOT's, whose assignment needs a merge of all replicas inside the forward pass.

        Here each replica moves its own, and the train step takes their mean. The number of updates
        is kept to correct the average for its start (Kingma and Ba 2015, section 3).
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
                    for pair in zip(ends, _seen(inputs), strict=True)
                ]
            return tf.quantization.fake_quant_with_min_max_vars(
                inputs, *ends, num_bits=self.num_bits, narrow_range=self.narrow_range
            )

        @staticmethod
        def _move(end, value, rate):
            before = tf.convert_to_tensor(end)
            return end.assign(before - (before - value) * rate)

    return MovingAverage
