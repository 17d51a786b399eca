"""Starting a run from the weights of another model."""

from pathlib import Path

import keras

from trainers import keras_internals
from trainers.compress import low_rank, structured
from trainers.remote import local
from trainers.workdir import load_model, open_model, read_config
from zoo.errors import UsageError

# Settings of a block that say how it starts and trains, not what it computes.
_TRAINING_ONLY = frozenset({"dropout", "initializer_range", "output_range"})


def initialize(model: keras.Model, source: str, tokenizer=None, widths=()) -> str:
    """Copies weights whose path and shape fit; the rest keep their fresh values.

    Args:
      model: a built model; changed in place.
      source: a work directory, a .keras file, a folder that transformers wrote, or
        `keras_hub:PRESET`; the last two as `zoo.models.convert` takes them.
      tokenizer: of the run's data, of a text model.
      widths: of a recipe's section `compress.structured`: units that stay of the other model's.

    Returns:
      A sentence about what was copied, what is missing, what does not fit, and what the blocks of
      the other model compute otherwise: weights that fit can still be meant for other heads.

    Raises:
      UsageError: where there is no such source, or nothing in it fits, or a work directory's
        model learned with another tokenizer: its embeddings are of other tokens.
      RunError: where it cannot be read.
    """
    source = str(local(source))
    other = open_source(source)
    learned = read_config(source).get("tokenizer") if _is_work_directory(source) else None
    if tokenizer is not None and learned not in (None, tokenizer.fingerprint):
        raise UsageError(
            f"The model of {source} learned with another tokenizer: set data.tokenizer={source}."
        )
    if any(getattr(x, "quantization_mode", None) for x in keras_internals.all_layers(other)):
        raise UsageError(
            f"The kernels of {source} are integers of Keras: start from the model that was rounded."
        )
    found = {v.path: v.value for v in other.weights}
    found |= structured.start_values(widths, other) | low_rank.start_values(model, other)
    missing, unfit, copied = [], [], 0
    for variable in model.weights:
        start = found.get(variable.path)
        if start is None:
            missing.append(variable.path)
        elif tuple(start.shape) != tuple(variable.shape):
            unfit.append(f"{variable.path} {tuple(start.shape)} -> {tuple(variable.shape)}")
        else:
            variable.assign(start)
            copied += 1
    if not copied:
        raise UsageError(f"Nothing in {source} fits this model: no weight has its name and shape.")
    report = f"init_from: {copied} of {len(model.weights)} weights from {source}"
    if missing:
        report += f"; not in it: {', '.join(missing)}"
    if unfit:
        report += f"; of another shape: {', '.join(unfit)}"
    if tokenizer is not None and learned is None:
        report += "; its tokenizer does not come with it: see that tokens mean the same"
    if otherwise := _differing_settings(other, model):
        report += f"; with other settings: {', '.join(otherwise)}"
    return report


def _differing_settings(other: keras.Model, model: keras.Model) -> list[str]:
    blocks = {layer.name: getattr(layer, "settings", {}) for layer in other.layers}
    found = {}  # by setting: the blocks of a model are alike
    for layer in model.layers:
        for key, value in getattr(layer, "settings", {}).items():
            start = blocks.get(layer.name, {}).get(key, value)
            if start != value and key not in _TRAINING_ONLY:
                found.setdefault(key, f"{layer.name}.{key} {start} -> {value}")
    return list(found.values())


def _is_work_directory(source: str) -> bool:
    from zoo.models import convert

    return Path(source).is_dir() and not convert.is_transformers(source)


def open_source(source: str) -> keras.Model:
    """Returns the model of a source as `initialize` takes them."""
    from zoo.models import convert

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
