"""Makes the paths in a configuration absolute, so that they are valid in any folder."""

from pathlib import Path

from zoo.data.pixels import PIXELS
from zoo.data.text.tokenizers import KINDS
from zoo.errors import UsageError

# Values that are names, even if a folder of that name exists.
_NAMES = ("none", "imagenet", PIXELS, *KINDS)


def make_absolute(config) -> None:
    """Makes the paths of a configuration with all sections absolute, in place.

    Raises:
      UsageError: for a remote path if a local file is needed, or for an unknown user.
    """
    kind, colon, path = config.data.source.partition(":")
    _refuse_remote("data.source", path)
    if kind in ("text", "pairs", "npz", "folder", "prepared") and colon:
        if not path:
            raise UsageError(f"data.source={kind}:PATH requires a path. Received: '{kind}:'.")
        config.data.source = f"{kind}{colon}{_expanded(path).absolute()}"
    for section, key in (
        (config, "init_from"), (config.data, "tokenizer"), (config.data, "manual_dir"),
        (config.model, "weights"), (config.task, "classifier"),
        (config.compress.distill, "teacher"),
    ):  # fmt: skip
        value = section.get(key)
        if not isinstance(value, str) or (key == "init_from" and "://" in value):
            continue
        _refuse_remote(key, value)
        if value and value not in _NAMES and not value.startswith("keras_hub:"):
            path = _expanded(value).absolute()
            # `init_from` may be missing when a run is resumed, and must have the same name then.
            if exists(path) or key == "init_from":
                section[key] = str(path)


def exists(path: Path) -> bool:
    """Returns whether a path exists; False for names that no file can have."""
    try:
        return path.exists()
    except OSError:
        return False


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(
            f"The user in a path that starts with ~ must have a home folder. Received: {path!r}."
        ) from None


def _refuse_remote(key: str, path: str) -> None:
    if "://" in path:
        raise UsageError(
            f"{key} must be a local path. Received: {path!r}. Copy the data to this machine first."
        )
