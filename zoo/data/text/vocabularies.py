"""The six kinds of tokenizers, used by `zoo.data.text.tokenizers`.

A kind is a `Vocabulary`, created from the payload (a JSON value) that its `train` returned. It
encodes pieces of normalized text. The libraries tokenizers and sentencepiece are imported on first
use.
"""

import base64
import contextlib
import io
import itertools
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

import numpy as np

from zoo.data.text.special_tokens import SPECIAL, UNKNOWN, SpecialIds
from zoo.errors import RunError, UsageError, short

# Ids of kinds with bytes: SPECIAL, then the 256 bytes.
FIRST_BYTE = len(SPECIAL)
WITH_BYTES = FIRST_BYTE + 256

NO_TEXT = "There is no text to train a tokenizer on."


class Vocabulary:
    """Base of the kinds of tokenizers.

    Attributes:
      payload: JSON value that recreates the vocabulary.
      names: V names of tokens, for display.
      spellings: V bytes objects, the UTF-8 of each token; b"" for SPECIAL. In kinds that drop
        white space, they begin with the space that `decode` inserts.
      starts_word: (V,) bool. In kinds that keep spaces, a word begins with the space before it.
      threads: whether `encode` releases the GIL.
      cuts: whether a long text may be cut into pieces, see `zoo.data.text.tokenizers`.
      special: ids of the special tokens.
    """

    threads = False
    cuts = True
    special = SpecialIds()
    payload: object
    names: list[str]
    spellings: list[bytes]

    @staticmethod
    def train(pieces: Iterator[str], size: int):
        """Trains on text and returns the payload.

        Args:
          pieces: nonempty pieces of normalized text, at least one.
          size: largest number of tokens, SPECIAL included; 0 for no limit.

        Raises:
          UsageError: if `size` is too small.
          RunError: if the text has no tokens.
        """
        raise NotImplementedError

    def encode(self, pieces: list[str]) -> list[np.ndarray]:
        """Returns the ids (n,) int32 of each piece; the arrays may be read-only."""
        raise NotImplementedError

    def encode_with_offsets(self, piece: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns `(ids, starts, ends)`, all (n,): token i comes from `piece[starts[i]:ends[i]]`.

        Lossless kinds need only the lengths of their spellings. Other kinds override this method.
        """
        (ids,) = self.encode([piece])
        sizes = np.array([len(self.spellings[i]) for i in ids.tolist()], np.int64)
        last = np.cumsum(sizes)
        # The character of each byte: bytes 0x80 to 0xBF continue a character.
        data = np.frombuffer(piece.encode(), np.uint8)
        characters = np.cumsum((data & 0xC0) != 0x80) - 1
        return ids, characters[last - sizes], characters[last - 1] + 1

    @property
    def starts_word(self) -> np.ndarray:
        return np.array([_begins_word(spelling) for spelling in self.spellings])

    @staticmethod
    def tidy(text: str, before: str = "") -> str:
        """Converts joined spellings after the character `before` to text; see `Tokenizer.tidy`."""
        return text


class Characters(Vocabulary):
    """One token per character; the payload is the list of characters in the order of their ids."""

    def __init__(self, payload):
        self.payload = payload
        self.names = [*SPECIAL, *payload]
        self.spellings = [b""] * len(SPECIAL) + [character.encode() for character in payload]
        codes = np.array([ord(character) for character in payload], np.int64)
        # The last entry is for all characters after the last known one.
        self._ids = np.full(codes.max(initial=0) + 2, UNKNOWN, np.int32)
        self._ids[codes] = np.arange(len(SPECIAL), len(self.names))

    @staticmethod
    def train(pieces, size):
        check_size("character", size, len(SPECIAL) + 1)
        counts = Counter()
        for piece in pieces:
            counts.update(piece)
        frequent = sorted(counts, key=lambda character: (-counts[character], character))
        return sorted(frequent[: size - len(SPECIAL)] if size else frequent)

    def encode(self, pieces):
        codes = (np.frombuffer(piece.encode("utf-32-le"), np.uint32) for piece in pieces)
        return [self._ids[np.minimum(code, len(self._ids) - 1)] for code in codes]

    def encode_with_offsets(self, piece):
        (ids,) = self.encode([piece])
        places = np.arange(len(piece) + 1)
        return ids, places[:-1], places[1:]


class Bytes(Vocabulary):
    """One token per byte of UTF-8, without a payload."""

    def __init__(self, payload):
        if payload is not None:
            raise ValueError("the byte kind has no payload")
        self.payload = None
        self.names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
        self.spellings = [b""] * len(SPECIAL) + [bytes([byte]) for byte in range(256)]

    @staticmethod
    def train(pieces, size):
        check_size("byte", size, WITH_BYTES)
        for _ in pieces:  # the iterator counts the text
            pass

    def encode(self, pieces):
        return [self.encode_bytes(piece.encode()) for piece in pieces]

    @staticmethod
    def encode_bytes(data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8).astype(np.int32) + FIRST_BYTE


# --- with the library `tokenizers` --------------------------------------------------------------

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_PARALLELISM_IS_OURS = _PARALLELISM not in os.environ


def tokenizers_library():
    """Imports the library tokenizers, without its own threads unless the user enabled them.

    The zoo's own threads encode with every kind of tokenizer. If the library had used its threads,
    a later fork would print a warning.
    """
    os.environ.setdefault(_PARALLELISM, "false")
    import tokenizers

    return tokenizers


@contextlib.contextmanager
def _all_cores():
    """Lets the library tokenizers train on all cores, unless the user set its variable."""
    before = os.environ[_PARALLELISM]
    if _PARALLELISM_IS_OURS:
        os.environ[_PARALLELISM] = "true"
    try:
        yield
    finally:
        os.environ[_PARALLELISM] = before


class _Library(Vocabulary):
    """Base of kinds of the library tokenizers; the payload is the library's JSON, a string."""

    threads = True

    def __init__(self, payload):
        self.payload = payload
        # Other components of the library can abort the process on some values.
        parts, default = (
            json.loads(payload),
            tokenizers_library().Tokenizer(tokenizers_library().models.BPE()),
        )
        default.pre_tokenizer = self.pre_tokenizer()
        default = json.loads(default.to_str())
        if any(
            parts[name] != default[name] for name in default if name not in ("version", "model")
        ):
            raise ValueError("its components do not match the kind of tokenizer")
        self._model = tokenizers_library().Tokenizer.from_str(payload)
        ids = self._model.get_vocab()
        self.names = sorted(ids, key=ids.get)
        if [ids[name] for name in self.names] != list(range(len(ids))):
            raise ValueError("the ids are not 0, 1, 2 …")
        words = self.names[len(SPECIAL) :]
        self.spellings = [b""] * len(SPECIAL) + [self.spell(word) for word in words]

    @staticmethod
    def spell(name: str) -> bytes:
        raise NotImplementedError

    def encode(self, pieces):
        encodings = self._model.encode_batch_fast(pieces, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _train_by_library(model, pre_tokenizer, trainer, pieces) -> str:
    tokenizer = tokenizers_library().Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    with _all_cores():
        tokenizer.train_from_iterator(pieces, trainer)
    tokenizer_json = json.loads(tokenizer.to_str())
    # As added tokens, SPECIAL would be recognized in text, and "<end>" in a page would end it. In
    # the vocabulary they cannot match, because no pattern below has "<" and letters in one word.
    tokenizer_json["added_tokens"] = []
    return json.dumps(tokenizer_json)


class BytePairs(_Library):
    """Byte-level byte pair encoding with GPT-2's pattern of words (Radford et al. 2019).

    KerasHub can read the merges.
    """

    @classmethod
    def pre_tokenizer(cls):
        return tokenizers_library().pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    @classmethod
    def train(cls, pieces, size):
        check_size("bpe", size, WITH_BYTES)
        tokenizers, byte_level = tokenizers_library(), cls.pre_tokenizer()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            special_tokens=list(SPECIAL),
            initial_alphabet=byte_level.alphabet(),
            show_progress=False,
        )
        return _train_by_library(tokenizers.models.BPE(), byte_level, trainer, pieces)

    @staticmethod
    def spell(name):
        return bytes(map(BYTE_OF.__getitem__, name))


def _printable_bytes() -> dict[str, int]:
    """Returns GPT-2's characters of bytes: printable bytes themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


BYTE_OF = _printable_bytes()

# Letters, digits and marks; words of Persian may contain U+200C, of other scripts U+200D.
_WORD = r"\w+(?:[\u200c\u200d]+\w+)*"
# Punctuation without a space before it.
_CLOSING = frozenset(".,:;!?)]}»…،؛؟")


class _Spaced(_Library):
    """Base of kinds that drop white space; `decode` inserts one space between words."""

    pattern: str
    continues = "\0"  # prefix of tokens that continue a word

    @classmethod
    def pre_tokenizer(cls):
        tokenizers = tokenizers_library()
        split = tokenizers.pre_tokenizers.Split
        return split(tokenizers.Regex(cls.pattern), behavior="removed", invert=True)

    def encode_with_offsets(self, piece):
        encoding = self._model.encode(piece, add_special_tokens=False)
        places = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return np.array(encoding.ids, np.int32), places[:, 0], places[:, 1]

    @classmethod
    def spell(cls, name):
        if name.startswith(cls.continues):
            return name.removeprefix(cls.continues).encode()
        return name.encode() if name in _CLOSING or name == "\n" else f" {name}".encode()

    @property
    def starts_word(self):
        return np.array([not name.startswith(self.continues) for name in self.names])

    @staticmethod
    def tidy(text, before=""):
        text = text.removeprefix(" ") if before in ("", "\n") else text
        return text.replace("\n ", "\n")


class Words(_Spaced):
    """One token per word, punctuation mark or end of line; "don't" is one word."""

    pattern = r"\n|\w+(?:[\u200c\u200d'’]+\w+)*|[^\w\s]"

    @classmethod
    def train(cls, pieces, size):
        check_size("word", size, len(SPECIAL) + 1)
        tokenizers = tokenizers_library()
        model = tokenizers.models.WordLevel(unk_token=SPECIAL[UNKNOWN])
        trainer = tokenizers.trainers.WordLevelTrainer(
            vocab_size=size, special_tokens=list(SPECIAL), show_progress=False
        )
        return _check_has_words(_train_by_library(model, cls.pre_tokenizer(), trainer, pieces))


class WordPieces(_Spaced):
    """Parts of words; ## marks continuations (Devlin et al. 2018, BERT, arXiv:1810.04805)."""

    pattern = _WORD + r"|[^\w\s]"
    continues = "##"
    # More characters would fill the vocabulary with very rare ones.
    max_characters = 1000

    @classmethod
    def train(cls, pieces, size):
        tokenizers = tokenizers_library()
        # The library numbers characters in random order, and merges equally frequent pairs in that
        # order. So the characters are counted first, and the text is read twice.
        pieces, counts = list(pieces), Counter()
        for piece in pieces:
            counts.update(piece)
        frequent = sorted(counts, key=lambda character: (-counts[character], character))
        frequent = [c for c in frequent if not c.isspace() or c in "\x1c\x1d\x1e\x1f"]
        characters = sorted(frequent[: cls.max_characters])
        continuing = [cls.continues + c for c in characters if _inside_word(c)]
        first = [*SPECIAL, *characters, *continuing]
        check_size("wordpiece", size, len(first), " of this text")
        if rare := frequent[cls.max_characters :]:
            drop = re.compile(f"[{re.escape(''.join(rare))}]")
            pieces = (drop.sub(" ", piece) for piece in pieces)
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=2, special_tokens=first, show_progress=False
        )
        model = tokenizers.models.WordPiece(unk_token=SPECIAL[UNKNOWN])
        return _check_has_words(_train_by_library(model, cls.pre_tokenizer(), trainer, pieces))


