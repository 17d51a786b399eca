"""Opens a model to start from, whoever wrote it."""

from pathlib import Path

import keras

from zoo.models.convert import published as convert
from zoo.saved.model import load_model, open_model
from zoo.saved.workdir import check_init_from
from zoo.storage.transformers_files import is_transformers


def open_source(source: str) -> keras.Model:
    """Returns the model of a source of weights.

    Args:
      source: a work directory, a .keras file, a folder that transformers wrote, or
        `keras_hub:PRESET`.

    Raises:
      UsageError: for anything else.
    """
    check_init_from(source)
    path = Path(source)
    if source.startswith("keras_hub:"):
        return convert.from_keras_hub(source.removeprefix("keras_hub:"))
    if path.is_dir() and is_transformers(path):
        return convert.from_transformers(path)
    return load_model(path) if path.is_dir() else open_model(path)
