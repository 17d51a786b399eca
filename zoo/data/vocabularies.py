"""The six kinds of tokenizer: how each is trained, encodes pieces of text and spells its tokens.

`zoo.data.tokenizers` is the way in: it normalises text and cuts it into pieces first. A kind is a
`Vocabulary`, made from the payload (a JSON value) that its `train` returned.

`tokenizers` and `sentencepiece` are imported where they are first used.
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

from zoo.errors import RunError, UsageError, short

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>", "<sep>", "<mask>")
UNKNOWN = SPECIAL.index("<unk>")
# Of every kind that spells what it does not know in bytes, the ids are SPECIAL, then 256 bytes.
FIRST_BYTE = len(SPECIAL)
WITH_BYTES = FIRST_BYTE + 256

NO_TEXT = "There is no text to train a tokenizer on."


class Vocabulary:
    """One kind of tokenizer.

    Attributes:
      payload: JSON value from which an equal one is made.
      names: (V,) str, how a token is shown.
      spelled: (V,) bytes, the UTF-8 that a token stands for; b"" for SPECIAL. Of the kinds that
        drop white space it begins with the space that `decode` puts before it.
      starts_word: (V,) bool. Where spaces are kept, a word begins with the space before it.
      threads: whether `encode` lets other threads run.
    """

    threads = False
    payload: object
    names: list[str]
    spelled: list[bytes]

    @staticmethod
    def train(pieces: Iterator[str], size: int):
        """Returns the payload.

        Args:
          pieces: of normalised text, none empty, at least one.
          size: tokens to have at most, SPECIAL included; 0 for as many as there are.

        Raises:
          UsageError: `size` is too small; the message says what is the least.
          RunError: there is nothing in the text to learn from.
        """
        raise NotImplementedError

    def encode(self, pieces: list[str]) -> list[np.ndarray]:
        """Returns the ids (n,) int32 of each piece, read-only or not."""
        raise NotImplementedError

    @property
    def starts_word(self) -> np.ndarray:
        return np.array([_begins_word(spelled) for spelled in self.spelled])

    @staticmethod
    def tidy(text: str, before: str = "") -> str:
        """Makes text of joined spellings, which follow a character; "" for none."""
        return text


class Characters(Vocabulary):
    """A token a character; the payload is the list of characters, in the order of their ids."""

    def __init__(self, payload):
        self.payload = payload
        self.names = [*SPECIAL, *payload]
        self.spelled = [b""] * len(SPECIAL) + [character.encode() for character in payload]
        codes = np.array([ord(character) for character in payload], np.int64)
        # One entry more than the last character's, for all that come after it.
        self._ids = np.full(codes.max(initial=0) + 2, UNKNOWN, np.int32)
        self._ids[codes] = np.arange(len(SPECIAL), len(self.names))

    @staticmethod
    def train(pieces, size):
        at_least("character", size, len(SPECIAL) + 1)
        counts = Counter()
        for piece in pieces:
            counts.update(piece)
        frequent = sorted(counts, key=lambda character: (-counts[character], character))
        return sorted(frequent[: size - len(SPECIAL)] if size else frequent)

    def encode(self, pieces):
        codes = (np.frombuffer(piece.encode("utf-32-le"), np.uint32) for piece in pieces)
        return [self._ids[np.minimum(code, len(self._ids) - 1)] for code in codes]


class Bytes(Vocabulary):
    """A token a byte of UTF-8; there is no payload."""

    def __init__(self, payload):
        if payload is not None:
            raise ValueError("the byte kind has no payload")
        self.payload = None
        self.names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
        self.spelled = [b""] * len(SPECIAL) + [bytes([byte]) for byte in range(256)]

    @staticmethod
    def train(pieces, size):
        at_least("byte", size, WITH_BYTES)
        for _ in pieces:  # It learns nothing; whoever asked counts the text.
            pass

    def encode(self, pieces):
        return [self.encode_bytes(piece.encode()) for piece in pieces]

    @staticmethod
    def encode_bytes(data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8).astype(np.int32) + FIRST_BYTE


# --- with the library `tokenizers` --------------------------------------------------------------

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_PARALLELISM_IS_OURS = _PARALLELISM not in os.environ


def _library():
    """Imports `tokenizers`.

    Its own threads are off unless the user has switched them on: ours do the same for every kind,
    and after the use of its own a later fork of the process would print a warning.
    """
    os.environ.setdefault(_PARALLELISM, "false")
    import tokenizers

    return tokenizers


@contextlib.contextmanager
def _all_cores():
    """Lets `tokenizers` train on all cores, unless the user has said something about that."""
    before = os.environ[_PARALLELISM]
    if _PARALLELISM_IS_OURS:
        os.environ[_PARALLELISM] = "true"
    try:
        yield
    finally:
        os.environ[_PARALLELISM] = before


class _Library(Vocabulary):
    """A kind of `tokenizers`; the payload is its own JSON, a string."""

    threads = True

    def __init__(self, payload):
        self.payload = payload
        # Other parts of the library may end the process by what is written in them.
        parts, own = json.loads(payload), _library().Tokenizer(_library().models.BPE())
        own.pre_tokenizer = self.pre_tokenizer()
        own = json.loads(own.to_str())
        if any(parts[name] != own[name] for name in own if name not in ("version", "model")):
            raise ValueError("it has other parts than this kind of tokenizer")
        self._model = _library().Tokenizer.from_str(payload)
        ids = self._model.get_vocab()
        self.names = sorted(ids, key=ids.get)
        if [ids[name] for name in self.names] != list(range(len(ids))):
            raise ValueError("the ids are not 0, 1, 2 …")
        words = self.names[len(SPECIAL) :]
        self.spelled = [b""] * len(SPECIAL) + [self.spell(word) for word in words]

    @staticmethod
    def spell(name: str) -> bytes:
        raise NotImplementedError

    def encode(self, pieces):
        encodings = self._model.encode_batch_fast(pieces, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def _train_by_library(model, pre_tokenizer, trainer, pieces) -> str:
    tokenizer = _library().Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    with _all_cores():
        tokenizer.train_from_iterator(pieces, trainer)
    trained = json.loads(tokenizer.to_str())
    # As "added tokens" they would be found in text, and "<end>" in a page would end it. They stay
    # in the vocabulary, which text cannot reach: no pattern below has "<" and letters in one word.
    trained["added_tokens"] = []
    return json.dumps(trained)


class BytePairs(_Library):
    """Byte-level pairs, with GPT-2's pattern of words: KerasHub reads these merges as they are.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
    """

    @classmethod
    def pre_tokenizer(cls):
        return _library().pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    @classmethod
    def train(cls, pieces, size):
        at_least("bpe", size, WITH_BYTES)
        tokenizers, byte_level = _library(), cls.pre_tokenizer()
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
        return bytes(map(_BYTE_OF.__getitem__, name))


def _printable_bytes() -> dict[str, int]:
    """GPT-2's characters for the bytes: printable ones are themselves, others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _printable_bytes()

