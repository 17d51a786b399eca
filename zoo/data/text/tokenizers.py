"""Tokenizers: the one way from text to numbers and back.

    tokenizer = train("bpe", documents, 8000)
    tokenizer.save("tokenizer.json")
    for ids in load("tokenizer.json").encode_documents(documents): …

| kind | a token is | white space | text it does not know |
| --- | --- | --- | --- |
| character | a character (code point) | kept | <unk> |
| byte | a byte of UTF-8 | kept | there is none |
| word | a word, a mark or an end of line | dropped | <unk> |
| wordpiece | a part of a word or a mark | dropped | <unk> for the word |
| bpe | frequent bytes of a word and the space before it | kept | there is none |
| sentencepiece | likely characters of a word and the space before it | kept | bytes |

"byte", "bpe" and "sentencepiece" are lossless: `decode(encode(text)) == normalize(text, how)`; so
is "character" where it knows all characters. No text becomes a special token, "<end>" neither.

Long text is cut into pieces of at most `PIECE` characters, before the last space or end of line
that follows something else. There a token ends in every kind, so the ids are those of the whole
text (up to the rounding of sums of log-probabilities, for "sentencepiece"). `PIECE` characters
without such a place are cut where they end; kinds that keep white space stay lossless.
"""

import hashlib
import json
import os
import re
import sys
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np

