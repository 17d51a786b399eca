"""Gathers one entry per row of a tensor."""

from zoo.lazy import ops


def pick(x, index):
    """Returns `x[n, index[n]]` for each row n.

    `ops.take_along_axis` transposes its indices as int64, for which oneDNN has no kernel, so that
    TensorFlow logs the error "oneDNN supports DT_INT64 only on platforms with AVX-512".

    Args:
      x: (N, K, ...), K static.
      index: (N,) integers in [0, K).

    Returns:
      (N, ...).
    """
    rows = ops.arange(ops.shape(x)[0], dtype="int64") * x.shape[1]
    return ops.take(
        ops.reshape(x, (-1, *x.shape[2:])), rows + ops.cast(index, "int64"), axis=0
    )  # fmt: skip
