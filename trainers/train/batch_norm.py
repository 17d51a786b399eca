"""Batch normalization without padding rows.

`install` replaces `BatchNormalization._moments`, from which Keras computes its output and its
moving statistics. While row weights are published (`zoo.rows`), the moments are

    mean = sum(real * x) / count,    variance = sum(real * (x - mean)^2) / count

over the rows of positive weight (and over the elements of the mask, if Keras passes one). A
synchronized layer sums numerators and counts over the replicas, so that a replica counts by its
real rows; Keras' own masked moments do not. If there is no real row, the moments are the moving
statistics, which are finite. Without published weights Keras' own moments are used.
"""

import contextlib

import keras
import tensorflow as tf

from zoo.rows import current_rows, weights_of

_keras_moments = keras.layers.BatchNormalization._moments
_recorded: list | None = None  # (layer, mean, variance) of each call; see `recorded_moments`


def install() -> None:
    """Makes every `BatchNormalization` use the published row weights."""
    keras.layers.BatchNormalization._moments = _moments


@contextlib.contextmanager
def recorded_moments():
    """Yields a list that receives `(layer, mean, variance)` of each normalization inside."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before


def _moments(layer, inputs, mask):
    moments = _moments_of_real_rows(layer, inputs, mask)
    if _recorded is not None:
        _recorded.append((layer, *moments))
    return moments


def _moments_of_real_rows(layer, inputs, mask):
    rows = current_rows()
    axis = layer.axis % len(inputs.shape)
    if rows is None or rows.weights is None or axis == 0:
        return _keras_moments(layer, inputs, mask)
    replica = tf.distribute.get_replica_context()
    synchronized = layer.synchronized and replica and replica.num_replicas_in_sync > 1
    # `trainers.train.build` synchronizes every such layer if there are several replicas.
    rows.synchronized = True
    real = weights_of(rows, inputs) > 0

    def add_up(values):
        return replica.all_reduce(tf.distribute.ReduceOp.SUM, values) if synchronized else values

    if mask is None:
        # Sum over each row's positions first: padding is then removed from a small tensor (B, C).
        inside = [i for i in range(1, len(inputs.shape)) if i != axis]
        shape = tf.shape(inputs)
        size = tf.cast(tf.reduce_prod([1, *(shape[i] for i in inside)]), inputs.dtype)

        def total(values):
            row_sums = tf.reduce_sum(values, inside)
            return tf.reduce_sum(tf.where(real[:, None], row_sums, 0.0), 0)

        count = size * tf.reduce_sum(tf.cast(real, inputs.dtype))
    else:  # mask: (B, ...), all axes but the last
        real = tf.reshape(real, (-1, *[1] * (len(mask.shape) - 1)))
        is_counted = tf.cast(mask, tf.bool) & real

        def total(values):
            return tf.reduce_sum(
                tf.where(is_counted[..., None], values, 0.0), layer._reduction_axes
            )

        count = tf.reduce_sum(tf.cast(is_counted, inputs.dtype))
    sums = add_up(tf.concat([total(inputs), [count]], 0))
    mean, count = tf.math.divide_no_nan(sums[:-1], sums[-1]), sums[-1]
    along = [1] * len(inputs.shape)
    along[axis] = -1
    # No gradient through this mean is needed: deviations from the mean sum to 0.
    distance = tf.math.squared_difference(inputs, tf.reshape(tf.stop_gradient(mean), along))
    variance = tf.math.divide_no_nan(add_up(total(distance)), count)
    return (
        tf.where(count > 0, mean, tf.cast(layer.moving_mean, mean.dtype)),
        tf.where(count > 0, variance, tf.cast(layer.moving_variance, mean.dtype)),
    )
