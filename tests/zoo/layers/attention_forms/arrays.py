"""Random arrays, and comparisons of outputs and gradients, for the tests of attention."""

import numpy as np
import tensorflow as tf


def random(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=shape).astype("float32"))


def with_gradients(function, arrays):
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        out = function(*arrays)
        # Slopes near 1 keep the gradients near 1, where float32 rounds to well below 1e-5.
        slope = tf.reshape(tf.sin(1.7 * tf.range(tf.cast(tf.size(out), "float32"))), tf.shape(out))
        loss = tf.reduce_sum(tf.cast(out, "float32") * slope)
    return out, *tape.gradient(loss, arrays)


def assert_equal(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        a, b = tf.cast(a, "float32"), tf.cast(b, "float32")
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