# Letters, digits and marks; Persian writes U+200C inside a word, and some scripts U+200D.
_WORD = r"\w+(?:[\u200c\u200d]+\w+)*"
# A single mark that is written without a space before it.
_CLOSING = frozenset(".,:;!?)]}»…،؛؟")


class _Spaced(_Library):
    """A kind that drops white space; `decode` puts one space between words."""

    pattern: str
    continues = "\0"  # How the name of a token that continues a word begins.

    @classmethod
    def pre_tokenizer(cls):
        tokenizers = _library()
        split = tokenizers.pre_tokenizers.Split
        return split(tokenizers.Regex(cls.pattern), behavior="removed", invert=True)

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
    """A token a word, a mark or an end of line; "don't" is one word."""

    pattern = r"\n|\w+(?:[\u200c\u200d'’]+\w+)*|[^\w\s]"

    @classmethod
    def train(cls, pieces, size):
        at_least("word", size, len(SPECIAL) + 1)
        tokenizers = _library()
        model = tokenizers.models.WordLevel(unk_token=SPECIAL[UNKNOWN])
        trainer = tokenizers.trainers.WordLevelTrainer(
            vocab_size=size, special_tokens=list(SPECIAL), show_progress=False
        )
        return _some_words(_train_by_library(model, cls.pre_tokenizer(), trainer, pieces))


