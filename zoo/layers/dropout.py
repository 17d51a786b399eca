"""Dropout (Srivastava et al. 2014) with one random byte per element."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("zoo")
class Dropout(keras.layers.Dropout):
    """Dropout by random bytes instead of floats, which are a quarter of the random bits.

    On a CPU, random numbers take a sixth of a small transformer's step. The rate is rounded to a
    multiple of 1/256 (0.1 becomes 0.1016), and the scale uses the rounded rate, so that the mean is
    unchanged.
    """

    def call(self, inputs, training=False):
        if not training or not self.rate:
            return inputs
        threshold, shape = max(1, round(256 * self.rate)), inputs.shape
        # Keras cannot view integers as bytes if a size is unknown.
        if None in shape or self.noise_shape is not None or threshold > 255:
            return super().call(inputs, training=training)
        count = math.prod(shape)
        words = keras.random.randint(
            ((count + 3) // 4,), -(2**31), 2**31 - 1, dtype="int32", seed=self.seed_generator
        )
        random_bytes = ops.reshape(ops.view(words, "uint8"), (-1,))[:count]
        mask = ops.cast(ops.reshape(random_bytes, shape) >= threshold, inputs.dtype)
        return inputs * (mask * ops.cast(256 / (256 - threshold), inputs.dtype))
