"""Tokenizers: convert text to token ids and back.

    tokenizer = train("bpe", documents, 8000)
    tokenizer.save("tokenizer.json")
    for ids in load("tokenizer.json").encode_documents(documents): …

| kind | token | white space | unknown text |
| --- | --- | --- | --- |
| character | a character (code point) | kept | <unk> |
| byte | a byte of UTF-8 | kept | none |
| word | a word, a punctuation mark or an end of line | dropped | <unk> |
| wordpiece | a part of a word, or a punctuation mark | dropped | <unk> per word |
| bpe | frequent bytes of a word and the preceding space | kept | none |
| sentencepiece | likely characters of a word and the preceding space | kept | bytes |

"byte", "bpe" and "sentencepiece" are lossless:
`decode(encode(text)) == normalize(text, normalization)`. So is "character" if the vocabulary
contains all characters. No text is encoded as a special token, not even "<end>".

Long text is cut into pieces of at most `PIECE_LENGTH` characters, before the last space or end of
line that follows another character. A token of every kind ends there, so the ids are those of the
whole text (for "sentencepiece" up to rounding of log-probabilities). Text without such a place is
cut after `PIECE_LENGTH` characters; kinds that keep white space stay lossless.

Tokenizers of published models (`zoo.data.text.published`) have the kind "published". They are not
trained here, and encode a text as a whole.
"""

import json
import logging
import os
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from zoo.data.text.published.vocabularies import vocabulary as published_vocabulary
from zoo.data.text.special_tokens import SPECIAL
from zoo.data.text.vocabularies import (
    NO_TEXT,
    BytePairs,
    Bytes,
    Characters,
    SentencePieces,
    WordPieces,
    Words,
)
from zoo.errors import RunError, UsageError, near_names, short
from zoo.storage import disk
from zoo.storage.bounds import JSON_EXPANSION

_LOG = logging.getLogger(__name__)

_KINDS = {
    "character": Characters,
    "byte": Bytes,
    "word": Words,
    "wordpiece": WordPieces,
    "bpe": BytePairs,
    "sentencepiece": SentencePieces,
}
KINDS = tuple(_KINDS)
PUBLISHED = "published"  # the kind of the tokenizers of `zoo.data.text.published.folder`
ONLY_CLM = (
    "Only task.name=clm supports the tokenizer of a published model. Set data.tokenizer to one of "
    f"{', '.join(KINDS)}."
)
_VOCABULARIES = {**_KINDS, PUBLISHED: published_vocabulary}

# Arabic yeh, alef maksura and kaf, which occur in Persian text of some keyboards and code pages.
_PERSIAN = {"\u064a": "\u06cc", "\u0649": "\u06cc", "\u0643": "\u06a9"}
NORMALIZATIONS = ("NFC", "NFKC", "none", "persian")

FORMAT_VERSION = 1
MAX_VOCABULARY = 2**20  # tokens; the libraries allocate memory for the requested size
PIECE_LENGTH = 8192
_JOB_LENGTH = 8 * PIECE_LENGTH  # characters that a thread encodes at a time
_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)


