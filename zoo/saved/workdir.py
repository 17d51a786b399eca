"""Reads the config, the tokenizer and the model path of a work directory. Does not import Keras."""

from collections.abc import Mapping
from pathlib import Path

from zoo.data.text import tokenizers
from zoo.errors import RunError, UsageError
from zoo.storage.disk import check_object, content_of, read_json
from zoo.storage.foreign import check_has_config, refuse_foreign
from zoo.storage.transformers_files import check_model_type, is_transformers

FORMAT_VERSION = 2
LITERT, FLOATS = "model.tflite", "float.keras"
# Keys of config.json and their types.
_TYPES = {"source": str, "config": dict, "class_names": list, "data_fingerprint": str}


def read_config(workdir: str | Path) -> dict:
    """Returns the content of config.json. The values in its sections are not checked.

    Raises:
      UsageError: if the folder is not a work directory, or has another format version.
      RunError: if the file is damaged.
    """
    path = Path(workdir) / "config.json"
    check_has_config(workdir)
    saved_config = read_json(path)
    if not isinstance(saved_config, dict) or "format_version" not in saved_config:
        refuse_foreign(workdir, saved_config)
    if not isinstance(saved_config, dict) or "config" not in saved_config:
        raise RunError(f"{path} is damaged: missing key 'config'.")
    if saved_config.get("format_version") != FORMAT_VERSION:
        raise UsageError(
            f"{path} must have format_version {FORMAT_VERSION}. Received: "
            f"{saved_config.get('format_version')}. Use the version of the zoo that wrote it."
        )
    sections = saved_config["config"] if isinstance(saved_config["config"], dict) else {}
    missing = [key for key in _TYPES if key not in saved_config]
    missing += [key for key in ("model", "task", "data", "trainer") if key not in sections]
    if missing:
        raise RunError(f"{path} is damaged: missing key {missing[0]!r}.")
    check_object(path, saved_config, **_TYPES)
    if not all(isinstance(name, str) for name in saved_config["class_names"]):
        raise RunError(f"{path} is damaged: 'class_names' must contain strings.")
    if not isinstance(saved_config.get("tokenizer"), str | None):
        raise RunError(f"{path} is damaged: 'tokenizer' must be a string.")
    if not isinstance(saved_config.setdefault("facts", {}), dict):
        raise RunError(f"{path} is damaged: 'facts' must be an object.")
    return saved_config


def model_path(workdir: str | Path, checkpoint: str = "final") -> Path:
    """Returns the path of the "final" or the "best" model; raises `UsageError` if it is missing."""
    if checkpoint not in ("final", "best"):
        raise UsageError(f"checkpoint must be 'final' or 'best'. Received: {checkpoint!r}.")
    path = Path(workdir) / ("best/model.keras" if checkpoint == "best" else "model.keras")
    if is_litert(read_config(workdir)):
        raise UsageError(
            f"{workdir} contains no Keras model, only the LiteRT file {LITERT}, which "
            "`zoo evaluate` can run."
        )
    if not path.exists():
        hint = (
            "the recipe has data.validation_size=0, or no evaluation has run yet"
            if checkpoint == "best"
            else "training has not finished; run the same `zoo train` to continue it"
        )
        raise UsageError(f"{workdir} contains no {checkpoint} model: {hint}.")
    return path


def is_litert(saved_config: Mapping) -> bool:
    """Returns whether a work directory's model is a LiteRT file, by the result of `read_config`."""
    value = saved_config["config"]
    for key in ("compress", "ptq", "format"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return isinstance(value, str) and value.startswith("litert")


def data_section(workdir: str | Path, saved_config: Mapping) -> dict:
    """Returns the section `data` of a work directory's config with the path of its own tokenizer.

    Training a tokenizer anew could give another one, because the text may have changed.

    Raises:
      UsageError: if the folder holds another tokenizer than the config names.
    """
    data = dict(saved_config["config"]["data"])
    if saved_config.get("tokenizer"):
        read_tokenizer(workdir, saved_config)
        data["tokenizer"] = str(Path(workdir) / "tokenizer.json")
    return data


def read_tokenizer(workdir: str | Path, saved_config: Mapping):
    """Returns the tokenizer that a work directory's model was trained with.

    Args:
      workdir: the folder.
      saved_config: result of `read_config`.

    Raises:
      UsageError: if the folder holds another tokenizer.
      RunError: if the tokenizer file is damaged.
    """
    file = Path(workdir) / "tokenizer.json"
    tokenizer = tokenizers.load(file)
    if tokenizer.fingerprint != saved_config["tokenizer"]:
        raise UsageError(
            f"{file} is not the tokenizer that the model was trained with: its fingerprint is "
            f"{tokenizer.fingerprint[:12]}…, config.json has {saved_config['tokenizer'][:12]}…."
        )
    return tokenizer


def check_init_from(source: str) -> None:
    """Raises `UsageError` if a run cannot be initialized from `init_from`.

    Args:
      source: argument of `trainers.train.init_from.initialize`, with a local path.
    """
    path = Path(source)
    if source.startswith("keras_hub:"):
        return
    if path.is_dir() and is_transformers(path):
        config = path / "config.json"
        check_model_type(config, read_json(config)["model_type"])
    elif path.is_dir():
        model_path(path)
    elif not (path.suffix == ".keras" and path.is_file()):
        raise UsageError(
            "init_from must be a work directory, a .keras file, a folder of transformers or "
            f"keras_hub:PRESET. Received: {source}. {content_of(path)}"
        )
