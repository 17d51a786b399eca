"""Finds exact duplicates, near duplicates (MinHash LSH, then verified) and repeated lines.

Near duplicates (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4): a
document is the set of its word n-grams (shingles). `bands` times `rows` MinHash values (datasketch)
estimate the Jaccard similarity s of two sets. Two documents are candidates if all values of a band
are equal, which has probability 1 - (1 - s^rows)^bands:

    s                   0.5    0.6    0.7    0.75   0.8    0.85   0.9
    25 bands of 8 rows  0.093  0.345  0.773  0.928  0.990  0.9996 0.999999

Candidates are duplicates if the exact Jaccard similarity of their sets reaches `similarity`. A
document is dropped only if it is a duplicate of an earlier document that stays. Chains are not
followed: if A is similar to B and B to C, then C stays unless it is similar to A, because the ends
of a chain of small changes may have nothing in common.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable

import numpy as np

from zoo.prep.cleaning.languages import LETTERS

_WORD = re.compile(rf"[{LETTERS}]+(?:\u200c[{LETTERS}]+)*")
_BATCH_SIZE = 1 << 14  # shingles per MinHash update: datasketch allocates a row for each
# Documents per bucket up to which all pairs are candidates.
ALL_PAIRS = 32
_CACHED_WORDS = 1 << 20


def hash64(text: str) -> int:
    """Returns a 64-bit hash of text, equal on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def normalize_words(text: str) -> str:
    """Returns the words of text in lower case, joined by spaces, without punctuation."""
    return " ".join(_WORD.findall(text.lower()))


@functools.lru_cache(_CACHED_WORDS)
def _word_hash(word: str) -> int:
    return hash64(word)


def shingles(normal_text: str, n: int) -> np.ndarray:
    """Returns the distinct word n-grams as sorted uint32 hashes; at least one.

    Args:
      normal_text: text from `normalize_words`.
      n: words per n-gram; a shorter text is one n-gram.
    """
    words = normal_text.split(" ")
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    n = min(n, len(words))
    count = len(words) - n + 1
    mixed_hashes = np.zeros(count, np.uint64)
    for i in range(n):
        mixed_hashes = (mixed_hashes ^ hashes[i : i + count]) * np.uint64(0x9E3779B97F4A7C15)
        mixed_hashes ^= mixed_hashes >> np.uint64(29)
    return np.unique((mixed_hashes >> np.uint64(32)).astype(np.uint32))


def band_hashes(shingle_hashes: np.ndarray, bands: int, rows: int) -> list[int]:
    """Returns a 64-bit hash for each band of the MinHash of (n,) shingles."""
    sketch = _sketch(bands * rows)
    sketch.clear()
    for first in range(0, len(shingle_hashes), _BATCH_SIZE):
        sketch.update_batch(shingle_hashes[first : first + _BATCH_SIZE].tolist())
    data = sketch.hashvalues.tobytes()
    size = len(data) // bands
    return [
        int.from_bytes(hashlib.blake2b(data[i : i + size], digest_size=8).digest())
        for i in range(0, len(data), size)
    ]


@functools.cache
def _sketch(permutations: int):
    from datasketch import MinHash

    return MinHash(num_perm=permutations, seed=1, hashfunc=int, scheme="affine32")


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the exact Jaccard similarity of two sorted arrays of distinct values."""
    if not len(a) and not len(b):
        return 1.0
    values = np.concatenate([a, b])
    values.sort(kind="stable")
    common = int(np.count_nonzero(values[1:] == values[:-1]))
    return common / (len(values) - common)


def find_repeats(hashes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns (m, 2) uint64: key of a repeat, key of the first document with the same hash."""
    _, keys, starts, counts = _groups(hashes, keys)
    pairs = np.stack([keys, np.repeat(keys[starts], counts)], 1)
    return np.delete(pairs, starts, axis=0)


def _groups(hashes: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns sorted hashes, their keys, and start and size of each group of equal hashes."""
    order = np.lexsort((keys, hashes))
    hashes, keys = hashes[order], keys[order]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]][: len(hashes)])
    return hashes, keys, starts, np.diff(np.r_[starts, len(hashes)])


def find_frequent(
    hashes: np.ndarray, keys: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted hashes that more than `limit` documents have, and their first keys."""
    hashes, keys, starts, counts = _groups(hashes, keys)
    starts = starts[counts > limit]
    return hashes[starts], keys[starts]


def find_candidates(hashes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns sorted (m, 2) uint64: pairs of keys, smaller key first, with equal band hash.

    A bucket of up to ALL_PAIRS documents gives all pairs. In a larger one, each document is paired
    with the first ALL_PAIRS / 2 documents and with the ALL_PAIRS / 2 documents before it.
    """
    _, keys, starts, counts = _groups(hashes, keys)
    pairs = [np.empty((0, 2), np.uint64)]
    for start, count in zip(starts[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        members = keys[start : start + count]
        if count <= ALL_PAIRS:
            first, second = np.triu_indices(count, 1)
            pairs.append(np.stack([members[first], members[second]], 1))
            continue
        half = ALL_PAIRS // 2
        for index in range(half):
            later = members[index + 1 :]
            pairs.append(np.stack([np.full_like(later, members[index]), later], 1))
        remaining_members = members[half:]
        for back in range(1, half + 1):
            pairs.append(np.stack([remaining_members[:-back], remaining_members[back:]], 1))
    return np.unique(np.concatenate(pairs), axis=0)


def near_duplicates(
    duplicates: Iterable[np.ndarray], similar: Callable[[int, int], bool]
) -> np.ndarray:
    """Decides which documents are dropped: in key order, each that is similar to one that stays.

    Args:
      duplicates: (n, 2) uint64 arrays: keys of two similar documents, smaller key first.
      similar: whether two documents are similar. It is called for pairs that a large bucket left
        out: a document, and the document for which its neighbor was dropped.

    Returns:
      Sorted (m, 2) uint64: key of a dropped document, key of a similar one that stays.
    """
    duplicates = np.concatenate([np.empty((0, 2), np.uint64), *duplicates])
    keys, places = np.unique(duplicates, return_inverse=True)
    places = places.reshape(-1, 2)
    places = places[np.lexsort((places[:, 0], places[:, 1]))]
    seconds, starts = np.unique(places[:, 1], return_index=True)
    kept_index = np.arange(len(keys))  # per document, the one that stays: itself or an earlier one
    for second, start, end in zip(seconds, starts, np.r_[starts, len(places)][1:], strict=True):
        earlier = places[start:end, 0]
        earlier_kept = kept_index[earlier]
        kept_documents = earlier[earlier_kept == earlier]
        if len(kept_documents):
            kept_index[second] = kept_documents[0]
            continue
        for other in np.unique(earlier_kept):
            if similar(int(keys[other]), int(keys[second])):
                kept_index[second] = other
                break
    is_dropped = kept_index != np.arange(len(keys))
    return np.stack([keys[is_dropped], keys[kept_index[is_dropped]]], 1)
