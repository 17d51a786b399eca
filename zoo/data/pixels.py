"""Images as rows of tokens, one token per value, for `zoo.tasks.clm`: data.tokenizer=pixels."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from zoo.data.arrays.images import shape_of
from zoo.data.datasets import FOLDER, Dataset
from zoo.data.sources import load
from zoo.errors import UsageError
from zoo.storage.disk import json_digest

PIXELS = "pixels"


def pixel_rows(data: Mapping) -> Dataset:
    """Loads images of height H, width W and K channels as rows of tokens.

    Examples have "tokens" (1 + H W K,) uint8: 0, then the values of the image row by row, with the
    channels of a pixel side by side; and "segments" of the same shape, all 1. Bits per byte of the
    task are bits per dimension of the images.

    Args:
      data: section `data` of the recipe: source (of images), manual_dir, image_size. Its
        sequence_length must be H W K, or 0.

    Raises:
      UsageError: if the source has no images, a folder has no image_size, or sequence_length is
        wrong.
    """
    if data["source"].startswith(FOLDER) and not data["image_size"]:
        raise UsageError(
            f"data.tokenizer={PIXELS} with {FOLDER} requires data.image_size, because each value "
            "of an image is a token. Received: data.image_size=()."
        )
    dataset = load(data["source"], data["manual_dir"] or None, tuple(data["image_size"]))
    splits = {}
    for split, arrays in dataset.splits.items():
        if "image" not in arrays:
            raise UsageError(
                f"data.tokenizer={PIXELS} requires images. Received: {dataset.name!r}, split "
                f"{split!r} with the arrays {', '.join(arrays)}."
            )
        images = np.asarray(arrays["image"])
        values = images.reshape(len(images), -1)
        if data["sequence_length"] not in (0, values.shape[1]):
            raise UsageError(
                f"data.sequence_length must be {values.shape[1]}, the number of values of an "
                f"image, or 0. Received: {data['sequence_length']}."
            )
        tokens = np.pad(values, ((0, 0), (1, 0)))
        splits[split] = {"tokens": tokens, "segments": np.ones_like(tokens)}
    digest = json_digest([PIXELS, dataset.fingerprint])
    return Dataset(dataset.name, splits, (), digest)


def image_shape(count: int, image_size: Sequence[int]) -> tuple[int, int, int]:
    """Returns height, width and channels of images.

    Args:
      count: number of values of an image.
      image_size: data.image_size of the recipe; () for square images, gray or RGB.

    Raises:
      UsageError: if there is no such shape.
    """
    if tuple(image_size):
        return shape_of(image_size)
    for channels in (1, 3):
        side = math.isqrt(count // channels)
        if side * side * channels == count:
            return side, side, channels
    raise UsageError(
        f"Images must be square, or data.image_size must be set. Received: {count} values per "
        "image."
    )
