"""A frozen kernel in 8 or 4 bits (Dettmers et al. 2023, QLoRA, arXiv:2305.14314).

int8 has one scale per output, int4 one per output and group of 64 inputs, with evenly spaced levels
(the paper's NF4 spaces them by quantiles). The kernel is dequantized for each product and again for
its gradient, so only one float kernel exists at a time.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

_LARGEST = {"int8": 127, "int4": 7}
_GROUP = 64  # inputs per scale of int4


class QuantizedKernel(layers.Layer):
    """A kernel (inputs, outputs) as integers with scales. Its weights are never trained.

    Args:
      shape: shape of the kernel.
      base: "int8" or "int4".
    """

    def __init__(self, shape, base: str, **kwargs):
        super().__init__(trainable=False, **kwargs)
        self.shape, self.base = tuple(shape), base
        inputs = self.shape[0]
        self._group = inputs if base == "int8" else min(_GROUP, inputs + inputs % 2)
        self._groups = -(-inputs // self._group)

    def build(self, shape=None):
        rows = self._groups * self._group // (1 if self.base == "int8" else 2)
        self.integers = self.add_weight(
            shape=(rows, self.shape[1]), dtype="int8", initializer="zeros", trainable=False,
            name="integers",
        )  # fmt: skip
        self.scales = self.add_weight(
            shape=(self._groups, 1, self.shape[1]), initializer="zeros", trainable=False,
            autocast=False, name="scales",
        )  # fmt: skip

    def set_kernel(self, kernel: np.ndarray) -> None:
        """Sets the integers and scales to the nearest levels of a kernel."""
        rows = self._groups * self._group
        kernel = np.pad(kernel.astype("float32"), ((0, rows - len(kernel)), (0, 0)))
        grouped = kernel.reshape(self._groups, self._group, -1)
        scales = np.abs(grouped).max(1, keepdims=True) / _LARGEST[self.base]
        integers = np.rint(grouped / np.where(scales, scales, 1)).astype("int8").reshape(rows, -1)
        if self.base == "int4":
            integers = keras.quantizers.pack_int4(integers, axis=0)[0]
        self.integers.assign(integers)
        self.scales.assign(scales)

    def dequantize(self):
        """Returns the kernel in float32."""
        return self._dequantize(tf.convert_to_tensor(self.integers), self.scales.value)

    def _dequantize(self, integers, scales):
        rows = self._groups * self._group
        if self.base == "int4":
            integers = keras.quantizers.unpack_int4(integers, rows, axis=0)
        grouped = ops.reshape(integers, (self._groups, self._group, self.shape[1]))
        kernel = ops.reshape(ops.cast(grouped, "float32") * scales, (rows, self.shape[1]))
        return kernel[: self.shape[0]]

    def call(self, x):
        """Returns the product of x (..., inputs) and the kernel."""
        integers, scales = tf.convert_to_tensor(self.integers), self.scales.value

        @tf.custom_gradient
        def product(x):
            kernel = ops.cast(self._dequantize(integers, scales), x.dtype)

            def gradient(upstream):
                # Without the dependency TensorFlow would keep the first kernel until here.
                with tf.control_dependencies([upstream]):
                    again = self._dequantize(tf.identity(integers), tf.identity(scales))
                return ops.matmul(upstream, ops.transpose(ops.cast(again, upstream.dtype)))

            return ops.matmul(x, kernel), gradient

        return product(x)
