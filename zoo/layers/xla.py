"""Whether XLA is there, and what does without it."""

import functools

import keras
from keras import ops


@functools.cache
def compiles() -> bool:
    """Whether XLA compiles for this process's devices: TensorFlow's build for TPUs has no CPUs."""
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf  # not for models on another backend

    try:
        with tf.init_scope():  # run now, though a graph may be in the making
            tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(1.0)
    except tf.errors.OpError:
        return False
    return True


def write_rows(rows, new, first):
    """Returns rows with some of them replaced.

    Args:
      rows: (B, L, C).
      new: (B, T, C), T at most L - first.
      first: integer scalar, the place of the first of them.
    """
    if compiles():  # Keras' is an operation of XLA even where nothing is compiled
        return ops.slice_update(rows, (0, first, 0), new)
    length, count = ops.shape(rows)[1], ops.shape(new)[1]
    place = ops.arange(length) - first
    there = ops.logical_and(place >= 0, place < count)
    moved = ops.take(new, ops.clip(place, 0, count - 1), axis=1)
    return ops.where(there[None, :, None], moved, rows)
