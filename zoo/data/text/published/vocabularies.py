"""Vocabularies of published models, encoded by the library of their file.

The ids are those of the library for the whole text: these vocabularies are never cut into pieces.
Names of special tokens inside a text are text, never control tokens. The libraries tokenizers and
sentencepiece are imported on first use.
"""

import base64
import json
from collections.abc import Callable, Mapping

import numpy as np

from zoo.data.text.special_tokens import SpecialIds
from zoo.data.text.vocabularies import BYTE_OF, SPACE, Vocabulary, tokenizers_library
from zoo.errors import RunError, short

TOKENIZERS, SENTENCEPIECE = "tokenizers", "sentencepiece"
MAX_ID = 2**20

# Components of tokenizer.json that byte pair encodings use. Other components are refused: the
# library can abort the process on some values.
_NORMALIZERS = frozenset(
    ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Replace", "Sequence"]
)
_PRE_TOKENIZERS = frozenset(["ByteLevel", "Split", "Metaspace", "Digits", "Sequence"])
_UNSUPPORTED = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


def vocabulary(payload: Mapping) -> "Published":
    """Returns the vocabulary of a payload; raises `ValueError` if its library is unknown."""
    kinds = {TOKENIZERS: LibraryBytePairs, SENTENCEPIECE: LibrarySentencePieces}
    if payload["library"] not in kinds:
        raise ValueError(f"there is no library {payload['library']!r}")
    return kinds[payload["library"]](payload)


class Published(Vocabulary):
    """Base of the vocabularies; the payload has "library", "model", "start", "end" and "stops".

    "model" is the content of the file, and the others are ids of special tokens: of the token
    before a document and after it, None if there is none, and of all tokens that end a text.
    """

    threads = True
    cuts = False

    def __init__(self, payload: Mapping):
        self.payload = dict(payload)
        self.control: set[int] = set()
        self.unknown: int | None = None
        # Whether the library inserts a space before a text.
        self.inserts_space = False
        self._read(payload["model"])
        ids = [payload["start"], payload["end"], *payload["stops"]]
        for i in ids:
            if i is not None and not (type(i) is int and 0 <= i < len(self.names)):
                raise ValueError(f"a special token has the id {i}")
        self.special = SpecialIds(
            pad=0, unknown=self.unknown, start=payload["start"], end=payload["end"],
            separator=None, mask=None, stops=tuple(payload["stops"]),
            control=frozenset(self.control.union(i for i in ids if i is not None)),
        )  # fmt: skip
        for i in self.special.control:
            self.spellings[i] = b""

    def _read(self, model: str) -> None:
        """Sets the model of the library, `names`, `spellings`, `control` and `unknown`."""
        raise NotImplementedError

    def encode_with_offsets(self, piece):
        raise NotImplementedError

    def tidy(self, text: str, before: str = "") -> str:
        """Removes the space that the library inserts before a text."""
        return text.removeprefix(" ") if self.inserts_space and not before else text


class LibraryBytePairs(Published):
    """Byte pair encoding of a tokenizer.json, by the library tokenizers."""

    def _read(self, model):
        parts = restricted(json.loads(model))
        self._model = _call(lambda: tokenizers_library().Tokenizer.from_str(json.dumps(parts)))
        # Otherwise "</s>" in a text would end it.
        self._model.encode_special_tokens = True
        ids = self._model.get_vocab(with_added_tokens=True)
        if not ids or max(ids.values()) >= MAX_ID:
            raise ValueError(f"the ids are not from 0 to {MAX_ID - 1:,}")
        self.names = [""] * (max(ids.values()) + 1)
        for name, i in ids.items():
            self.names[i] = name
        steps = [step["type"] for step in components(parts["pre_tokenizer"])]
        is_byte_level = "ByteLevel" in steps
        added = {ids[token["content"]]: token for token in parts["added_tokens"]}
        has_bytes = parts["model"].get("byte_fallback", False)
        self.spellings = [
            _with_spaces(name, has_bytes) if not is_byte_level
            # The content of an added token is not in GPT-2's notation.
            else name.encode() if i in added else _byte_level(name)
            for i, name in enumerate(self.names)
        ]  # fmt: skip
        self.control = {i for i, token in added.items() if token["special"]}
        self.control |= {i for i, name in enumerate(self.names) if name == ""}
        self.unknown = ids.get(parts["model"].get("unk_token"))
        first = self._encode("a")
        self.inserts_space = bool(len(first)) and self.spellings[int(first[0])].startswith(b" ")

    def _encode(self, text: str) -> np.ndarray:
        (encoding,) = self._model.encode_batch_fast([text], add_special_tokens=False)
        return np.array(encoding.ids, np.int32)

    def encode(self, pieces):
        encodings = _call(lambda: self._model.encode_batch_fast(pieces, add_special_tokens=False))
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


