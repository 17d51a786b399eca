"""Row weights of the batch that a network sees, for layers whose output mixes rows.

The batch's "weight" is 0 for rows that only pad a short batch to its static shape. The train step
and the evaluation publish it while the network is called. Batch normalization reads it
(`trainers.train.batch_norm`); a layer of your own that computes anything from several rows does
too:

    class BatchMean(keras.layers.Layer):
        def call(self, x):  # (B, C)
            weights = zoo.row_weights(x)
            if weights is None:  # outside training and evaluation: no row is padding
                return x - ops.mean(x, 0)
            total = ops.sum(weights[:, None] * x, 0)
            return x - total / ops.maximum(ops.sum(weights), 1.0)

With several replicas a layer sees the rows of one of them.
"""

import contextlib
import threading

from zoo.errors import UsageError

_local = threading.local()  # each replica is traced in a thread of its own


class Rows:
    """Rows that are seen together.

    Args:
      weights: (B,) float32, 0 for padding; None where no row is padding.

    Attributes:
      read: whether a layer that mixes the rows of one replica has asked for the weights.
      synchronized: whether a layer that mixes the rows of all replicas has.
      penalty: factor of activity regularizers, see `trainers.train.activity`; None outside
        training.
    """

    def __init__(self, weights):
        self.weights = weights
        self.read = self.synchronized = False
        self.penalty = None


def row_weights(inputs=None):
    """Returns the weights of the rows that a layer sees: 0 for padding, else 1.

    Args:
      inputs: (B, ...) what the layer was called with, whose number of rows is then checked.

    Returns:
      (B,) float32, or None where no row is padding.

    Raises:
      UsageError: where `inputs` has another number of rows than the batch.
    """
    rows = current_rows()
    if rows is None:
        return None
    rows.read = True
    return weights_of(rows, inputs)


def current_rows() -> Rows | None:
    """Returns what `use_row_weights` has set in this thread, or None."""
    return getattr(_local, "rows", None)


def weights_of(rows: Rows, inputs=None):
    """Returns the weights after the check of `row_weights`."""
    if rows.weights is None or inputs is None:
        return rows.weights
    expected, received = rows.weights.shape[0], inputs.shape[0]
    if None not in (expected, received) and expected != received:
        raise UsageError(
            "A layer that mixes rows must be called with the rows of the batch, or inside "
            f"`zoo.use_row_weights(weights)`. Received: {received} rows for a batch of {expected}."
        )
    return rows.weights


@contextlib.contextmanager
def use_row_weights(weights):
    """Sets the row weights of the network calls inside.

    A task or a layer that calls layers with other rows than the batch's (two batches one after the
    other, every position as a row) uses it to say which of those are padding.

    Args:
      weights: (rows,) float32, 0 for padding; None where no row is padding.

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
