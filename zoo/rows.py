"""Row weights of the current batch, for layers that compute statistics over rows.

The weight is 0 for rows that pad a short batch to its static shape. The train step and the
evaluation set the weights while the network is called. Batch normalization uses them
(`trainers.train.batch_norm`), and any custom layer that mixes rows must do so too:

    class BatchMean(keras.layers.Layer):
        def call(self, x):  # (B, C)
            weights = zoo.row_weights(x)
            if weights is None:  # outside training and evaluation: no row is padding
                return x - ops.mean(x, 0)
            total = ops.sum(weights[:, None] * x, 0)
            return x - total / ops.maximum(ops.sum(weights), 1.0)

With several replicas, a layer gets the rows of its own replica.
"""

import contextlib
import threading

from zoo.errors import UsageError

_local = threading.local()  # each replica is traced in its own thread


class Rows:
    """Weights of the rows of one forward pass, and their use by layers.

    Args:
      weights: (B,) float32, 0 for padding; None if no row is padding.

    Attributes:
      read: whether a layer that mixes the rows of one replica has read the weights.
      synchronized: whether a layer that mixes the rows of all replicas has read the weights.
      penalty: factor of activity regularizers, see `trainers.train.activity`; None outside
        training.
    """

    def __init__(self, weights):
        self.weights = weights
        self.read = self.synchronized = False
        self.penalty = None


def row_weights(inputs=None):
    """Returns the weights of the rows of the current forward pass: 0 for padding, else 1.

    Args:
      inputs: (B, ...), the input of the calling layer; its number of rows is checked.

    Returns:
      (B,) float32, or None if no row is padding.

    Raises:
      UsageError: if `inputs` has another number of rows than the batch.
    """
    rows = current_rows()
    if rows is None:
        return None
    rows.read = True
    return weights_of(rows, inputs)


def current_rows() -> Rows | None:
    """Returns the `Rows` that `use_row_weights` has set in this thread, or None."""
    return getattr(_local, "rows", None)


def weights_of(rows: Rows, inputs=None):
    """Returns the weights of `rows` after checking the number of rows as `row_weights`."""
    if rows.weights is None or inputs is None:
        return rows.weights
    expected, received = rows.weights.shape[0], inputs.shape[0]
    if None not in (expected, received) and expected != received:
        raise UsageError(
            "A layer that mixes rows must be called with all rows of the batch, or inside "
            f"`zoo.use_row_weights(weights)`. Received: {received} rows for a batch of {expected}."
        )
    return rows.weights


@contextlib.contextmanager
def use_row_weights(weights):
    """Sets the row weights of network calls inside the context.

    Needed by a task or a layer that calls layers with other rows than those of the batch, such as
    two concatenated batches or one row per position.

    Args:
      weights: (rows,) float32, 0 for padding; None if no row is padding.

    Yields:
      The `Rows`.
    """
    before = current_rows()
    rows = Rows(weights)
    _local.rows = rows
    try:
        yield rows
    finally:
        _local.rows = before
        if before is not None:
            before.read |= rows.read
            before.synchronized |= rows.synchronized
