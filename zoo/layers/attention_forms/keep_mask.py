"""Dropout masks that depend only on a seed, so that a gradient can compute a mask again."""

import math

import keras
from keras import ops


class FixedSeed(keras.random.SeedGenerator):
    """Passes a given seed tensor to the functions of `keras.random`, which take no tensors."""

    def __init__(self, seed):  # no variables, unlike the base class
        self._value = seed

    def next(self, ordered=True):
        return self._value


def keep_mask(shape, rate, seed, dtype, part=0):
    """Returns a mask to multiply by: 0 with probability `rate`, else 1 / (1 - rate).

    With a static shape, one random byte decides per element, as in `zoo.layers.dropout.Dropout`,
    and the rate is rounded to a multiple of 1/256; the scale uses the rounded rate, so that the
    mean of the mask is 1.

    Args:
      shape: sizes, integers or scalar tensors.
      rate: in (0, 1).
      seed: (2,) integers, as from `keras.random.SeedGenerator.next()`.
      dtype: dtype of the mask.
      part: integer, or int32 scalar tensor; masks of different parts are independent.

    Returns:
      The mask; equal arguments give equal masks.
    """
    # A large odd factor, because consecutive calls of a seed generator differ by 1.
    seed = ops.cast(seed, "int32") + ops.stack([ops.cast(part, "int32") * -1640531535, 0])
    generator, threshold = FixedSeed(seed), max(1, round(256 * rate))
    if threshold > 255 or not all(isinstance(size, int) for size in shape):
        # Keras cannot view integers as bytes if a size is unknown.
        kept = keras.random.uniform(shape, dtype="float32", seed=generator) >= rate
        return ops.cast(kept, dtype) * ops.cast(1 / (1 - rate), dtype)
    count = math.prod(shape)
    words = keras.random.randint(
        ((count + 3) // 4,), -(2**31), 2**31 - 1, dtype="int32", seed=generator
    )
    random_bytes = ops.reshape(ops.view(words, "uint8"), (-1,))[:count]
    kept = ops.cast(ops.reshape(random_bytes, shape) >= threshold, dtype)
    return kept * ops.cast(256 / (256 - threshold), dtype)


def check_dropout(rate, seed):
    """Raises a ValueError unless `rate` is in [0, 1) and a positive rate has a seed."""
    if not 0 <= rate < 1:
        raise ValueError(f"rate must be in [0, 1). Received: rate={rate}")
    if rate and seed is None:
        raise ValueError(f"seed must be given with dropout. Received: rate={rate}, seed=None")
