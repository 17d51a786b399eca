"""Recognizes model folders of the library transformers. Does not import Keras."""

from pathlib import Path

from zoo.errors import UsageError
from zoo.storage.disk import read_json

# Model types of `zoo.models.convert.published.FAMILIES`.
CONVERTED = ("gpt2", "gemma3_text", "llama", "longformer", "mistral", "qwen2", "qwen3")


def is_transformers(folder: str | Path) -> bool:
    """Returns whether a folder's config.json was written by transformers.

    Raises:
      RunError: if config.json cannot be read.
    """
    path = Path(folder) / "config.json"
    config = read_json(path) if path.exists() else None
    return isinstance(config, dict) and "model_type" in config


def check_model_type(path: Path, kind) -> None:
    """Raises `UsageError` if models of a type cannot be converted.

    Args:
      path: path of the config.json, for the message.
      kind: its "model_type".
    """
    if kind not in CONVERTED:
        raise UsageError(
            f"{path}: model_type must be one of {', '.join(CONVERTED)}. Received: {kind!r}."
        )
