"""Convolutional digit classifier.

Three convolutions and two dense layers on 28x28 gray images: 93,322 parameters. Images are float in
[0, 1]; the output is a probability per class. The softmax is computed in float32 under every dtype
policy. The loss uses the logits before the softmax, so the softmax in the model costs no precision.
"""

import keras
from keras import layers


def build(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    filters: tuple[int, int, int] = (32, 64, 64),
    hidden_dim: int = 64,
    num_classes: int = 10,
    name: str = "cnn_classifier",
) -> keras.Model:
    """Builds the classifier.

    Args:
      input_shape: height, width and channels; height and width are at least 18 pixels.
      filters: output channels of the three 3x3 convolutions.
      hidden_dim: units of the dense layer before the output.
      num_classes: number of classes.
      name: name of the Keras model.

    Returns:
      A Functional model from `(batch, height, width, channels)` to `(batch, num_classes)`
      probabilities.
    """
    image = keras.Input(tuple(input_shape), name="image")
    x = layers.Conv2D(filters[0], 3, activation="relu", name="convolution_1")(image)
    x = layers.MaxPooling2D(2, name="pooling_1")(x)
    x = layers.Conv2D(filters[1], 3, activation="relu", name="convolution_2")(x)
    x = layers.MaxPooling2D(2, name="pooling_2")(x)
    x = layers.Conv2D(filters[2], 3, activation="relu", name="convolution_3")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(hidden_dim, activation="relu", name="hidden")(x)
    x = layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities")(x)
    return keras.Model(image, x, name=name)