from zoo.data.text.vocabularies import (
    NO_TEXT,
    SPECIAL,
    UNKNOWN,
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

_KINDS = {
    "character": Characters,
    "byte": Bytes,
    "word": Words,
    "wordpiece": WordPieces,
    "bpe": BytePairs,
    "sentencepiece": SentencePieces,
}
KINDS = tuple(_KINDS)

# Arabic yeh, alef maksura and kaf, which keyboards and old code pages leave in Persian text.
_PERSIAN = {"\u064a": "\u06cc", "\u0649": "\u06cc", "\u0643": "\u06a9"}
NORMALIZATIONS = ("NFC", "NFKC", "none", "persian")

FORMAT_VERSION = 1
LARGEST = 2**20  # tokens; the libraries take memory for as many as they are asked for
PIECE = 8192
# Characters that one thread encodes at a time: long enough that handing over costs nothing.
_JOB = 8 * PIECE
_CUT = re.compile(r".*\S(?=[ \n])", re.DOTALL)


def normalize(text: str, how: str) -> str:
    """Returns `text` in one of the ways of writing it.

    Args:
      text: any str. Surrogates, which are no characters, become U+FFFD (pairs their character).
      how: "NFC" or "NFKC" of Unicode; "persian" for NFC and then the Arabic letters yeh, alef
        maksura and kaf as their Persian twins, all else kept, U+200C (ZWNJ) too; or "none".
    """
    if how not in NORMALIZATIONS:
        raise UsageError(
            f"There is no normalization {how!r}.{near_names(how, NORMALIZATIONS)} "
            f"Known: {', '.join(NORMALIZATIONS)}."
        )
    if not isinstance(text, str):
        raise UsageError(f"A tokenizer reads text (str). Received: {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if how == "none" or text.isascii():
        return text
    form = "NFKC" if how == "NFKC" else "NFC"
    # Nothing is composed over the end of a line, and lines that are normalised are passed on five
    # times as fast as a text in which one is not.
    text = "\n".join([unicodedata.normalize(form, line) for line in text.split("\n")])
    if how == "persian":
        # After NFC: yeh with a hamza above is a letter of its own, and stays it.
        for arabic, persian in _PERSIAN.items():
            text = text.replace(arabic, persian)
    return text


def train(
    kind: str, documents: Iterable[str], vocabulary_size: int = 0, normalization: str = "NFC"
) -> "Tokenizer":
    """Returns a tokenizer; the same text always gives the same one.

    "wordpiece" and "sentencepiece" hold all of the text in memory, "word" and "bpe" its different
    words: give them a sample of a large corpus, some hundred MB.

    Args:
      kind: one of KINDS.
      documents: text; read once.
      vocabulary_size: tokens to have, SPECIAL included. 0, for "character" all that occur (else
        the most frequent ones) and for "byte" 262; all other kinds need a number. Where the
        text supports fewer, there are fewer, and one line on stderr says so.
      normalization: see `normalize`; part of the tokenizer.

    Raises:
      UsageError: unknown kind or normalization, or a vocabulary_size that the kind or the text
        does not allow; the message says what it does.
      RunError: there is no text.
    """
    if kind not in KINDS:
        raise UsageError(
            f"There is no tokenizer {kind!r}.{near_names(kind, KINDS)} Known: {', '.join(KINDS)}."
        )
    _check_size(kind, vocabulary_size)
    normalize("", normalization)
    read = {"documents": 0, "bytes": 0}

    def pieces():
        for document in _texts(documents):
            text = normalize(document, normalization)
            read["documents"] += 1
            read["bytes"] += len(text.encode())
            yield from filter(None, cut(text))

    pieces = pieces()
    first = next(pieces, None)
    if first is None:
        raise RunError(NO_TEXT)
    payload = _KINDS[kind].train(chain([first], pieces), int(vocabulary_size))
    tokenizer = Tokenizer(kind, normalization, payload, read)
    if tokenizer.vocabulary_size < vocabulary_size:
        print(
            f"zoo: the text supports {tokenizer.vocabulary_size:,} {kind} tokens, "
            f"not {vocabulary_size:,}: the vocabulary has {tokenizer.vocabulary_size:,}",
            file=sys.stderr,
            flush=True,
        )
    return tokenizer


def _check_size(kind: str, size):
    whole = isinstance(size, int | np.integer) and not isinstance(size, bool)
    if not whole or not 0 <= size <= LARGEST:
        raise UsageError(
            f"vocabulary_size is a whole number of tokens, at most {LARGEST:,}. Received: {size!r}."
        )
    if size == 0 and kind not in ("character", "byte"):
        raise UsageError(
            f"A {kind!r} tokenizer needs a vocabulary_size, such as 8000. Received: {size}."
        )


def _texts(documents: Iterable[str]) -> Iterator[str]:
    # A string is an iterable of strings, too: of its characters.
    if isinstance(documents, str | bytes):
        raise UsageError("documents is an iterable of texts, not one text: put it in a list.")
    return iter(documents)


def cut(text: str) -> Iterator[str]:
    """Yields `text` in pieces of at most PIECE characters (see above); "" as one piece."""
    start = 0
    while len(text) - start > PIECE:
        # One character more, for the look-ahead.
        found = _CUT.match(text, start, start + PIECE + 1)
        end = found.end() if found else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]


class Tokenizer:
    """Text to ids and back; made by `train` or `load`, and never changed.

    Attributes:
      kind: one of KINDS.
      vocabulary_size: V, SPECIAL included.
      normalization: what `encode` does to text first.
      fingerprint: sha256 in hex of all that decides the ids.
      trained_on: {"documents": …, "bytes": …}, the bytes those of the normalised text.
      token_bytes: (V,) int32, the UTF-8 bytes that a token stands for, 0 for SPECIAL. Their sum
        over a text's ids is its length in the lossless kinds; in "word" and "wordpiece" a token
        counts with the one space that `decode` puts before it.
      starts_word: (V,) bool, whether a token begins a word: for masking of whole words. Where
        white space is kept, a word begins with the space before it. True for SPECIAL.
    """

    pad_id, unknown_id, start_id, end_id, separator_id, mask_id = range(len(SPECIAL))

    def __init__(self, kind: str, normalization: str, payload, trained_on: Mapping):
        self.kind, self.normalization = kind, normalization
        self.trained_on = dict(trained_on)
        self._vocabulary = _KINDS[kind](payload)
        if tuple(self._vocabulary.names[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"the first tokens are not {', '.join(SPECIAL)}")
        self.vocabulary_size = len(self._vocabulary.names)
        self.token_bytes = np.array([len(b) for b in self._vocabulary.spelled], np.int32)
        self.starts_word = self._vocabulary.starts_word
        self.fingerprint = _digest(self._content())

    def __repr__(self):
        return (
            f"Tokenizer(kind={self.kind!r}, vocabulary_size={self.vocabulary_size}, "
            f"normalization={self.normalization!r})"
        )

    def __reduce__(self):
        # For the processes of a pipeline: the libraries' own objects are made again.
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
        """Returns the ids (n,) int32 of `text`, with no special token added."""
        pieces = list(cut(normalize(text, self.normalization)))
        return np.concatenate(self._vocabulary.encode(pieces))

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Returns the ids (n,) int32 of any bytes, UTF-8 or not, as they are; kind "byte" only."""
        if self.kind != "byte":
            raise UsageError(
                f"Only a 'byte' tokenizer reads bytes, this one is {self.kind!r}: decode them."
            )
        return self._vocabulary.encode_bytes(data)

    def encode_documents(self, documents: Iterable[str], workers: int = 0) -> Iterator[np.ndarray]:
        """Yields the ids (n,) int32 of each document, in order: what `encode` returns.

        Args:
          documents: text; read as it is needed, in the caller's thread.
          workers: threads; 0 for as many as the machine has cores. "character" and "byte" only
            copy memory, and use one.
        """
        if not isinstance(workers, int) or workers < 0:
            raise UsageError(
                f"workers is a number of threads, 0 for all cores. Received: {workers!r}."
            )
        jobs = self._jobs(_texts(documents))
        workers = (workers or os.cpu_count() or 1) if self._vocabulary.threads else 1
        encoded = (
            _in_order(self._encode_job, jobs, workers)
            if workers > 1
            else map(self._encode_job, jobs)
        )
        return _joined(encoded)

    def _jobs(self, documents: Iterator[str]) -> Iterator[list[tuple[str, bool]]]:
        """Yields lists of pieces, with each whether its document ends there."""
        job, characters = [], 0
        for document in documents:
            pieces = list(cut(normalize(document, self.normalization)))
            for number, piece in enumerate(pieces, 1):
                job.append((piece, number == len(pieces)))
                # A piece costs something even where it is empty.
                characters += len(piece) + 1
                if characters >= _JOB:
                    yield job
                    job, characters = [], 0
        if job:
            yield job

    def _encode_job(self, job: list[tuple[str, bool]]) -> list[tuple[np.ndarray, bool]]:
        ids = self._vocabulary.encode([piece for piece, _ in job])
        return [(array, ends) for array, (_, ends) in zip(ids, job, strict=True)]

    def decode(self, ids, skip_special: bool = True) -> str:
        """Returns the text of `ids` (n,) whole numbers; bytes that are no UTF-8 become U+FFFD.

        Args:
          ids: array or list.
          skip_special: whether the six SPECIAL are left out; else they are shown by their names.

        Raises:
          UsageError: for an id that is not in the vocabulary.
        """
        ids, spelled = self._checked(ids), self._vocabulary.spelled
        if not skip_special:
            spelled = [name.encode() for name in SPECIAL] + spelled[len(SPECIAL) :]
        text = b"".join([spelled[i] for i in ids]).decode("utf-8", "replace")
        return self._vocabulary.tidy(text)

    def decode_bytes(self, ids) -> bytes:
        """Returns the UTF-8 bytes of `ids` (n,), SPECIAL left out, to be shown while they come.

        The bytes of several calls join to those of one. They may end inside of a character (use
        an incremental decoder); what they make goes through `tidy`.
        """
        return b"".join([self._vocabulary.spelled[i] for i in self._checked(ids)])

    def tidy(self, text: str, before: str = "") -> str:
        """Returns what `decode_bytes` makes without the space that begins a line's first word.

        Only kinds "word" and "wordpiece" have one there.

        Args:
          text: of `decode_bytes`.
          before: the character that it follows; "" at the beginning of a text.
        """
        return self._vocabulary.tidy(text, before)

    def tokens(self, ids) -> list[str]:
        """Returns how each of `ids` (n,) is shown: in its kind's notation, not as text."""
        return [self._vocabulary.names[i] for i in self._checked(ids)]

    def _checked(self, ids) -> list[int]:
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise UsageError(
                f"ids are whole numbers in one dimension. Received: {ids.shape} {ids.dtype}."
            )
        # A negative one would be taken from the end of the vocabulary.
        wrong = ids[(ids < 0) | (ids >= self.vocabulary_size)]
        if wrong.size:
            raise UsageError(f"ids lie in 0 … {self.vocabulary_size - 1}. Received: {wrong[0]}.")
        return ids.tolist()

    def save(self, path: str | os.PathLike) -> None:
        """Writes one JSON file for `load`; a kill or a full disk leaves what was there.

        Raises:
          RunError: it cannot be written; the message says why.
        """
        path = Path(path)
        data = self._data()
        data["checksum"] = _digest(data)
        try:
            with disk.atomic(path, "w") as file:
                json.dump(data, file, indent=1)
        except OSError as error:
            raise RunError(f"{path} cannot be written: {error.strerror or error}.") from None


def load(path: str | os.PathLike) -> Tokenizer:
    """Returns the tokenizer that `Tokenizer.save` wrote.

    Raises:
      UsageError: there is no such file, or a newer version of this library wrote it.
      RunError: it is damaged or was altered.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path}.")
    content = disk.read_bytes(path, JSON_EXPANSION)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):  # No UTF-8, no JSON, or nested too deep.
        data = None
    version = data.get("format_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise RunError(f"{path} is damaged or no tokenizer: train it again.")
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format_version {version}, this library reads {FORMAT_VERSION}: "
            "use the version that wrote it, or train the tokenizer again."
        )
    if data.pop("checksum", None) != _digest(data):
        raise RunError(f"{path} is damaged or was altered (its checksum differs): train it again.")
    try:
        tokenizer = Tokenizer(
            data["kind"], data["normalization"], data["payload"], data["trained_on"]
        )
        whole = tokenizer._data() == data
    # Whoever wrote the right checksum beside this did it on purpose; each library has its errors.
    except Exception as error:
        raise RunError(f"{path} holds no tokenizer: {short(error)}") from None
    if not whole:
        raise RunError(f"{path} was altered (its fingerprint differs): train it again.")
    return tokenizer


def report(tokenizer: Tokenizer, documents: Iterable[str]) -> dict:
    """Returns how well a tokenizer fits a text, JSON values.

    "bytes" are those of the text before it is normalised, so that kinds and normalizations
    compare; a word, in "tokens_per_word", is what stands between white space (there is no such key
    where there are none); "unknown_rate" is the share of <unk> among the tokens.

    Raises:
      RunError: there is no text.
    """
    size = words = tokens = unknown = 0

    def counted():
        nonlocal size, words
        for document in _texts(documents):
            size += len(normalize(document, "none").encode())
            words += len(document.split())
            yield document

    for ids in tokenizer.encode_documents(counted()):
        tokens += len(ids)
        unknown += int(np.count_nonzero(ids == UNKNOWN))
    if not tokens:
        raise RunError("There is no text to report on.")
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


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _joined(jobs: Iterable[list[tuple[np.ndarray, bool]]]) -> Iterator[np.ndarray]:
    """Yields one array a document from arrays of its pieces."""
    arrays = []
    for job in jobs:
        for array, ends in job:
            arrays.append(array)
            if ends:
                yield np.concatenate(arrays)
                arrays = []


def _in_order(function: Callable, jobs: Iterable, workers: int) -> Iterator:
    """Yields `function(job)` of each job, computed in `workers` threads, few jobs ahead."""
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
