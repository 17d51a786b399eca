"""Random affine transformations of training images, as batched operations inside tf.data."""

import math

import tensorflow as tf


def random_affine(image, uniform, rotation: float, shift: float, zoom: float, shear: float):
    """Rotates, shifts, zooms and shears each image about its center, with zeros outside.

    Args:
      image: `(batch, height, width, channels)` float.
      uniform: `uniform(count)` returns `(batch, count)` random numbers in [0, 1).
      rotation: largest rotation in degrees, in both directions.
      shift: largest shift in pixels, along both axes.
      zoom: largest relative change of size, along both axes independently.
      shear: largest shear in degrees.

    Returns:
      Images of the same shape, interpolated bilinearly.
    """
    height, width = image.shape[1], image.shape[2]
    spread = 2 * uniform(6) - 1  # each in [-1, 1)
    angle = spread[:, 0] * (rotation * math.pi / 180)
    shear_slope = tf.tan(spread[:, 1] * (shear * math.pi / 180))
    scale_x = 1 / (1 + spread[:, 2] * zoom)
    scale_y = 1 / (1 + spread[:, 3] * zoom)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    # Output pixel (x, y) reads input pixel (a x + b y + c, d x + e y + f).
    a, b = cosine * scale_x, (shear_slope * cosine - sine) * scale_x
    d, e = sine * scale_y, (shear_slope * sine + cosine) * scale_y
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    c = center_x - a * center_x - b * center_y + spread[:, 4] * shift
    f = center_y - d * center_x - e * center_y + spread[:, 5] * shift
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image,
        transforms=tf.stack([a, b, c, d, e, f, zero, zero], axis=1),
        output_shape=tf.constant([height, width]),
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )
