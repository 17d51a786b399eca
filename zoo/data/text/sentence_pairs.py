"""What the encoders learn from: pairs of sentences (BERT), or rows of text (RoBERTa).

A pair is made as in BERT's create_pretraining_data.py (Devlin et al. 2018, appendix A.2): a run of
sentences that fills the length is cut in two; in half of the pairs the second part is replaced by
as much text from another document, and the sentences replaced begin the next pair. The pairs are
drawn once, when the records are made: epochs differ in their masks and their order, not in their
pairs.
"""

import re
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.text.dataset import (
    PACKINGS,
    check,
    corpus_of,
    facts,
    prepared,
    token_rows,
    token_type,
    tokenizer_of,
)
from zoo.errors import UsageError

VERSION = 1  # raise it when the pairs of an unchanged corpus change
LEAST_LENGTH = 8
SHORT_SHARE = 0.1  # pairs of any length: texts at use are not always full
RANDOM_SHARE = 0.5
NEXT, RANDOM = 0, 1  # labels
BUFFER = 4096  # documents from which the other sentence is drawn
CHUNK_ROWS = 1024

# --- sentences ------------------------------------------------------------------------------------

# Full stops of Latin, Greek, Persian, Arabic, Urdu and Devanagari text with what closes behind
# them and white space; of Chinese and Japanese text, where none follows.
_END = re.compile(r"[.!?…؟۔।]+[\"'”’»)\]]*\s+|[。！？]+[”’」』）]*\s*")
# What ends in a full stop and seldom ends a sentence; the second before a number alone.
_ABBREVIATIONS = frozenset(
    [
        "mr", "mrs", "ms", "dr", "prof", "st", "rev", "hon", "gen", "col", "capt", "lt", "sgt",
        "maj", "gov", "sen", "rep", "fr", "vs", "cf", "al", "ca", "approx",
    ]
)  # fmt: skip
_BEFORE_NUMBERS = frozenset(
    [
        "no", "nos", "vol", "vols", "fig", "figs", "ch", "p", "pp", "jan", "feb", "mar", "apr",
        "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec",
    ]
)  # fmt: skip
_LAST_WORD = re.compile(r"[\w.]*$")


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of a text, by rule; none is empty.

    A line ends a sentence. So do `. ! ? …` and their like in other scripts, before white space,
    unless a small letter follows, or a full stop ends an abbreviation or an initial ("Dr. Who",
    "J. S. Bach", "the U.S. Army"). What a reader would cut elsewhere does no harm here: for BERT
    a sentence is any span of text (Devlin et al. 2018, section 3).
    """
    found = []
    for line in text.splitlines():
        start = 0
        for match in _END.finditer(line):
            if _ends(line, match):
                found.append(line[start : match.end()])
                start = match.end()
        found.append(line[start:])
    return [sentence for sentence in map(str.strip, found) if sentence]


def _ends(line: str, match: re.Match) -> bool:
    after = line[match.end() : match.end() + 1]
    if after.islower():
        return False
    if match.group().rstrip() != ".":
        return True
    word = _LAST_WORD.search(line, max(0, match.start() - 20), match.start()).group().lower()
    letter = len(word) == 1 and word.isalpha()
    before_number = after.isdigit() and word in _BEFORE_NUMBERS
    return not (letter or "." in word.strip(".") or word in _ABBREVIATIONS or before_number)


def tokenized_sentences(documents: Iterable[str], tokenizer) -> Iterator[list[np.ndarray]]:
    """Yields the tokens of each sentence of each document that has any: (n,) int32 each."""
    counts = deque()

    def sentences():
        for document in documents:
            if parts := split_sentences(document):
                counts.append(len(parts))
                yield from parts

    encoded = tokenizer.encode_documents(sentences())
    for first in encoded:
        document = [first, *islice(encoded, counts.popleft() - 1)]
        if document := [tokens for tokens in document if len(tokens)]:
            yield document


# --- pairs ----------------------------------------------------------------------------------------


def make_pairs(
    documents: Iterable[list[np.ndarray]],
    length: int,
    generator: np.random.Generator,
    *,
    start_id: int,
    separator_id: int,
    buffer: int = BUFFER,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields pairs [start] A [separator] B [separator], padded with 0.

    Args:
      documents: lists of sentences, (n,) integers each, none empty.
      length: L, of a pair with its special tokens.
      generator: draws everything there is to draw.
      start_id: put first.
      separator_id: put after A and after B.
      buffer: documents that are held at once; B is drawn from another one of them.

    Yields:
      Chunks {"tokens" (n, L) int32, "types" (n, L) uint8, "label" (n,) int32}.

    Raises:
      UsageError: where there are less than two documents.
    """
    room = length - 3
    rows = []
    for group, pool in _groups(documents, buffer):
        for number, document in enumerate(group):
            for a, b, label in _pairs(document, number, pool, room, generator):
                rows.append(_row(a, b, label, length, start_id, separator_id))
                if len(rows) == CHUNK_ROWS:
                    yield _stacked(rows)
                    rows = []
    if rows:
        yield _stacked(rows)


