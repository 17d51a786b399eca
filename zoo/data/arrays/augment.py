"""Augmentation of training images by Keras' layers, as a function of (seed, step, replica).

Keras' layers have random state, which a resumed run could not restore. Here all random numbers are
a function of a key from the batch, so a resumed run gets the images of an uninterrupted run, and
replicas get different random numbers.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from zoo.data.arrays.augmentations import check_channels


class Augment:
    """Applies the augmentations of a recipe.

    Args:
      amounts: result of `zoo.data.arrays.augmentations.parse`.
    """

    def __init__(self, amounts: dict[str, float]):
        self.amounts = amounts
        self.layers = {}
        bright = {"value_range": (0.0, 1.0), "dtype": "float32"}
        for name, amount in amounts.items():
            if name == "flip":
                self.layers[name] = keras.layers.RandomFlip("horizontal", dtype="float32")
            elif name == "randaugment":
                self.layers[name] = _rand_augment(amount, bright)
            elif name == "cutout":
                # A factor of 1.0 would be a probability drawn between 0 and 1.
                self.layers[name] = keras.layers.RandomErasing(
                    factor=(1.0, 1.0), scale=(0.0, amount), fill_value=0.5, **bright
                )
            elif name == "mixup":
                self.layers[name] = keras.layers.MixUp(alpha=amount, dtype="float32")
        self.keys = {}
        for name, layer in self.layers.items():
            self.keys[name] = layer.generator = Key()

    def __reduce__(self):  # Keras pickles layers without their generators
        return Augment, (self.amounts,)

    def __call__(self, image: tf.Tensor, label: tf.Tensor, uniform: Callable, weight=None):
        """Augments a batch.

        Args:
          image: (B, height, width, channels) float in [0, 1].
          label: (B,) integers.
          uniform: source of random numbers, see `zoo.tasks.base.Task.prepare`.
          weight: (B,) float, 0 for padding rows; None if there are none.

        Returns:
          `(image, other_label, share)`. With mixup, label i has weight `share[i]` and
          `other_label[i]` the rest; without mixup, both are None.
        """
        check_channels(self.amounts, image.shape[-1])
        numbers = uniform(8)
        # The numbers of the first row differ per replica.
        key = tf.bitcast(tf.cast(numbers[0, 4:6] * 2.0**24, tf.uint32), tf.int32)
        partner_label, share = None, None
        for index, name in enumerate(self.amounts):
            if name == "crop":
                image = _crop(image, numbers[:, :4], self.amounts[name])
                continue
            layer = self.layers[name]
            self.keys[name].start(tf.random.experimental.stateless_fold_in(key, index))
            change = layer.get_random_transformation(image, training=True, seed=self.keys[name])
            if name == "mixup" and weight is not None:
                partners = _real_partners(change["permutation_order"], weight > 0)
                change = {**change, "permutation_order": partners}
            image = layer.transform_images(image, change, training=True)
            if name == "mixup":
                partner_label = tf.gather(label, change["permutation_order"])
                share = tf.cast(change["mix_weight"], tf.float32)
        return tf.clip_by_value(image, 0.0, 1.0), partner_label, share


def _real_partners(order: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    """Returns the mixup partner of each row, so that real rows are mixed with real rows only.

    Args:
      order: (B,) int64, a random permutation of all rows; the result if no row is padding.
      real: (B,) bool, False for padding.

    Returns:
      (B,) int64; a padding row is its own partner.
    """
    padding_last = tf.argsort(tf.cast(~tf.gather(real, order), tf.int32), stable=True)
    among_real = tf.gather(order, padding_last)
    real_index = tf.maximum(tf.cumsum(tf.cast(real, tf.int32)) - 1, 0)
    return tf.where(real, tf.gather(among_real, real_index), tf.range(tf.size(order, order.dtype)))


class Key(keras.random.SeedGenerator):
    """A seed generator without state, whose seeds are a function of a key."""

    def __init__(self, key=None):  # without the variable of the parent class
        self.start(key)

    def start(self, key: tf.Tensor) -> None:
        """Sets the key, (2,) int32, of the following seeds."""
        self.key, self.draws = key, 0

    def next(self, ordered=True):
        self.draws += 1
        return tf.random.experimental.stateless_fold_in(self.key, self.draws)


def _rand_augment(strength: float, bright: dict) -> keras.layers.RandAugment:
    """Returns Keras' RandAugment; strength 1 has the ranges of the paper's code.

    Keras uses the factor for all operations alike: 0.5 rotates by up to 180 degrees, shifts by half
    the width and inverts images, 0.9 makes images white, 0.1 blurs all images and leaves one bit
    per color. Other than in the paper, all images of a replica get the same two operations, with
    different amounts, and brightness is one of the operations.
    """
    layer = keras.layers.RandAugment(factor=strength, **bright)
    layer.random_rotation.factor = (-strength / 12, strength / 12)  # of 360 degrees: 30 degrees
    # The shear has a random sign.
    layer.random_shear.x_factor = layer.random_shear.y_factor = (0.0, 0.3 * strength)
    translation = layer.random_translation
    translation.height_lower = translation.width_lower = -0.3 * strength
    translation.height_upper = translation.width_upper = 0.3 * strength
    bits = round(8 - 4 * strength)
    layer.random_posterization.factor = (bits, bits)
    layer.random_brightness.factor = (-0.3 * strength, 0.3 * strength)
    # A factor of 0.5 leaves the image unchanged.
    layer.random_sharpness.factor = (0.5 - 0.45 * strength, 0.5 + 0.45 * strength)
    # Keras multiplies only the upper bounds by 255; no pixel is brighter than 256.
    layer.solarization.addition_factor = (0.0, 110 / 255 * strength)
    layer.solarization.threshold_factor = (256 * (1 - strength), 256 / 255)
    return layer


def _crop(image, numbers, smallest: float):
    """Cuts out a part of each image, with the same proportions, and resizes it bilinearly."""
    side = tf.sqrt(smallest + (1 - smallest) * numbers[:, 0])
    top, left = numbers[:, 1] * (1 - side), numbers[:, 2] * (1 - side)
    boxes = tf.stack([top, left, top + side, left + side], axis=1)
    rows = tf.range(tf.shape(image)[0])
    out = tf.image.crop_and_resize(image, boxes, rows, image.shape[1:3])
    return tf.ensure_shape(out, image.shape)
