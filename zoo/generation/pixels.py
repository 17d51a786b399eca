"""Images that a language model of pixels samples value by value."""

import math

import numpy as np

from zoo.generation import sampling
from zoo.generation.generate import Generator, uniforms

_SAMPLED = 64  # images that are sampled at once


def sample_images(model, shape: tuple[int, int, int], count: int, seed: int) -> np.ndarray:
    """Samples images value by value from a language model of `zoo.data.pixels`.

    Args:
      model: a model that `zoo.generation.decoding` supports.
      shape: height, width and channels of the images.
      count: number of images.
      seed: random seed; image b depends only on seed + b.

    Returns:
      (count, height, width, channels) uint8.
    """
    length, parts = math.prod(shape), []
    generator = Generator(model)
    for start in range(0, count, _SAMPLED):
        rows = min(_SAMPLED, count - start)
        values = generator.tokens([[0]] * rows, length - 1, seed=seed + start, end_id=None)
        tokens = np.pad(np.stack(values), ((0, 0), (1, 0)))
        # The generator ends at the last input, whose target is the last value.
        logits = generator.logits_without_cache(tokens, length - 1)
        last = sampling.sample(logits, uniforms(seed + start, rows, length + 1)[:, -1])
        parts.append(np.concatenate([tokens[:, 1:], np.asarray(last)[:, None]], axis=1))
    return np.concatenate(parts).astype("uint8").reshape(count, *shape)
