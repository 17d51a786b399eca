"""Heat maps of image classifiers: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391)."""

import keras
import numpy as np
import tensorflow as tf

from zoo.layers.low_rank import LowRankDense

_BATCH = 16


def grad_cam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """Computes how strongly each region of an image supports a class.

    A heat map is the weighted sum of the last feature maps, without its negative part, resized to
    the size of the image. The weight of a channel is the mean gradient of the class's logit
    (section 3 of the paper).

    Args:
      model: a Functional classifier with a Dense softmax layer at the end.
      images: (N, height, width, channels) float in [0, 1].
      classes: (N,) integers.

    Returns:
      (N, height, width) float32 with a maximum of 1 per image, or all 0 if no region supports the
      class; None for a model without feature maps or with another last layer.
    """
    parts = _parts(model)
    if parts is None:
        return None
    trunk, head, last = parts

    @tf.function(autograph=False)
    def heat(image, label):
        maps = tf.cast(trunk(image, training=False), tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(maps)
            inputs = tf.cast(head(maps, training=False), tf.float32)
            # Differentiates the logit, because the gradient of a saturated softmax vanishes.
            logits = inputs @ tf.cast(tf.convert_to_tensor(last.kernel), tf.float32)
            if last.use_bias:
                logits += tf.cast(last.bias.value, tf.float32)
            score = tf.gather(logits, label, batch_dims=1)
        weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)
        heat_map = tf.nn.relu(tf.reduce_sum(weights * maps, axis=-1, keepdims=True))
        heat_map = tf.image.resize(heat_map, image.shape[1:3])[..., 0]
        return tf.math.divide_no_nan(heat_map, tf.reduce_max(heat_map, axis=(1, 2), keepdims=True))

    rows = [slice(i, i + _BATCH) for i in range(0, len(images), _BATCH)]
    return np.concatenate(
        [heat(tf.constant(images[r]), tf.constant(classes[r])).numpy() for r in rows]
    )


def _parts(model: keras.Model):
    """Returns the model up to the last feature maps, the part up to the last layer, that layer."""
    last = model.layers[-1] if model.layers else None
    if not isinstance(last, (keras.layers.Dense, LowRankDense)) or len(model.inputs) != 1:
        return None
    if last.activation is not keras.activations.softmax:
        return None
    for layer in reversed(model.layers):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        tensor = layer.input
        # From the end, the first layer with feature maps as input turns them into a vector.
        if isinstance(tensor, keras.KerasTensor) and len(tensor.shape) == 4:
            if tensor is model.input:
                return None
            trunk = keras.Model(model.input, tensor)
            return trunk, keras.Model(tensor, last.input), last
    return None


def choose(labels: np.ndarray, probabilities: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """Selects images to show.

    Args:
      labels: (N,) integers.
      probabilities: (N, classes).
      worst: indices of mistakes, the worst first.

    Returns:
      Indices (n,): the most confident correct prediction for each of the first ten classes, then
      the six worst mistakes.
    """
    predicted, confidence = probabilities.argmax(-1), probabilities.max(-1)
    indices = []
    for number in range(min(10, probabilities.shape[-1])):
        correct = np.flatnonzero((labels == number) & (predicted == number))
        if len(correct):
            indices.append(correct[confidence[correct].argmax()])
    return np.array([*indices, *worst[:6]], np.int64)
