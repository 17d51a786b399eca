"""Loads saved models. Imports Keras; `zoo.saved.workdir` does not."""

import warnings
from pathlib import Path

import keras

from zoo import registry
from zoo.errors import RunError, short
from zoo.layers.rounding import RANGES, quantize
from zoo.saved.workdir import model_path
from zoo.storage import remote
from zoo.storage.disk import open_file
from zoo.storage.weight_files import check_keras, limit_elements, open_weights


def load_model(workdir: str | Path, checkpoint: str = "final"):
    """Loads the model of a work directory; see `zoo.load`."""
    return open_model(model_path(remote.local(workdir), checkpoint))


def open_model(path: str | Path):
    """Loads the model of a .keras file, which may hold layers of the zoo, in Keras' safe mode.

    Raises:
      RunError: if the file is damaged, or holds layers that are not registered with Keras.
    """
    open_file(path).close()
    registry.import_builders()
    try:
        with limit_elements(path, check_keras(path)):
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
        if _is_quantized(path):
            quantize(model)
            with warnings.catch_warnings():
                # Keras warns of layers that are in two lists; it has loaded them by the first.
                warnings.filterwarnings("ignore", "Skipping nested container")
                model.load_weights(path)
        return model
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"Cannot load {path}: {short(error)}") from None


def _is_quantized(path: str | Path) -> bool:
    """Returns whether a .keras file holds quantization ranges."""
    with open_weights(path) as weights:
        return bool(weights.visit(lambda name: name.endswith(RANGES) or None))