def normalize(text: str, normalization: str) -> str:
    """Normalizes Unicode text.

    Args:
      text: any str. Lone surrogates become U+FFFD, surrogate pairs their character.
      normalization: "none"; "NFC" or "NFKC" of Unicode; or "persian": NFC, then the Arabic
        letters yeh, alef maksura and kaf become their Persian equivalents.
    """
    if normalization not in NORMALIZATIONS:
        raise UsageError(
            f"There is no normalization {normalization!r}."
            f"{near_names(normalization, NORMALIZATIONS)} "
            f"Known: {', '.join(NORMALIZATIONS)}."
        )
    if not isinstance(text, str):
        raise UsageError(f"The text must be a str. Received: {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if normalization == "none" or text.isascii():
        return text
    form = "NFKC" if normalization == "NFKC" else "NFC"
    # Characters are never composed across lines, and normalized lines are five times as fast.
    text = "\n".join([unicodedata.normalize(form, line) for line in text.split("\n")])
    if normalization == "persian":
        # After NFC, because yeh with hamza above is another letter.
        for arabic, persian in _PERSIAN.items():
            text = text.replace(arabic, persian)
    return text


def train(
    kind: str, documents: Iterable[str], vocabulary_size: int = 0, normalization: str = "NFC"
) -> "Tokenizer":
    """Trains a tokenizer; the result is deterministic.

    "wordpiece" and "sentencepiece" hold the whole text in memory, "word" and "bpe" its different
    words. Sample some hundred MB of a large corpus.

    Args:
      kind: one of KINDS.
      documents: texts; read once.
      vocabulary_size: number of tokens, SPECIAL included. 0 means all characters for "character"
        (otherwise the most frequent ones) and 262 for "byte"; other kinds need a size. If the text
        supports fewer tokens, a line on stderr reports it.
      normalization: see `normalize`; part of the tokenizer.

    Raises:
      UsageError: if the kind, the normalization or the size is invalid.
      RunError: if there is no text.
    """
    if kind not in KINDS:
        raise UsageError(
            f"There is no tokenizer {kind!r}.{near_names(kind, KINDS)} Known: {', '.join(KINDS)}."
        )
    _check_size(kind, vocabulary_size)
    normalize("", normalization)
    counts = {"documents": 0, "bytes": 0}

    def pieces():
        for document in _texts(documents):
            text = normalize(document, normalization)
            counts["documents"] += 1
            counts["bytes"] += len(text.encode())
            yield from filter(None, cut(text))

    pieces = pieces()
    first = next(pieces, None)
    if first is None:
        raise RunError(NO_TEXT)
    payload = _KINDS[kind].train(chain([first], pieces), int(vocabulary_size))
    tokenizer = Tokenizer(kind, normalization, payload, counts)
    if tokenizer.vocabulary_size < vocabulary_size:
        _LOG.warning(
            f"the vocabulary has {tokenizer.vocabulary_size:,} {kind} tokens: the text does "
            f"not support {vocabulary_size:,}"
        )
    return tokenizer


def _check_size(kind: str, size):
    is_integer = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not is_integer or not 0 <= size <= MAX_VOCABULARY:
        raise UsageError(
            f"vocabulary_size must be an integer from 0 to {MAX_VOCABULARY:,}. Received: {size!r}."
        )
    if size == 0 and kind not in ("character", "byte"):
        raise UsageError(
            f"vocabulary_size must be positive for a {kind!r} tokenizer, such as 8000. "
            f"Received: {size}."
        )


def _texts(documents: Iterable[str]) -> Iterator[str]:
    # A str is an iterable of str, too.
    if isinstance(documents, str | bytes):
        raise UsageError(
            "documents must be an iterable of texts, such as a list. Received: a single text."
        )
    return iter(documents)


def cut(text: str) -> Iterator[str]:
    """Yields pieces of at most PIECE_LENGTH characters (see the module); "" for an empty text."""
    start = 0
    while len(text) - start > PIECE_LENGTH:
        # One more character for the look-ahead.
        match = _CUT.match(text, start, start + PIECE_LENGTH + 1)
        end = match.end() if match else start + PIECE_LENGTH
        yield text[start:end]
        start = end
    yield text[start:]


class Tokenizer:
    """An immutable tokenizer, created by `train` or `load`.

    Attributes:
      kind: one of KINDS, or PUBLISHED.
      vocabulary_size: V, SPECIAL included.
      pad_id, unknown_id, start_id, end_id, separator_id, mask_id: ids of special tokens; None for
        a token that a published tokenizer lacks.
      special: these ids and more, see `zoo.data.text.special_tokens.SpecialIds`.
      normalization: normalization of text in `encode`; see `normalize`.
      fingerprint: hex sha256 of everything that determines the ids.
      trained_on: {"documents": …, "bytes": …}, counts of the normalized training text.
      token_bytes: (V,) int32, number of UTF-8 bytes of each token, 0 for SPECIAL. In lossless
        kinds, the sum over a text is its length; in "word" and "wordpiece", a token includes the
        space that `decode` inserts before it.
      starts_word: (V,) bool, whether a token begins a word (or the space before it), for masking
        of whole words. True for SPECIAL.
    """

    def __init__(self, kind: str, normalization: str, payload, trained_on: Mapping):
        self.kind, self.normalization = kind, normalization
        self.trained_on = dict(trained_on)
        self._vocabulary = _VOCABULARIES[kind](payload)
        if kind != PUBLISHED and tuple(self._vocabulary.names[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"the first tokens are not {', '.join(SPECIAL)}")
        self.special = ids = self._vocabulary.special
        self.pad_id, self.unknown_id, self.start_id = ids.pad, ids.unknown, ids.start
        self.end_id, self.separator_id, self.mask_id = ids.end, ids.separator, ids.mask
        self.vocabulary_size = len(self._vocabulary.names)
        self.token_bytes = np.array([len(b) for b in self._vocabulary.spellings], np.int32)
        self.starts_word = self._vocabulary.starts_word
        self.fingerprint = disk.json_digest(self._content())

    def __repr__(self):
        return (
            f"Tokenizer(kind={self.kind!r}, vocabulary_size={self.vocabulary_size}, "
            f"normalization={self.normalization!r})"
        )

    def __reduce__(self):
        # Objects of the libraries cannot be pickled.
        payload = self._vocabulary.payload
        return Tokenizer, (self.kind, self.normalization, payload, self.trained_on)

    def _content(self) -> dict:
        return {
            "kind": self.kind,
            "normalization": self.normalization,
            "vocabulary_size": self.vocabulary_size,
            "payload": self._vocabulary.payload,
        }

    def _data(self) -> dict:
        return {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "trained_on": self.trained_on,
            **self._content(),
        }

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids (n,) int32 of a text, without special tokens."""
        pieces = self._pieces(normalize(text, self.normalization))
        return np.concatenate(self._vocabulary.encode(pieces))

    def _pieces(self, text: str) -> list[str]:
        return list(cut(text)) if self._vocabulary.cuts else [text]

    def encode_normalized(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encodes normalized text, and returns the place of each token in it.

        Args:
          text: result of `normalize`; see `zoo.data.text.questions.offsets` for other text.

        Returns:
          `(ids, starts, ends)`, all (n,) int32: token i comes from `text[starts[i] : ends[i]]`.
        """
        results, offset = [], 0
        for piece in cut(text):
            ids, starts, ends = self._vocabulary.encode_with_offsets(piece)
            results.append(np.int32([ids, starts + offset, ends + offset]))
            offset += len(piece)
        return tuple(np.concatenate(results, axis=1))

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Returns the ids (n,) int32 of any bytes, UTF-8 or not; only for kind "byte"."""
        if self.kind != "byte":
            raise UsageError(
                f"Only a 'byte' tokenizer encodes bytes. Received: {self.kind!r}. Decode the bytes."
            )
        return self._vocabulary.encode_bytes(data)

    def encode_documents(self, documents: Iterable[str], workers: int = 0) -> Iterator[np.ndarray]:
        """Yields the ids (n,) int32 of each document in order, as `encode` returns them.

        Args:
          documents: texts; read as needed, in the caller's thread.
          workers: number of threads; 0 for the number of cores. "character" and "byte" only copy
            memory and use one thread.
        """
        if not isinstance(workers, int) or workers < 0:
            raise UsageError(
                f"workers must be a number of threads, or 0 for all cores. Received: {workers!r}."
            )
        jobs = self._jobs(_texts(documents))
        workers = (workers or os.cpu_count() or 1) if self._vocabulary.threads else 1
        encoded_pieces = (
            _in_order(self._encode_job, jobs, workers)
            if workers > 1
            else map(self._encode_job, jobs)
        )
        return _join_pieces(encoded_pieces)

    def _jobs(self, documents: Iterator[str]) -> Iterator[list[tuple[str, bool]]]:
        """Yields lists of (piece, whether it is the last one of its document)."""
        job, characters = [], 0
        for document in documents:
            pieces = self._pieces(normalize(document, self.normalization))
            for number, piece in enumerate(pieces, 1):
                job.append((piece, number == len(pieces)))
                characters += len(piece) + 1  # an empty piece takes time, too
                if characters >= _JOB_LENGTH:
                    yield job
                    job, characters = [], 0
        if job:
            yield job

    def _encode_job(self, job: list[tuple[str, bool]]) -> list[tuple[np.ndarray, bool]]:
        ids = self._vocabulary.encode([piece for piece, _ in job])
        return [(array, ends) for array, (_, ends) in zip(ids, job, strict=True)]

    def decode(self, ids, skip_special: bool = True) -> str:
        """Returns the text of ids; invalid UTF-8 becomes U+FFFD.

        Args:
          ids: (n,) integers, an array or a list.
          skip_special: whether to omit SPECIAL; otherwise their names are inserted.

        Raises:
          UsageError: if an id is not in the vocabulary.
        """
        ids, spellings = self._validated_ids(ids), self._vocabulary.spellings
        if not skip_special:
            spellings, names = list(spellings), self._vocabulary.names
            for i in self.special.control:
                spellings[i] = names[i].encode()
        text = b"".join([spellings[i] for i in ids]).decode("utf-8", "replace")
        return self._vocabulary.tidy(text)

    def decode_bytes(self, ids) -> bytes:
        """Returns the UTF-8 bytes of ids (n,) without SPECIAL, for streaming.

        The bytes of several calls can be concatenated. They may end inside a character, so use an
        incremental decoder, and pass its text to `tidy`.
        """
        return b"".join([self._vocabulary.spellings[i] for i in self._validated_ids(ids)])

    def tidy(self, text: str, before: str = "") -> str:
        """Removes the space before the first word of a line; only "word" and "wordpiece" have it.

        Args:
          text: decoded from `decode_bytes`.
          before: character before the text; "" at its beginning.
        """
        return self._vocabulary.tidy(text, before)

    def tokens(self, ids) -> list[str]:
        """Returns the name of each token of ids (n,), in the notation of the kind."""
        return [self._vocabulary.names[i] for i in self._validated_ids(ids)]

    def _validated_ids(self, ids) -> list[int]:
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise UsageError(
                f"ids must be a 1-D array of integers. Received: {ids.shape} {ids.dtype}."
            )
        # Negative ids would index from the end.
        invalid = ids[(ids < 0) | (ids >= self.vocabulary_size)]
        if invalid.size:
            raise UsageError(
                f"ids must be in 0 … {self.vocabulary_size - 1}. Received: {invalid[0]}."
            )
        return ids.tolist()

    def save(self, path: str | os.PathLike) -> None:
        """Writes a JSON file for `load` atomically.

        Raises:
          RunError: if the file cannot be written.
        """
        path = Path(path)
        data = self._data()
        data["checksum"] = disk.json_digest(data)
        try:
            with disk.atomic(path, "w") as file:
                json.dump(data, file, indent=1)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}.") from None


def load(path: str | os.PathLike) -> Tokenizer:
    """Loads a tokenizer that `Tokenizer.save` wrote.

    Raises:
      UsageError: if the file does not exist or has another format version.
      RunError: if the file is damaged or was altered.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    content = disk.read_bytes(path, JSON_EXPANSION)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):  # invalid UTF-8 or JSON, or nested too deeply
        data = None
    version = data.get("format_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise RunError(f"{path} is damaged or not a tokenizer: train it again.")
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{path} must have format_version {FORMAT_VERSION}. Received: {version}. Use the "
            "version of the zoo that wrote it, or train the tokenizer again."
        )
    if data.pop("checksum", None) != disk.json_digest(data):
        raise RunError(f"{path} is damaged or was altered (its checksum differs): train it again.")
    try:
        tokenizer = Tokenizer(
            data["kind"], data["normalization"], data["payload"], data["trained_on"]
        )
        equal = tokenizer._data() == data
    # Altered on purpose, with a valid checksum; the libraries raise many types.
    except Exception as error:
        raise RunError(f"{path} contains no tokenizer: {short(error)}") from None
    if not equal:
        raise RunError(f"{path} was altered (its fingerprint differs): train it again.")
    return tokenizer


def report(tokenizer: Tokenizer, documents: Iterable[str]) -> dict:
    """Measures how well a tokenizer encodes a text; returns JSON values.

    "bytes" counts the text before normalization, so that tokenizers can be compared;
    "tokens_per_word" counts words between white space, and is absent without words; "unknown_rate"
    is the share of <unk>.

    Raises:
      RunError: if there is no text.
    """
    size = words = tokens = unknown = 0

    def count_documents():
        nonlocal size, words
        for document in _texts(documents):
            size += len(normalize(document, "none").encode())
            words += len(document.split())
            yield document

    for ids in tokenizer.encode_documents(count_documents()):
        tokens += len(ids)
        if tokenizer.unknown_id is not None:
            unknown += int(np.count_nonzero(ids == tokenizer.unknown_id))
    if not tokens:
        raise RunError("There is no text to measure the tokenizer on.")
    return {
        "kind": tokenizer.kind,
        "vocabulary_size": tokenizer.vocabulary_size,
        "normalization": tokenizer.normalization,
        "bytes": size,
        "tokens": tokens,
        "bytes_per_token": size / tokens,
        **({"tokens_per_word": tokens / words} if words else {}),
        "unknown_rate": unknown / tokens,
        "trained on": tokenizer.trained_on,
    }


def _join_pieces(jobs: Iterable[list[tuple[np.ndarray, bool]]]) -> Iterator[np.ndarray]:
    """Concatenates the arrays of pieces to one array per document."""
    arrays = []
    for job in jobs:
        for array, ends in job:
            arrays.append(array)
            if ends:
                yield np.concatenate(arrays)
                arrays = []


def _in_order(function: Callable, jobs: Iterable, workers: int) -> Iterator:
    """Yields `function(job)` of each job in order, computed a few jobs ahead by threads."""
    pool, running = ThreadPoolExecutor(workers), deque()
    try:
        for job in jobs:
            running.append(pool.submit(function, job))
            if len(running) > 2 * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