class WordPieces(_Spaced):
    """Parts of words, those that continue a word marked ##.

    Source: Devlin et al., "BERT" (2019), https://arxiv.org/abs/1810.04805.
    """

    pattern = _WORD + r"|[^\w\s]"
    continues = "##"
    # More would fill the vocabulary with letters that are hardly ever used.
    max_characters = 1000

    @classmethod
    def train(cls, pieces, size):
        tokenizers = _library()
        # It reads the text twice: left to itself the library numbers the characters in a random
        # order, and equally frequent pairs are merged in the order of their numbers.
        pieces, counts = list(pieces), Counter()
        for piece in pieces:
            counts.update(piece)
        frequent = sorted(counts, key=lambda character: (-counts[character], character))
        frequent = [c for c in frequent if not c.isspace() or c in "\x1c\x1d\x1e\x1f"]
        characters = sorted(frequent[: cls.max_characters])
        continuing = [cls.continues + c for c in characters if _inside_word(c)]
        first = [*SPECIAL, *characters, *continuing]
        at_least("wordpiece", size, len(first), " of this text")
        if rare := frequent[cls.max_characters :]:
            drop = re.compile(f"[{re.escape(''.join(rare))}]")
            pieces = (drop.sub(" ", piece) for piece in pieces)
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=size, min_frequency=2, special_tokens=first, show_progress=False
        )
        model = tokenizers.models.WordPiece(unk_token=SPECIAL[UNKNOWN])
        return _some_words(_train_by_library(model, cls.pre_tokenizer(), trainer, pieces))


def _some_words(payload: str) -> str:
    if len(json.loads(payload)["model"]["vocab"]) == len(SPECIAL):
        raise RunError(NO_TEXT)
    return payload


# --- with the library `sentencepiece` -----------------------------------------------------------

SPACE = "▁"  # U+2581, what SentencePiece writes for U+0020.


class SentencePieces(Vocabulary):
    """Unigram pieces that never go on over a space; what they lack is spelled in bytes.

    Source: Kudo, "Subword Regularization" (2018), https://arxiv.org/abs/1804.10959. The payload
    is SentencePiece's model file in base64.
    """

    threads = True
    # The sums of its training depend on the number of threads: a fixed number, on any machine.
    training_threads = 16
    # In training it skips, in silence, lines that hold one of these (U+2581 it would confuse with
    # a space). An end of line is never part of a piece, so that no piece goes on over one.
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
        learned = [self._model.id_to_piece(i) for i in range(WITH_BYTES, size)]
        self.names = [*Bytes(None).names, *learned]
        self.spelled = [*Bytes(None).spelled, *(p.replace(SPACE, " ").encode() for p in learned)]

    @classmethod
    def train(cls, pieces, size):
        import sentencepiece

        at_least("sentencepiece", size, WITH_BYTES + 1)
        failed, model = [], io.BytesIO()

        def lines():
            # It turns every error of its iterator into a RuntimeError.
            try:
                for piece in pieces:
                    yield from filter(None, cls._between_lines.split(piece))
            except BaseException as error:
                failed.append(error)
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
                # A piece is of one script, and "<" is of none of the letters': none of these
                # names is ever learned as a piece, and none of them is looked for in text.
                pad_id=0, pad_piece=SPECIAL[0],
                unk_id=1, unk_piece=SPECIAL[1],
                bos_id=2, bos_piece=SPECIAL[2],
                eos_id=3, eos_piece=SPECIAL[3],
                control_symbols=list(SPECIAL[4:]),
                # Longer lines are skipped in silence; pieces are far shorter than this.
                max_sentence_length=2**24,
                shuffle_input_sentence=False,
                num_threads=cls.training_threads,
                minloglevel=3,
            )  # fmt: skip
        except RuntimeError as error:
            if failed:
                raise failed[0] from None
            if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error)):
                at_least("sentencepiece", size, int(found[1]), " of this text")
            reason = short(error)
            raise RunError(f"SentencePiece could not be trained: {reason}") from None
        return base64.b64encode(model.getvalue()).decode()

    def encode(self, pieces):
        # The one character that it cannot tell from another goes past it, in bytes.
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


def at_least(kind: str, size: int, least: int, where: str = "") -> None:
    """Raises UsageError where `size` is given and smaller than `least`."""
    if 0 < size < least:
        raise UsageError(
            f"The vocabulary of a {kind!r} tokenizer{where} has at least {least} tokens. "
            f"Received: vocabulary_size={size}."
        )


def _inside_word(character: str) -> bool:
    """Whether it may stand inside a word: a letter, digit, mark, underscore or joiner."""
    return character in "_\u200c\u200d" or unicodedata.category(character)[0] in "LMN"


def _begins_word(spelled: bytes) -> bool:
    """Whether a word begins here: at a space or a mark, not inside of letters or of a character."""
    first = spelled.decode("utf-8", "replace")[:1]
    # U+FFFD: the rest of a character that another token began, or one that is not all here.
    return first != "\ufffd" and (first == "" or not _inside_word(first))
