"""Activity regularizers without padding rows.

Keras divides an activity penalty by the number of rows, padding included. In a train step the
penalty of a batch is the sum over its real rows divided by their number, independent of
micro-batches and replicas. Regularizers must therefore be sums over elements, as Keras' L1 and L2.
"""

import contextlib

import keras
import tensorflow as tf

from zoo import keras_internals
from zoo.rows import current_rows, weights_of


class ActivityPenalties:
    """The activity regularizers of a network.

    Args:
      model: the network.
    """

    def __init__(self, model: keras.Model):
        self._layers = [
            (layer, layer.activity_regularizer, _OfRealRows(layer.activity_regularizer))
            for layer in keras_internals.all_layers(model)
            if getattr(layer, "activity_regularizer", None) is not None
        ]
        self._inside = 0  # replicas enter `of_real_rows` in turns while they are traced

    def __bool__(self) -> bool:
        return bool(self._layers)

    @contextlib.contextmanager
    def of_real_rows(self, rows, share):
        """Returns a context in which a forward pass leaves padding out of its penalties.

        Args:
          rows: number of real rows in the global batch, float32.
          share: factor by which the train step multiplies the penalties.
        """
        if not self._layers or (current := current_rows()) is None:
            yield
            return
        current.penalty = tf.math.divide_no_nan(1.0, rows * share)
        for layer, _, masked in self._layers:
            layer.activity_regularizer = masked
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:  # a saved model must hold the original regularizers
                for layer, plain, _ in self._layers:
                    layer.activity_regularizer = plain


class _OfRealRows:
    def __init__(self, regularizer):
        self._regularizer = regularizer

    def __call__(self, x):
        rows = current_rows()
        if rows is None or rows.penalty is None or rows.weights is None:
            return self._regularizer(x)
        real = tf.reshape(weights_of(rows, x) > 0, (-1, *[1] * (len(x.shape) - 1)))
        loss = self._regularizer(tf.where(real, x, tf.zeros_like(x)))
        # Keras divides by the number of rows.
        return loss * tf.cast(rows.penalty * tf.cast(tf.shape(x)[0], tf.float32), loss.dtype)
