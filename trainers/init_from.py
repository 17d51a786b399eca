"""Starting a run from the weights of another model."""

from pathlib import Path

import keras

from trainers.workdir import load_model
from zoo.errors import RunError, UsageError


def initialize(model: keras.Model, source: str) -> str:
    """Copies weights whose path and shape fit; the rest keep their fresh values.

    Args:
      model: a built model; changed in place.
      source: a work directory, or a .keras file.

    Returns:
      A sentence about what was copied, what is missing, and what does not fit.

    Raises:
      UsageError: where there is no such source, or nothing in it fits.
      RunError: where it cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        other = load_model(path)
    elif path.suffix == ".keras" and path.is_file():
        try:
            other = keras.saving.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            raise RunError(f"Cannot load {path}: {error}") from None
    else:
        raise UsageError(f"init_from is a work directory or a .keras file. Received: {source!r}.")
    found = {v.path: v for v in other.weights}
    missing, unfit, copied = [], [], 0
    for variable in model.weights:
        start = found.get(variable.path)
        if start is None:
            missing.append(variable.path)
        elif tuple(start.shape) != tuple(variable.shape):
            unfit.append(f"{variable.path} {tuple(start.shape)} -> {tuple(variable.shape)}")
        else:
            variable.assign(start.value)
            copied += 1
    if not copied:
        raise UsageError(f"Nothing in {source} fits this model: no weight has its name and shape.")
    report = f"init_from: {copied} of {len(model.weights)} weights from {source}"
    if missing:
        report += f"; not in it: {', '.join(missing)}"
    if unfit:
        report += f"; of another shape: {', '.join(unfit)}"
    return report
