"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661) for 28x28 gray images.

Images are in [-1, 1]. `build` has a dense generator (114,064 parameters) and a discriminator with
two convolutions (212,865). `build_dcgan` is convolutional on both sides (Radford et al. 2016,
arXiv:1511.06434). It normalizes the features at each position (Karras et al. 2018,
arXiv:1710.10196, section 4.2), because batch normalization would couple the rows of a batch.
"""

import keras
from keras import layers

from zoo.errors import UsageError

IMAGE_SHAPE = (28, 28, 1)


@keras.saving.register_keras_serializable("zoo")
class GAN(keras.Model):
    """Model from noise (B, noise_dim) to the logit (B, 1) of the generated image."""

    @property
    def generator(self) -> keras.Model:
        """Model from noise (B, noise_dim) to images (B, height, width, channels) in [-1, 1]."""
        return self._networks()[0]

    @property
    def discriminator(self) -> keras.Model:
        """Model from images to logits (B, 1), which are positive for images classified as real."""
        return self._networks()[1]

    def _networks(self) -> list[keras.Model]:
        return [layer for layer in self.layers if isinstance(layer, keras.Model)]


def build(
    noise_dim: int = 100, hidden_dim: int = 128, filters: int = 64, name: str = "gan_mnist"
) -> GAN:
    """Builds a dense generator and a convolutional discriminator.

    Args:
      noise_dim: size of the noise vector of an image.
      hidden_dim: units of the generator's hidden layer.
      filters: channels of the discriminator's first convolution; the second has twice as many.
      name: name of the Keras model.
    """
    noise = _noise(noise_dim)
    x = layers.Dense(hidden_dim, activation="relu", name="hidden")(noise)
    x = layers.Dense(784, activation="tanh", dtype="float32", name="pixels")(x)
    generator = keras.Model(noise, layers.Reshape(IMAGE_SHAPE, name="picture")(x), name="generator")

    image = keras.Input(IMAGE_SHAPE, name="image")
    x = image
    for i, channels in enumerate((filters, 2 * filters), 1):
        x = layers.Conv2D(
            channels, 5, padding="same", activation="relu", name=f"convolution_{i}"
        )(x)  # fmt: skip
        x = layers.MaxPooling2D(2, name=f"pooling_{i}")(x)
    x = layers.Flatten(name="flatten")(x)
    logit = layers.Dense(1, dtype="float32", name="logit")(x)
    return _build_gan(generator, keras.Model(image, logit, name="discriminator"), noise_dim, name)


def build_dcgan(noise_dim: int = 64, filters: int = 64, name: str = "dcgan_mnist") -> GAN:
    """Builds a convolutional generator and discriminator.

    Args:
      noise_dim: size of the noise vector of an image.
      filters: channels of the discriminator's first convolution; the second has twice as many.
      name: name of the Keras model.
    """
    noise = _noise(noise_dim)
    x = layers.Dense(7 * 7 * 2 * filters, name="seed")(noise)
    x = layers.Reshape((7, 7, 2 * filters), name="grid")(x)
    x = layers.LeakyReLU(0.2, name="leaky_1")(_position_norm("norm_1")(x))
    # A kernel size divisible by the stride avoids checkerboard artifacts (Odena et al. 2016).
    x = layers.Conv2DTranspose(filters, 4, strides=2, padding="same", name="upsampling_1")(x)
    x = layers.LeakyReLU(0.2, name="leaky_2")(_position_norm("norm_2")(x))
    x = layers.Conv2DTranspose(1, 4, strides=2, padding="same", name="upsampling_2")(x)
    x = layers.Activation("tanh", dtype="float32", name="picture")(x)
    generator = keras.Model(noise, x, name="generator")

    image = keras.Input(IMAGE_SHAPE, name="image")
    x = image
    for i, channels in enumerate((filters, 2 * filters), 1):
        x = layers.Conv2D(
            channels, 5, strides=2, padding="same", name=f"downsampling_{i}"
        )(x)  # fmt: skip
        x = layers.LeakyReLU(0.2, name=f"leaky_{i}")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.LeakyReLU(0.2, name="leaky_3")(layers.Dense(2 * filters, name="hidden")(x))
    logit = layers.Dense(1, dtype="float32", name="logit")(x)
    return _build_gan(generator, keras.Model(image, logit, name="discriminator"), noise_dim, name)


def _position_norm(name: str) -> layers.Layer:
    return layers.RMSNormalization(epsilon=1e-6, name=name)


def _noise(dim: int):
    if dim < 1:
        raise UsageError(f"noise_dim must be at least 1. Received: {dim}.")
    return keras.Input((dim,), name="noise")


def _build_gan(generator, discriminator, noise_dim: int, name: str) -> GAN:
    noise = _noise(noise_dim)
    return GAN(noise, discriminator(generator(noise)), name=name)
