"""Where a classifier looks: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, section 3)."""

import keras
import numpy as np
import tensorflow as tf

from zoo.layers.low_rank import LowRankDense

_BATCH = 16


def grad_cam(model: keras.Model, pictures: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """Returns how much each place of a picture speaks for a class.

    The maps are those of the model's last feature maps, each channel weighted by its mean gradient
    of the class's logit, what speaks against the class left out, enlarged to the pictures' size.

    Args:
      model: a Functional classifier whose last layer is a Dense softmax.
      pictures: (N, height, width, channels) float in [0, 1].
      classes: (N,) integers.

    Returns:
      (N, height, width) float32, of which the largest of each picture is 1 (all 0 where nothing
      speaks for the class); or None where the model has no feature maps or another last layer.
    """
    parts = _parts(model)
    if parts is None:
        return None
    trunk, rest, last = parts

    @tf.function(autograph=False)
    def heat(image, label):
        maps = tf.cast(trunk(image, training=False), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            inputs = tf.cast(rest(maps, training=False), tf.float32)
            # Of the logit: a softmax that is sure has no slope left.
            logits = inputs @ tf.cast(tf.convert_to_tensor(last.kernel), tf.float32)
            if last.use_bias:
                logits += tf.cast(last.bias.value, tf.float32)
            score = tf.gather(logits, label, batch_dims=1)
        weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)
        found = tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1, keepdims=True))
        found = tf.image.resize(found, image.shape[1:3])[..., 0]
        return tf.math.divide_no_nan(found, tf.reduce_max(found, axis=(1, 2), keepdims=True))

    rows = [slice(i, i + _BATCH) for i in range(0, len(pictures), _BATCH)]
    found = [heat(tf.constant(pictures[r]), tf.constant(classes[r])).numpy() for r in rows]
    return np.concatenate(found)


def _parts(model: keras.Model):
    """Up to the last feature maps, from there to the last layer's input, and the last layer."""
    last = model.layers[-1] if model.layers else None
    if not isinstance(last, (keras.layers.Dense, LowRankDense)):
        return None
    if last.activation is not keras.activations.softmax:
        return None
    if len(model.inputs) != 1:
        return None
    for layer in reversed(model.layers):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        tensor = layer.input
        # Where maps become a vector.
        if isinstance(tensor, keras.KerasTensor) and len(tensor.shape) == 4:
            if tensor is model.input:
                return None
            trunk = keras.Model(model.input, tensor)
            return trunk, keras.Model(tensor, last.input), last
    return None


def choose(labels: np.ndarray, probabilities: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """Returns which pictures to show: the surest right one of ten classes, then six mistakes."""
    predicted, sure = probabilities.argmax(-1), probabilities.max(-1)
    chosen = []
    for number in range(min(10, probabilities.shape[-1])):
        right = np.flatnonzero((labels == number) & (predicted == number))
        if len(right):
            chosen.append(right[sure[right].argmax()])
    return np.array([*chosen, *worst[:6]], np.int64)