class LibrarySentencePieces(Published):
    """A tokenizer.model, by the library sentencepiece; "model" is the file in base64."""

    def _read(self, model):
        import sentencepiece

        data = base64.b64decode(model, validate=True)
        self._model = sentencepiece.SentencePieceProcessor(model_proto=data)
        size = self._model.get_piece_size()
        if not 0 < size <= MAX_ID:
            raise ValueError(f"the number of pieces, {size}, is not from 1 to {MAX_ID:,}")
        self.names = [self._model.id_to_piece(i) for i in range(size)]
        self.spellings = [
            _with_spaces(name, self._model.is_byte(i)) for i, name in enumerate(self.names)
        ]
        self.unknown = self._model.unk_id()
        self.control = {i for i in range(size) if self._model.is_control(i)} | {self.unknown}
        self.inserts_space = self._model.encode("a", out_type=str)[0].startswith(SPACE)

    def encode(self, pieces):
        return self._model.encode(list(pieces), num_threads=1, return_type="numpy")


def restricted(parts) -> dict:
    """Returns a tokenizer.json with the components that encode text, and no others.

    Raises:
      ValueError: if it is no byte pair encoding, or has a component that is not supported.
    """
    if not isinstance(parts, dict) or not isinstance(parts.get("model"), dict):
        raise ValueError("it has no model")
    model = parts["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise ValueError(f"model.type must be BPE. Received: {kind!r}")
    for key in _UNSUPPORTED:
        if model.get(key):
            raise ValueError(f"model.{key}={model[key]!r} is not supported")
    for key, known in (("normalizer", _NORMALIZERS), ("pre_tokenizer", _PRE_TOKENIZERS)):
        for step in components(parts.get(key)):
            if step["type"] not in known:
                raise ValueError(f"the {key} {step['type']!r} is not supported")
    added = parts.get("added_tokens") or []
    for token in added:
        if not isinstance(token.get("content"), str) or not token["content"]:
            raise ValueError("an added token has no content")
    return {
        "version": parts.get("version", "1.0"),
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": parts.get("normalizer"),
        "pre_tokenizer": parts.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": None,
        "model": model,
    }


def components(part) -> list[dict]:
    """Returns a component of a tokenizer.json, or those of a sequence, in order."""
    if part is None:
        return []
    steps = [part]
    for key in ("normalizers", "pretokenizers", "processors"):
        if part["type"] == "Sequence" and key in part:
            steps += [step for inner in part[key] for step in components(inner)]
    return steps


def _call(function: Callable):
    """Calls the library tokenizers; converts its errors, and panics of Rust, to `RunError`."""
    try:
        return function()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise RunError(f"the library tokenizers failed: {short(error)}") from None


def _byte_level(name: str) -> bytes:
    """Returns the bytes of a token in GPT-2's notation; other characters are UTF-8."""
    return b"".join(
        bytes([BYTE_OF[c]]) if c in BYTE_OF else c.encode("utf-8", "replace") for c in name
    )


def _with_spaces(name: str, has_bytes: bool) -> bytes:
    """Returns the bytes of a token in SentencePiece's notation."""
    if has_bytes and len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    return name.replace(SPACE, " ").encode("utf-8", "replace")
