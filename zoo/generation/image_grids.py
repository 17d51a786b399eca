"""Grids of generated images, as PNG files."""

import io
from pathlib import Path

import numpy as np

from zoo.storage.disk import atomic


def arrange_grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Arranges images in a grid, separated by one black pixel.

    Args:
      images: images (count, height, width, channels) uint8.
      columns: number of columns; the last row may be incomplete.

    Returns:
      (rows * (height + 1) - 1, columns * (width + 1) - 1, channels) uint8.
    """
    count, height, width, channels = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height + 1, width + 1, channels), "uint8")
    cells[:count, :height, :width] = images
    cells = cells.reshape(rows, columns, height + 1, width + 1, channels)
    grid = cells.transpose(0, 2, 1, 3, 4).reshape(
        rows * (height + 1), columns * (width + 1), channels
    )
    return grid[:-1, :-1]


def interpolation(model, rows: int, columns: int, seed: int) -> np.ndarray:
    """Returns a grid of images; each row interpolates between two random noise vectors.

    Spherical interpolation (White 2016, arXiv:1609.04468, section 2.1) preserves the norm of the
    noise; linear interpolation would not.
    """
    size = model.generator.input_shape[-1]
    start, end = np.random.default_rng(seed).standard_normal((2, rows, 1, size))
    lengths = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (start, end)]
    cosine = (start * end).sum(-1, keepdims=True) / (lengths[0] * lengths[1])
    angle = np.arccos(np.clip(cosine, -1, 1))
    part = np.linspace(0, 1, columns)[:, None]
    noise = (np.sin((1 - part) * angle) * start + np.sin(part * angle) * end) / np.sin(angle)
    noise = noise.reshape(rows * columns, size).astype("float32")
    return arrange_grid(to_uint8(predict_in_batches(model.generator, noise)), columns)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Writes pixels (height, width, 1 or 3) uint8 to a PNG file, atomically."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(stream.getvalue())


def make_images(model, count: int, seed: int) -> np.ndarray:
    """Returns `count` images of the generator of a model, uint8."""
    noise = np.random.default_rng(seed).standard_normal((count, model.generator.input_shape[-1]))
    return to_uint8(predict_in_batches(model.generator, noise.astype("float32")))


def predict_in_batches(model, inputs: np.ndarray):
    """Returns the outputs of a model as float32, computed in batches of 256 rows.

    `predict` would run under the distribution strategy in which the model was created.
    """
    import keras

    parts = [model(inputs[i : i + 256], training=False) for i in range(0, len(inputs), 256)]
    return keras.tree.map_structure(
        lambda *x: np.concatenate([np.asarray(a, "float32") for a in x]), *parts
    )


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Converts images in [-1, 1] to uint8."""
    return np.round((np.clip(images, -1, 1) + 1) * 127.5).astype("uint8")
