"""Loading of initial weights from every supported format."""

from pathlib import Path

import keras

from zoo.models.convert import published as convert
from zoo.saved.model import load_model, open_model
from zoo.saved.workdir import check_init_from
from zoo.storage.transformers_files import is_transformers


def open_source(source: str) -> keras.Model:
    """Returns the model with the initial weights of a run.

    Args:
      source: work directory, .keras file, folder written by transformers, or `keras_hub:PRESET`.

    Raises:
      UsageError: if `source` is none of these.
    """
    check_init_from(source)
    path = Path(source)
    if source.startswith("keras_hub:"):
        return convert.from_keras_hub(source.removeprefix("keras_hub:"))
    if path.is_dir() and is_transformers(path):
        return convert.from_transformers(path)
    return load_model(path) if path.is_dir() else open_model(path)
