"""Folders that transformers wrote. Loads no Keras."""

from pathlib import Path

from zoo.data.disk import read_json
from zoo.errors import UsageError

CONVERTED = ("gpt2", "llama")  # model types of `zoo.models.convert.FAMILIES`


def is_transformers(folder: str | Path) -> bool:
    """Returns whether a folder's config.json is one of transformers.

    Raises:
      RunError: where it cannot be read.
    """
    path = Path(folder) / "config.json"
    config = read_json(path) if path.exists() else None
    return isinstance(config, dict) and "model_type" in config


def check_model_type(path: Path, kind) -> None:
    """Raises `UsageError` where models of a type are not converted.

    Args:
      path: config.json of a folder of transformers.
      kind: its "model_type".
    """
    if kind not in CONVERTED:
        raise UsageError(
            f"{path}: models of type {', '.join(CONVERTED)} are converted. Received: {kind!r}."
        )
