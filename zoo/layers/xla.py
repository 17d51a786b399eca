"""Detects XLA, and replaces an operation that needs it."""

import functools

import keras
from keras import ops


@functools.cache
def compiles() -> bool:
    """Returns whether XLA compiles for the current device.

    TensorFlow's build for TPUs does not compile for CPUs.
    """
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf  # not needed on other backends

    try:
        with tf.init_scope():  # executes eagerly, even inside the trace of a graph
            tf.function(lambda x: x + 1, jit_compile=True, autograph=False)(1.0)
    except tf.errors.OpError:
        return False
    return True


def write_rows(rows, new, first):
    """Replaces T rows of a tensor.

    Args:
      rows: (B, L, C).
      new: (B, T, C), T at most L - first.
      first: integer scalar, index of the first replaced row.
    """
    if compiles():  # Keras' slice_update needs XLA even in eager mode
        return ops.slice_update(rows, (0, first, 0), new)
    length, count = ops.shape(rows)[1], ops.shape(new)[1]
    offset = ops.arange(length) - first
    is_new = ops.logical_and(offset >= 0, offset < count)
    moved_rows = ops.take(new, ops.clip(offset, 0, count - 1), axis=1)
    return ops.where(is_new[None, :, None], moved_rows, rows)
