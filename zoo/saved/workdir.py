"""A work directory as others read it: its recipe, tokenizer and where its model lies.

Loads no Keras.
"""

from collections.abc import Mapping
from pathlib import Path

from zoo.data.text import tokenizers
from zoo.errors import RunError, UsageError
from zoo.storage.disk import check_object, lies_at, read_json
from zoo.storage.foreign import check_has_config, refuse_foreign
from zoo.storage.transformers_files import check_model_type, is_transformers

FORMAT_VERSION = 1
LITERT, FLOATS = "model.tflite", "float.keras"
# Keys of config.json and their types.
_TYPES = {"source": str, "config": dict, "class_names": list, "data_fingerprint": str}


def read_config(workdir: str | Path) -> dict:
    """Returns the content of config.json. The values of its sections are not checked.

    Raises:
      UsageError: where the folder is not a work directory, or of another format.
      RunError: where the file is damaged.
    """
    path = Path(workdir) / "config.json"
    check_has_config(workdir)
    saved = read_json(path)
    if not isinstance(saved, dict) or "format_version" not in saved:
        refuse_foreign(workdir, saved)
    if not isinstance(saved, dict) or "config" not in saved:
        raise RunError(f"{path} is damaged: it holds no recipe.")
    if saved.get("format_version") != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format {saved.get('format_version')}; this version reads {FORMAT_VERSION}."
        )
    sections = saved["config"] if isinstance(saved["config"], dict) else {}
    lacking = [key for key in _TYPES if key not in saved]
    lacking += [key for key in ("model", "task", "data", "trainer") if key not in sections]
    if lacking:
        raise RunError(f"{path} is damaged: it lacks {lacking[0]!r}.")
    check_object(path, saved, **_TYPES)
    if not all(isinstance(name, str) for name in saved["class_names"]):
        raise RunError(f"{path} is damaged: names of classes are words.")
    if not isinstance(saved.get("tokenizer"), str | None):
        raise RunError(f"{path} is damaged: 'tokenizer' is no fingerprint.")
    if not isinstance(saved.setdefault("facts", {}), dict):
        raise RunError(f"{path} is damaged: 'facts' is no object.")
    return saved


def model_path(workdir: str | Path, checkpoint: str = "final") -> Path:
    """Returns where a model lies; raises `UsageError` where there is none."""
    if checkpoint not in ("final", "best"):
        raise UsageError(f"A checkpoint is 'final' or 'best'. Received: {checkpoint!r}.")
    path = Path(workdir) / ("best/model.keras" if checkpoint == "best" else "model.keras")
    if is_litert(read_config(workdir)):
        raise UsageError(
            f"{workdir} holds no Keras model: its model is the file {LITERT}, which `zoo evaluate` "
            "runs."
        )
    if not path.exists():
        hint = (
            "the recipe has data.validation_size=0, or no evaluation has run yet"
            if checkpoint == "best"
            else "training has not ended; run the same `zoo train` to go on"
        )
        raise UsageError(f"{workdir} holds no {checkpoint} model: {hint}.")
    return path


def is_litert(saved: Mapping) -> bool:
    """Whether a work directory's model is a LiteRT file; `saved` is what `read_config` returned."""
    value = saved["config"]
    for key in ("compress", "ptq", "format"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return isinstance(value, str) and value.startswith("litert")


def data_section(workdir: str | Path, saved: Mapping) -> dict:
    """Returns the section `data` of a work directory's recipe, with the tokenizer that lies in it.

    The text may have changed since, and a tokenizer made of it with it.

    Raises:
      UsageError: where the folder holds another tokenizer.
    """
    data = dict(saved["config"]["data"])
    if saved.get("tokenizer"):
        read_tokenizer(workdir, saved)
        data["tokenizer"] = str(Path(workdir) / "tokenizer.json")
    return data


def read_tokenizer(workdir: str | Path, saved: Mapping):
    """Returns the tokenizer that a work directory's model learned with.

    Args:
      workdir: the folder.
      saved: what `read_config` returned.

    Raises:
      UsageError: where the folder holds another one.
      RunError: where its file is damaged.
    """
    file = Path(workdir) / "tokenizer.json"
    tokenizer = tokenizers.load(file)
    if tokenizer.fingerprint != saved["tokenizer"]:
        raise UsageError(
            f"{file} is not the tokenizer that the model learned with: its fingerprint is "
            f"{tokenizer.fingerprint[:12]}…, that in config.json {saved['tokenizer'][:12]}…."
        )
    return tokenizer


def check_init_from(source: str) -> None:
    """Raises `UsageError` where `init_from` is nothing that a run can start from.

    Args:
      source: as `trainers.train.init_from.initialize` takes it, on this machine.
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
            "init_from is a work directory or a .keras file, or a folder of transformers, or "
            f"keras_hub:PRESET. Received: {source}. {lies_at(path)}"
        )
