"""Opens a model to start from, whoever wrote it."""

from pathlib import Path

import keras

from zoo.errors import UsageError
from zoo.models.convert import published as convert
from zoo.saved.model import load_model, open_model


def open_source(source: str) -> keras.Model:
    """Returns the model of a source of weights.

    Args:
      source: a work directory, a .keras file, a folder that transformers wrote, or
        `keras_hub:PRESET`.

    Raises:
      UsageError: for anything else.
    """
    path = Path(source)
    if source.startswith("keras_hub:"):
        return convert.from_keras_hub(source.removeprefix("keras_hub:"))
    if path.is_dir() and convert.is_transformers(path):
        return convert.from_transformers(path)
    if path.is_dir():
        return load_model(path)
    if path.suffix == ".keras" and path.is_file():
        return open_model(path)
    raise UsageError(
        "init_from is a work directory or a .keras file, or a folder of transformers, or "
        f"keras_hub:PRESET. Received: {source!r}."
    )
