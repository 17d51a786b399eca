"""The low-rank update of a kernel: alpha / rank * A B.

The adapter computes x A B beside the product of the frozen kernel, so the gradient of the kernel
itself, as large as the kernel, is never computed, and an update that is small beside the kernel
survives the rounding of bfloat16. A recurrent layer reads its kernels in every step of its loop;
its kernels are replaced by their sum with the update for each call instead.
"""

import math

import keras
from keras import layers, ops

from zoo import keras_internals
from zoo.layers.dropout import Dropout
from zoo.layers.low_rank import split_equation

CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
ADAPTABLE = (layers.Dense, layers.EinsumDense, *CONVOLUTIONS, *RECURRENT)


class LoraUpdate(layers.Layer):
    """A (inputs, rank) and B (rank, outputs) of one kernel; B starts at 0.

    Args:
      shape: shape of the kernel.
      input_axes: number of first axes of the kernel that are summed over.
      rank: at least 1.
      scale: alpha / rank.
      rate: dropout rate of the input.
      project: function of (x, A, B) that computes the update of the layer's output; A and B have
        the shapes (*input axes, rank) and (rank, *output axes). None for recurrent layers.
    """

    def __init__(self, shape, input_axes, rank, scale, rate=0.0, project=None, **kwargs):
        super().__init__(**kwargs)
        self.shape, self.input_axes, self.rank, self.scale = tuple(shape), input_axes, rank, scale
        self.project = project
        self.dropout = Dropout(rate, name="dropout", dtype=self.dtype_policy) if rate else None

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of inputs and outputs of the kernel as a matrix."""
        return math.prod(self.shape[: self.input_axes]), math.prod(self.shape[self.input_axes :])

    def build(self, shape=None):
        inputs, outputs = self.sizes
        self.a = self.add_weight(
            shape=(inputs, self.rank), name="a",
            initializer=keras.initializers.VarianceScaling(1.0, "fan_in", "untruncated_normal"),
        )  # fmt: skip
        self.b = self.add_weight(shape=(self.rank, outputs), initializer="zeros", name="b")

    def call(self, x):
        """Returns the update of the output of a layer with the input x (B, ...)."""
        if self.dropout is not None:
            x = self.dropout(x)
        a = ops.reshape(self.a, (*self.shape[: self.input_axes], self.rank))
        b = ops.reshape(self.b, (self.rank, *self.shape[self.input_axes :]))
        return self.project(x, a, b) * self.scale

    def product(self):
        """Returns the update of the kernel in float32, in its shape."""
        with keras_internals.without_autocast():
            return ops.reshape(self.scale * ops.matmul(self.a, self.b), self.shape)


def kernels_of(layer) -> dict[str, keras.Variable]:
    """Returns the kernels of a layer by the names of their updates; {} for unsupported layers."""
    if isinstance(layer, RECURRENT):
        return {
            "lora_update": layer.cell.kernel,
            "lora_recurrent_update": layer.cell.recurrent_kernel,
        }
    return {"lora_update": layer.kernel} if isinstance(layer, ADAPTABLE) else {}


def unsupported(layer) -> str:
    """Returns the reason why a layer of a supported class cannot have an adapter; "" if it can."""
    holder = layer.cell if isinstance(layer, RECURRENT) else layer
    for name in ("kernel_constraint", "recurrent_constraint"):
        if getattr(holder, name, None) is not None:
            return f"its {name.replace('_', ' ')} does not hold for the merged kernel"
    if getattr(layer, "groups", 1) != 1:
        return "the convolution has groups"
    if isinstance(layer, CONVOLUTIONS) and layer.data_format != "channels_last":
        return "its channels are not the last axis"
    if isinstance(layer, layers.EinsumDense):
        try:
            split_equation(layer.equation)
        except ValueError as error:
            return str(error).rstrip(".")
    return ""


def make_updates(layer, rank: int, scale: float, rate: float) -> dict[str, LoraUpdate]:
    """Returns the built updates of a layer by name; they are not part of the layer yet."""
    updates = {}
    for name, kernel in kernels_of(layer).items():
        input_axes, project = len(kernel.shape) - 1, None
        if isinstance(layer, CONVOLUTIONS):
            project = _convolve(layer)
        elif isinstance(layer, layers.EinsumDense):
            input_axes, project = _einsum(layer.equation)
        elif isinstance(layer, layers.Dense):
            project = _multiply
        updates[name] = LoraUpdate(
            kernel.shape, input_axes, rank, scale, rate, project, name=name,
            dtype=layer.dtype_policy,
        )  # fmt: skip
    return updates


def _multiply(x, a, b):
    return ops.matmul(ops.matmul(x, a), b)


def _convolve(layer):
    def project(x, a, b):
        padding = layer.padding
        if padding == "causal":
            left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
            x, padding = ops.pad(x, ((0, 0), (left, 0), (0, 0))), "valid"
        hidden = ops.conv(
            x, a, strides=list(layer.strides), padding=padding, dilation_rate=layer.dilation_rate,
            data_format=layer.data_format,
        )  # fmt: skip
        return ops.matmul(hidden, b)

    return project


def _einsum(equation: str):
    first, second = split_equation(equation)
    kernel = first.partition(",")[2].partition("->")[0]
    return len(kernel) - 1, lambda x, a, b: ops.einsum(second, ops.einsum(first, x, a), b)
