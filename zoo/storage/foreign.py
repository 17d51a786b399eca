"""Recognizes known files and folders that are given as a work directory by mistake."""

from pathlib import Path

from zoo.errors import UsageError, short
from zoo.storage.disk import content_of
from zoo.storage.transformers_files import CONVERTED


def refuse_foreign(path: str | Path, saved_config=None) -> None:
    """Raises `UsageError` if a path is of another known kind; the message names a command for it.

    Args:
      path: received as a work directory.
      saved_config: parsed content of its config.json, if it has one.
    """
    path = Path(path)
    start = f"zoo train RECIPE --workdir=W --config.init_from={path} trains a model from it"
    if path.suffix == ".keras" and path.is_file():
        kind, use = "is a .keras file", f"{start}, and zoo.load opens it in Python"
    elif path.is_file():
        kind, use = "is a file", "use a folder that `zoo train --workdir=W` wrote"
    elif isinstance(saved_config, dict) and "model_type" in saved_config:
        kind = f"is a folder of transformers (model_type {saved_config['model_type']!r})"
        use = f"{start}, and zoo.models.convert.from_transformers opens it in Python"
        if saved_config["model_type"] not in CONVERTED:
            use = f"only models of type {', '.join(CONVERTED)} are converted"
    elif isinstance(saved_config, dict) and str(saved_config.get("module", "")).startswith(
        "keras_hub"
    ):
        kind = f"is a KerasHub preset ({saved_config.get('class_name')})"
        use = start.replace(f"init_from={path}", f"init_from=keras_hub:{path}")
    elif (path / "prepared.json").exists():
        kind = "is an output folder of `zoo prepare`"
        use = f"zoo train RECIPE --config.data.source=prepared:{path} --workdir=W trains on it"
    elif (path / "saved_model.pb").exists():
        kind, use = "is a SavedModel", "tf.saved_model.load opens it"
    elif (
        isinstance(saved_config, dict)
        and saved_config
        and not {"format_version", "config"} & set(saved_config)
    ):
        keys = ", ".join(repr(short(key)) for key in list(saved_config)[:3])
        kind = f"has a config.json of another program (with keys {keys})"
        use = "use a folder that `zoo train --workdir=W` wrote"
    else:
        return
    raise UsageError(f"{path} {kind}, not a work directory: {use}.")


def check_has_config(path: str | Path) -> None:
    """Raises `UsageError` if a folder has no config.json; the message describes its content."""
    if not (Path(path) / "config.json").exists():
        refuse_foreign(path)
        raise UsageError(
            f"{path} is not a work directory: it has no config.json. {content_of(path)}"
        )
