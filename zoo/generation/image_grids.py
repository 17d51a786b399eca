"""Sheets of made pictures, as PNG files."""

import io
from pathlib import Path

import numpy as np

from zoo.storage.disk import atomic


def sheet(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Lays pictures out in rows, a black pixel apart.

    Args:
      pictures: (count, height, width, channels) uint8.
      columns: of the sheet; the last row may be short.

    Returns:
      (rows * (height + 1) - 1, columns * (width + 1) - 1, channels) uint8.
    """
    count, height, width, channels = pictures.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height + 1, width + 1, channels), "uint8")
    cells[:count, :height, :width] = pictures
    cells = cells.reshape(rows, columns, height + 1, width + 1, channels)
    whole = cells.transpose(0, 2, 1, 3, 4).reshape(
        rows * (height + 1), columns * (width + 1), channels
    )
    return whole[:-1, :-1]


def interpolation(model, rows: int, columns: int, seed: int) -> np.ndarray:
    """Returns a sheet each of whose rows goes from one random noise to another.

    The way between is that of equal angles (White 2016, arXiv:1609.04468, section 2.1): the noise
    keeps its length, which a straight line would not.
    """
    size = model.generator.input_shape[-1]
    start, end = np.random.default_rng(seed).standard_normal((2, rows, 1, size))
    lengths = [np.linalg.norm(x, axis=-1, keepdims=True) for x in (start, end)]
    cosine = (start * end).sum(-1, keepdims=True) / (lengths[0] * lengths[1])
    angle = np.arccos(np.clip(cosine, -1, 1))
    part = np.linspace(0, 1, columns)[:, None]
    noise = (np.sin((1 - part) * angle) * start + np.sin(part * angle) * end) / np.sin(angle)
    noise = noise.reshape(rows * columns, size).astype("float32")
    return sheet(to_bytes(in_batches(model.generator, noise)), columns)


def save_sheet(path: Path, pixels: np.ndarray) -> None:
    """Writes (height, width, 1 or 3) uint8 as a PNG file, atomically."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write(stream.getvalue())


def make_pictures(model, count: int, seed: int) -> np.ndarray:
    """Returns so many pictures of a generator, uint8."""
    noise = np.random.default_rng(seed).standard_normal((count, model.generator.input_shape[-1]))
    return to_bytes(in_batches(model.generator, noise.astype("float32")))


def in_batches(model, inputs: np.ndarray):
    """Returns a model's outputs, float32, computed some hundred rows at a time.

    `predict` would compute them under the strategy that the model was made with.
    """
    import keras

    parts = [model(inputs[i : i + 256], training=False) for i in range(0, len(inputs), 256)]
    return keras.tree.map_structure(
        lambda *x: np.concatenate([np.asarray(a, "float32") for a in x]), *parts
    )


def to_bytes(pictures: np.ndarray) -> np.ndarray:
    """Turns pictures in [-1, 1] into uint8."""
    return np.round((np.clip(pictures, -1, 1) + 1) * 127.5).astype("uint8")
