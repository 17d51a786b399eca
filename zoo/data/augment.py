"""Random changes of training pictures by Keras' own layers, as a function of (seed, step, replica).

Keras' layers carry the state of their random numbers along, which no resumed run could find again;
here each draw is a function of a key that the batch brings. So a resumed run sees the pictures that
the uninterrupted one would have seen, and replicas draw pictures of their own.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from zoo.data.augmentations import check_channels


class Augment:
    """The changes of a recipe.

    Args:
      amounts: from `zoo.data.augmentations.parse`.
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
                # A factor of 1.0 alone would be a probability drawn between 0 and 1.
                self.layers[name] = keras.layers.RandomErasing(
                    factor=(1.0, 1.0), scale=(0.0, amount), fill_value=0.5, **bright
                )
            elif name == "mixup":
                self.layers[name] = keras.layers.MixUp(alpha=amount, dtype="float32")
        self.keys = {}
        for name, layer in self.layers.items():
            self.keys[name] = layer.generator = Key()

    def __reduce__(self):  # Keras would pickle its layers without their keys
        return Augment, (self.amounts,)

    def __call__(self, image: tf.Tensor, label: tf.Tensor, uniform: Callable, weight=None):
        """Changes a batch.

        Args:
          image: (B, height, width, channels) float in [0, 1].
          label: (B,) integers.
          uniform: as `zoo.tasks.base.Task.prepare` gets it.
          weight: (B,) float, 0 for rows that are padding; None where no row is.

        Returns:
          `(image, other_label, share)`: with mixup, picture i counts `share[i]` of its own label
          and the rest of `other_label[i]`; both are None without.
        """
        check_channels(self.amounts, image.shape[-1])
        numbers = uniform(8)
        # Of the replica's first row: other rows, other numbers.
        key = tf.bitcast(tf.cast(numbers[0, 4:6] * 2.0**24, tf.uint32), tf.int32)
        other, share = None, None
        for turn, name in enumerate(self.amounts):
            if name == "crop":
                image = _crop(image, numbers[:, :4], self.amounts[name])
                continue
            layer = self.layers[name]
            self.keys[name].start(tf.random.experimental.stateless_fold_in(key, turn))
            change = layer.get_random_transformation(image, training=True, seed=self.keys[name])
            if name == "mixup" and weight is not None:
                partners = _real_partners(change["permutation_order"], weight > 0)
                change = {**change, "permutation_order": partners}
            image = layer.transform_images(image, change, training=True)
            if name == "mixup":
                other = tf.gather(label, change["permutation_order"])
                share = tf.cast(change["mix_weight"], tf.float32)
        return tf.clip_by_value(image, 0.0, 1.0), other, share


def _real_partners(order: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    """Returns the partner of each row: real rows are permuted among themselves.

    Args:
      order: (B,) int64, a random permutation of all rows; kept as it is where all are real.
      real: (B,) bool.

    Returns:
      (B,) int64; padding has itself.
    """
    padding_last = tf.argsort(tf.cast(~tf.gather(real, order), tf.int32), stable=True)
    among_real = tf.gather(order, padding_last)
    place = tf.maximum(tf.cumsum(tf.cast(real, tf.int32)) - 1, 0)
    return tf.where(real, tf.gather(among_real, place), tf.range(tf.size(order, order.dtype)))


class Key(keras.random.SeedGenerator):
    """Stands where Keras wants a generator; its seeds follow from the key alone."""

    def __init__(self, key=None):  # of the parent's state there is none
        self.start(key)

    def start(self, key: tf.Tensor) -> None:
        """Sets the key, (2,) int32, of what is drawn until the next start."""
        self.key, self.draws = key, 0

    def next(self, ordered=True):
        self.draws += 1
        return tf.random.experimental.stateless_fold_in(self.key, self.draws)


def _rand_augment(strength: float, bright: dict) -> keras.layers.RandAugment:
    """Keras' layer, whose strength bounds what it does as in the paper's code where it is 1.

    Keras takes it for all of its layers alike: at 0.5 it turns pictures by up to half a turn, moves
    them by half their width and makes negatives of them, at 0.9 it makes them white, and at 0.1 it
    blurs them all and leaves one bit of a colour. Other than in the paper a replica's pictures get
    the same two changes, of each its own amount, and brightness is added.
    """
    layer = keras.layers.RandAugment(factor=strength, **bright)
    layer.random_rotation.factor = (-strength / 12, strength / 12)  # of a turn: 30 degrees
    layer.random_shear.x_factor = layer.random_shear.y_factor = (0.0, 0.3 * strength)  # either way
    moved = layer.random_translation
    moved.height_lower = moved.width_lower = -0.3 * strength
    moved.height_upper = moved.width_upper = 0.3 * strength
    bits = round(8 - 4 * strength)
    layer.random_posterization.factor = (bits, bits)
    layer.random_brightness.factor = (-0.3 * strength, 0.3 * strength)
    # Of the blurred picture's share in the result, half of what it says; 0.5 is the picture.
    layer.random_sharpness.factor = (0.5 - 0.45 * strength, 0.5 + 0.45 * strength)
    # Keras multiplies the upper bounds alone by 255. What is brighter than 256 is none.
    layer.solarization.addition_factor = (0.0, 110 / 255 * strength)
    layer.solarization.threshold_factor = (256 * (1 - strength), 256 / 255)
    return layer


def _crop(image, numbers, smallest: float):
    """A part of each picture, of the whole's proportions, resized bilinearly to the whole."""
    side = tf.sqrt(smallest + (1 - smallest) * numbers[:, 0])
    top, left = numbers[:, 1] * (1 - side), numbers[:, 2] * (1 - side)
    boxes = tf.stack([top, left, top + side, left + side], axis=1)
    rows = tf.range(tf.shape(image)[0])
    out = tf.image.crop_and_resize(image, boxes, rows, image.shape[1:3])
    return tf.ensure_shape(out, image.shape)