def _groups(documents, buffer: int):
    """Yields `(documents, those among which B is drawn)`; the first begin the second."""
    documents, before = iter(documents), []
    while group := list(islice(documents, buffer)):
        pool = group if len(group) > 1 else group + before
        if len(pool) < 2:
            raise UsageError(
                "Next sentences need two documents or more in each split, for the second may come "
                "from another one. Received: a split of one document: give more documents, or "
                "task.name=mlm, which needs no pairs."
            )
        yield group, pool
        before = group


def _pairs(document, number, pool, room, generator):
    """Yields (A, B, label) of a document, `pool[number]`."""

    def target():
        short = generator.random() < SHORT_SHARE
        return int(generator.integers(2, room + 1)) if short else room

    place, wanted = 0, target()
    while place < len(document):
        end, size = place, 0
        while end < len(document) and size < wanted:
            size += len(document[end])
            end += 1
        sentences = end - place
        cut = place + (int(generator.integers(1, sentences)) if sentences > 1 else 1)
        a = np.concatenate(document[place:cut])
        if sentences == 1 or generator.random() < RANDOM_SHARE:
            b, label = _elsewhere(number, pool, wanted - len(a), generator), RANDOM
            place = cut
        else:
            b, label = np.concatenate(document[cut:end]), NEXT
            place = end
        yield *_truncated(a, b, room, generator), label
        wanted = target()


def _elsewhere(number, pool, wanted, generator) -> np.ndarray:
    """Returns text of `wanted` tokens or more, where there is so much, from another document."""
    other = int(generator.integers(len(pool) - 1))
    document = pool[other + (other >= number)]
    place = int(generator.integers(len(document)))
    parts, size = [document[place]], len(document[place])
    while size < wanted and (place := place + 1) < len(document):
        parts.append(document[place])
        size += len(document[place])
    return np.concatenate(parts)


def _truncated(a, b, room, generator):
    """Takes what is too much from the longer one, token by token, at either end by chance."""
    half = room // 2
    size_a = min(len(a), max(room - len(b), room - half))
    size_b = min(len(b), max(room - len(a), half))

    def cut(tokens, size):
        front = int(generator.binomial(len(tokens) - size, 0.5))
        return tokens[front : front + size]

    return cut(a, size_a), cut(b, size_b)


def _row(a, b, label, length, start_id, separator_id):
    tokens, types = np.zeros(length, np.int32), np.zeros(length, np.uint8)
    second, end = len(a) + 2, len(a) + len(b) + 3
    tokens[:end] = np.concatenate([[start_id], a, [separator_id], b, [separator_id]])
    types[second:end] = 1
    return tokens, types, label


def _stacked(rows) -> dict[str, np.ndarray]:
    tokens, types, label = zip(*rows, strict=True)
    return {
        "tokens": np.stack(tokens), "types": np.stack(types), "label": np.array(label, np.int32),
    }  # fmt: skip


# --- from recipes ---------------------------------------------------------------------------------


def sentence_pairs(data: Mapping, task: Mapping) -> Dataset:
    """Returns pairs of sentences, for the task `nsp`.

    Stored examples: "tokens" and "types" (sequence_length,), "label" (); 0 where the second
    sentence follows the first, 1 where it does not.

    Args:
      data: the recipe's section: source, manual_dir, tokenizer, vocabulary_size, normalization,
        sequence_length.
      task: unused.

    Raises:
      UsageError: for a value that does not fit, or a corpus with a split of one document.
    """
    check(data, PACKINGS)
    length = data["sequence_length"]
    if length < LEAST_LENGTH:
        raise UsageError(
            f"A pair of sentences takes data.sequence_length={LEAST_LENGTH} or more. "
            f"Received: {length}."
        )
    corpus = corpus_of(data)
    tokenizer = tokenizer_of(corpus, data)
    layout = {
        "tokens": ((length,), token_type(tokenizer)), "types": ((length,), np.uint8),
        "label": ((), np.int32),
    }  # fmt: skip

    def rows(split):
        return make_pairs(
            tokenized_sentences(corpus.splits[split](), tokenizer),
            length,
            np.random.default_rng(zlib.crc32(split.encode())),
            start_id=tokenizer.start_id,
            separator_id=tokenizer.separator_id,
        )

    what = {"pairs": VERSION, "length": length}
    splits, digest = prepared(corpus, tokenizer, what, layout, rows)
    return Dataset(corpus.name, splits, (), digest, tokenizer, facts(corpus, tokenizer, splits))


def rows_of_text(data: Mapping, task: Mapping) -> Dataset:
    """Returns rows of `sequence_length` tokens, for the task `mlm`; made as for `clm`.

    Args:
      data: the recipe's section, see `zoo.data.text.dataset.language_modeling`.
      task: unused.
    """
    check(data, PACKINGS)
    return token_rows(data, data["sequence_length"] - 1)