def _check_has_words(payload: str) -> str:
    if len(json.loads(payload)["model"]["vocab"]) == len(SPECIAL):
        raise RunError(NO_TEXT)
    return payload


# --- with the library `sentencepiece` -----------------------------------------------------------

SPACE = "▁"  # U+2581, SentencePiece's notation of U+0020


class SentencePieces(Vocabulary):
    """Unigram pieces within words, with bytes for unknown text (Kudo 2018, arXiv:1804.10959).

    The payload is SentencePiece's model file in base64.
    """

    threads = True
    # Sums in training depend on the number of threads, so it is fixed.
    training_threads = 16
    # Training silently skips lines with one of these (U+2581 would be confused with a space).
    # Ends of lines are in no piece, so that no piece crosses one.
    _between_lines = re.compile("[\0\t\n\r▁\u2585]+")
    _not_spaces = re.compile(f"({SPACE}+)")

    def __init__(self, payload):
        import sentencepiece

        self.payload = payload
        model = base64.b64decode(payload, validate=True)
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        size = self._model.get_piece_size()
        in_bytes = [number for number in range(size) if self._model.is_byte(number)]
        if in_bytes != list(range(FIRST_BYTE, WITH_BYTES)):
            raise ValueError(f"the ids {FIRST_BYTE} … {WITH_BYTES - 1} are not those of the bytes")
        pieces = [self._model.id_to_piece(i) for i in range(WITH_BYTES, size)]
        self.names = [*Bytes(None).names, *pieces]
        self.spellings = [*Bytes(None).spellings, *(p.replace(SPACE, " ").encode() for p in pieces)]

    @classmethod
    def train(cls, pieces, size):
        import sentencepiece

        check_size("sentencepiece", size, WITH_BYTES + 1)
        errors, model = [], io.BytesIO()

        def lines():
            # SentencePiece converts every error of its iterator to a RuntimeError.
            try:
                for piece in pieces:
                    yield from filter(None, cls._between_lines.split(piece))
            except BaseException as error:
                errors.append(error)
                raise

        lines = lines()
        first = next(lines, None)
        if first is None:
            raise RunError(NO_TEXT)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=itertools.chain([first], lines),
                model_writer=model,
                model_type="unigram",
                vocab_size=size,
                hard_vocab_limit=False,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                # These names are never learned or matched, because a piece has one script.
                pad_id=0, pad_piece=SPECIAL[0],
                unk_id=1, unk_piece=SPECIAL[1],
                bos_id=2, bos_piece=SPECIAL[2],
                eos_id=3, eos_piece=SPECIAL[3],
                control_symbols=list(SPECIAL[4:]),
                # Longer lines are silently skipped; our pieces are far shorter.
                max_sentence_length=2**24,
                shuffle_input_sentence=False,
                num_threads=cls.training_threads,
                minloglevel=3,
            )  # fmt: skip
        except RuntimeError as error:
            if errors:
                raise errors[0] from None
            if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
                check_size("sentencepiece", size, int(match[1]), " of this text")
            raise RunError(f"SentencePiece could not be trained: {short(error)}") from None
        return base64.b64encode(model.getvalue()).decode()

    def encode(self, pieces):
        # U+2581, which SentencePiece confuses with a space, is encoded as bytes.
        parts, ends = [], []
        for piece in pieces:
            parts.extend(self._not_spaces.split(piece) if SPACE in piece else [piece])
            ends.append(len(parts))
        ids = self._model.encode(parts, num_threads=1, return_type="numpy")
        for i, part in enumerate(parts):
            if part.startswith(SPACE):
                ids[i] = Bytes.encode_bytes(part.encode())
        starts = [0, *ends[:-1]]
        return [
            ids[a] if b == a + 1 else np.concatenate(ids[a:b])
            for a, b in zip(starts, ends, strict=True)
        ]


# --- shared -------------------------------------------------------------------------------------


def check_size(kind: str, size: int, minimum: int, source: str = "") -> None:
    """Raises UsageError if a size is positive and smaller than `minimum`."""
    if 0 < size < minimum:
        raise UsageError(
            f"vocabulary_size must be at least {minimum} for a {kind!r} tokenizer{source}. "
            f"Received: {size}."
        )


def _inside_word(character: str) -> bool:
    """Returns whether a character is a letter, digit, mark, underscore or joiner."""
    return character in "_\u200c\u200d" or unicodedata.category(character)[0] in "LMN"


def _begins_word(spelling: bytes) -> bool:
    """Returns whether a token begins a word: with a space or punctuation, not inside a word."""
    first = spelling.decode("utf-8", "replace")[:1]
    # U+FFFD: an incomplete character.
    return first != "\ufffd" and (first == "" or not _inside_word(first))
