"""Training data of encoders: pairs of sentences (BERT), or rows of text (RoBERTa).

Pairs are created as in BERT's create_pretraining_data.py (Devlin et al. 2018, appendix A.2): a
sequence of sentences that fills the length is split in two. In half of the pairs, text of another
document replaces the second part, whose sentences begin the next pair. Pairs are drawn once, when
the records are created; epochs differ in masks and order.
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
    cached_records,
    check,
    corpus_of,
    facts,
    token_rows,
    token_type,
    tokenizer_of,
)
from zoo.errors import UsageError

VERSION = 1  # increase it when the pairs of an unchanged corpus change
MIN_LENGTH = 8
SHORT_SHARE = 0.1  # share of pairs of random length, because later inputs are not always full
RANDOM_SHARE = 0.5
NEXT, RANDOM = 0, 1  # labels
BUFFER = 4096  # number of documents from which random sentences are drawn
CHUNK_ROWS = 1024

# --- sentences ------------------------------------------------------------------------------------

# Ends of sentences with closing quotes and brackets: in Latin, Greek, Persian, Arabic, Urdu and
# Devanagari text before white space, in Chinese and Japanese text anywhere.
_END = re.compile(r"[.!?…؟۔।]+[\"'”’»)\]]*\s+|[。！？]+[”’」』）]*\s*")
# Abbreviations that rarely end a sentence, and abbreviations that do not end one before a number.
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
    """Splits a text into nonempty sentences by rules.

    A sentence ends at the end of a line, and at `. ! ? …` and similar marks before white space,
    except before a lower-case letter and after abbreviations and initials ("Dr. Who",
    "J. S. Bach", "the U.S. Army"). Errors do no harm: for BERT, a sentence is any span of text
    (Devlin et al. 2018, section 3).
    """
    sentences = []
    for line in text.splitlines():
        start = 0
        for match in _END.finditer(line):
            if _is_sentence_end(line, match):
                sentences.append(line[start : match.end()])
                start = match.end()
        sentences.append(line[start:])
    return [sentence for sentence in map(str.strip, sentences) if sentence]


def _is_sentence_end(line: str, match: re.Match) -> bool:
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
    """Yields the sentences, (n,) int32 arrays of tokens, of each document that has tokens."""
    counts = deque()

    def sentences():
        for document in documents:
            if parts := split_sentences(document):
                counts.append(len(parts))
                yield from parts

    encoded_sentences = tokenizer.encode_documents(sentences())
    for first in encoded_sentences:
        document = [first, *islice(encoded_sentences, counts.popleft() - 1)]
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
    """Creates pairs [start] A [separator] B [separator], padded with 0.

    Args:
      documents: nonempty lists of sentences, (n,) integers each.
      length: L, length of a pair with its special tokens.
      generator: source of random numbers.
      start_id: id of [start].
      separator_id: id of [separator].
      buffer: number of documents held at once; random sentences are drawn from them.

    Yields:
      Chunks {"tokens" (n, L) int32, "types" (n, L) uint8, "label" (n,) int32}.

    Raises:
      UsageError: if there are fewer than two documents.
    """
    max_tokens = length - 3
    rows = []
    for group, pool in _groups(documents, buffer):
        for number, document in enumerate(group):
            for a, b, label in _pairs(document, number, pool, max_tokens, generator):
                rows.append(_row(a, b, label, length, start_id, separator_id))
                if len(rows) == CHUNK_ROWS:
                    yield _stack_rows(rows)
                    rows = []
    if rows:
        yield _stack_rows(rows)


def _groups(documents, buffer: int):
    """Yields `(documents, pool)`; random sentences are drawn from the pool."""
    documents, before = iter(documents), []
    while group := list(islice(documents, buffer)):
        pool = group if len(group) > 1 else group + before
        if len(pool) < 2:
            raise UsageError(
                "task.name=nsp requires at least two documents per split, because the second "
                "sentence of half of the pairs is from another document. Received: a split of one "
                "document. Add documents, or use task.name=mlm."
            )
        yield group, pool
        before = group


def _pairs(document, number, pool, max_tokens, generator):
    """Yields (A, B, label) of the document `pool[number]`."""

    def draw_size():
        short = generator.random() < SHORT_SHARE
        return int(generator.integers(2, max_tokens + 1)) if short else max_tokens

    start, target = 0, draw_size()
    while start < len(document):
        end, size = start, 0
        while end < len(document) and size < target:
            size += len(document[end])
            end += 1
        sentences = end - start
        cut = start + (int(generator.integers(1, sentences)) if sentences > 1 else 1)
        a = np.concatenate(document[start:cut])
        if sentences == 1 or generator.random() < RANDOM_SHARE:
            b, label = _random_text(number, pool, target - len(a), generator), RANDOM
            start = cut
        else:
            b, label = np.concatenate(document[cut:end]), NEXT
            start = end
        yield *_truncated(a, b, max_tokens, generator), label
        target = draw_size()


def _random_text(number, pool, target, generator) -> np.ndarray:
    """Returns text of at least `target` tokens, if possible, from another document of the pool."""
    other = int(generator.integers(len(pool) - 1))
    document = pool[other + (other >= number)]
    index = int(generator.integers(len(document)))
    parts, size = [document[index]], len(document[index])
    while size < target and (index := index + 1) < len(document):
        parts.append(document[index])
        size += len(document[index])
    return np.concatenate(parts)


def _truncated(a, b, max_tokens, generator):
    """Truncates the longer part at random ends until both parts fit."""
    half = max_tokens // 2
    size_a = min(len(a), max(max_tokens - len(b), max_tokens - half))
    size_b = min(len(b), max(max_tokens - len(a), half))

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


def _stack_rows(rows) -> dict[str, np.ndarray]:
    tokens, types, label = zip(*rows, strict=True)
    return {
        "tokens": np.stack(tokens), "types": np.stack(types), "label": np.array(label, np.int32),
    }  # fmt: skip


# --- datasets ------------------------------------------------------------------------------------


def sentence_pairs(data: Mapping, task: Mapping) -> Dataset:
    """Loads pairs of sentences for the task `nsp`.

    Examples have "tokens" and "types" (sequence_length,), and "label" (): 0 if the second sentence
    follows the first, 1 if it is random.

    Args:
      data: section `data` of the recipe: source, manual_dir, tokenizer, vocabulary_size,
        normalization, sequence_length.
      task: unused.

    Raises:
      UsageError: if a key is invalid, or a split of the corpus has one document.
    """
    check(data, PACKINGS)
    length = data["sequence_length"]
    if length < MIN_LENGTH:
        raise UsageError(
            f"data.sequence_length must be at least {MIN_LENGTH} for pairs of sentences. "
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

    settings = {"pairs": VERSION, "length": length}
    splits, digest = cached_records(corpus, tokenizer, settings, layout, rows)
    return Dataset(corpus.name, splits, (), digest, tokenizer, facts(corpus, tokenizer, splits))


def rows_of_text(data: Mapping, task: Mapping) -> Dataset:
    """Loads rows of `sequence_length` tokens for the task `mlm`, packed as for `clm`.

    Args:
      data: section `data` of the recipe, see `zoo.data.text.dataset.language_modeling`.
      task: unused.
    """
    check(data, PACKINGS)
    return token_rows(data, data["sequence_length"] - 1)
