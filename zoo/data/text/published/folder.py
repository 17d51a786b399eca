"""Reads the tokenizer of a folder that the library transformers wrote.

| files | library |
|---|---|
| tokenizer.json | tokenizers |
| tokenizer.model | sentencepiece |
| vocab.json, merges.txt | tokenizers, with the words of GPT-2 |

The first ones in the folder count. Code that a configuration names is never run.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from zoo.data.text import tokenizers
from zoo.data.text.published.vocabularies import SENTENCEPIECE, TOKENIZERS, components, vocabulary
from zoo.errors import RunError, UsageError, short
from zoo.storage.bounds import JSON_EXPANSION
from zoo.storage.disk import read_bytes, read_json

_JSON, _MODEL = "tokenizer.json", "tokenizer.model"
_PAIR = ("vocab.json", "merges.txt")
_SAVE = (
    "Save the folder with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of "
    "transformers, which writes tokenizer.json."
)


def has_tokenizer(folder: str | Path) -> bool:
    """Returns whether a folder has the files of a tokenizer."""
    folder = Path(folder)
    return any((folder / name).exists() for name in (_JSON, _MODEL, _PAIR[0]))


def read_folder(folder: str | Path) -> "tokenizers.Tokenizer":
    """Returns the tokenizer of a folder with its special and stop tokens.

    The tokens that end a text are eos_token of tokenizer_config.json, and eos_token_id of
    generation_config.json and config.json. A document begins with a token if the tokenizer's file,
    or add_bos_token of tokenizer_config.json, says so.

    Raises:
      UsageError: if the folder has no tokenizer, or one that is not supported.
      RunError: if a file is damaged.
    """
    folder = Path(folder)
    config = _read(folder / "config.json")
    settings = _read(folder / "tokenizer_config.json")
    path, payload, template_start = _read_model(folder, config.get("model_type"))
    try:
        names = vocabulary({**payload, "start": None, "end": None, "stops": []}).names
    except RunError as error:
        raise RunError(f"{path} is damaged: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UsageError(f"{path} is not supported: {short(error)}. {_SAVE}") from None
    ids = {name: i for i, name in enumerate(names)}

    def token(key):
        value = settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return ids.get(value) if isinstance(value, str) else None

    stops = [token("eos_token")]
    for file in ("generation_config.json", "config.json"):
        value = _read(folder / file).get("eos_token_id")
        stops += value if isinstance(value, list) else [value]
    stops = list(dict.fromkeys(i for i in stops if i is not None))
    start = ids.get(template_start)
    if isinstance(adds_start := settings.get("add_bos_token"), bool):
        first = token("bos_token")
        first = config.get("bos_token_id") if first is None else first
        start = first if adds_start else None
    for i in [start, *stops]:
        if i is not None and not (type(i) is int and 0 <= i < len(names)):
            raise RunError(
                f"{folder}: ids of special tokens must be from 0 to {len(names) - 1}, the "
                f"vocabulary of {path.name}. Received: {i!r}."
            )
    payload |= {"start": start, "end": stops[0] if stops else None, "stops": stops}
    return tokenizers.Tokenizer(tokenizers.PUBLISHED, "none", payload, {})


def _read(path: Path) -> dict:
    """Returns the JSON object of a file; {} if there is no such file."""
    values = read_json(path) if path.exists() else {}
    if not isinstance(values, dict):
        raise RunError(f"{path} is damaged: it must contain a JSON object.")
    return values


def _read_model(folder: Path, model_type) -> tuple[Path, dict, str | None]:
    """Returns the path, the payload without ids, and the name of the token before a document."""
    path = folder / _JSON
    if path.exists():
        parts = _read(path)
        payload = {"library": TOKENIZERS, "model": json.dumps(parts)}
        return path, payload, _first_of_template(parts.get("post_processor"))
    path = folder / _MODEL
    if path.exists():
        data = read_bytes(path, 4)
        # As transformers: a Llama's text begins with <s> unless add_bos_token is false.
        return path, {"library": SENTENCEPIECE, "model": base64.b64encode(data).decode()}, "<s>"
    path = folder / _PAIR[0]
    if not path.exists() or not (folder / _PAIR[1]).exists():
        raise UsageError(
            f"{folder} contains no tokenizer: neither {_JSON} nor {_MODEL}, nor {_PAIR[0]} with "
            f"{_PAIR[1]}."
        )
    if model_type != "gpt2":
        raise UsageError(
            f"{path}: the words of a tokenizer of model_type={model_type!r} are not in this file. "
            f"{_SAVE}"
        )
    return path, {"library": TOKENIZERS, "model": json.dumps(_of_gpt2(folder))}, None


def _of_gpt2(folder: Path) -> dict:
    """Returns the tokenizer.json of GPT-2 for vocab.json and merges.txt."""
    vocab, merges = _read(folder / _PAIR[0]), folder / _PAIR[1]
    try:
        lines = read_bytes(merges, JSON_EXPANSION).decode().split("\n")
    except UnicodeDecodeError:
        raise RunError(f"{merges} is damaged: it is not UTF-8 text.") from None
    lines = [line for line in lines if line.strip() and not line.startswith("#version")]
    end = "<|endoftext|>"
    added = [
        {"id": vocab[end], "content": end, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
    ] if end in vocab else []  # fmt: skip
    return {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True,
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": lines},
    }  # fmt: skip


def _first_of_template(processor: Mapping | None) -> str | None:
    """Returns the name of the special token that a post-processor puts before a text."""
    try:
        for step in components(processor):
            if step["type"] == "TemplateProcessing":
                first = step["single"][0]
                return first["SpecialToken"]["id"] if "SpecialToken" in first else None
    except (KeyError, IndexError, TypeError):
        return None
    return None
