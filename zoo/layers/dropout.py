"""Dropout (Srivastava et al. 2014) from one random byte an element."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("zoo")
class Dropout(keras.layers.Dropout):
    """Keras' Dropout, with the random numbers it needs and no more.

    Whether an element is dropped is decided by a byte in place of a float: a quarter of the random
    numbers, which on a CPU are a sixth of a small transformer's step. The rate is rounded to a
    multiple of 1/256 (0.1 becomes 0.1016), and what is kept is scaled by the rounded rate, so that
    the mean stays exactly what it was.
    """

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        threshold, shape = max(1, round(256 * self.rate)), inputs.shape
        # Keras cannot view words as bytes where it knows no size.
        if None in shape or self.noise_shape is not None or threshold > 255:
            return super().call(inputs, training=training)
        count = math.prod(shape)
        words = keras.random.randint(
            ((count + 3) // 4,), -(2**31), 2**31 - 1, dtype="int32", seed=self.seed_generator
        )
        drawn = ops.reshape(ops.view(words, "uint8"), (-1,))[:count]
        kept = ops.cast(ops.reshape(drawn, shape) >= threshold, inputs.dtype)
        return inputs * (kept * ops.cast(256 / (256 - threshold), inputs.dtype))
