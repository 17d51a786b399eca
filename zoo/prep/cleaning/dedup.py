"""Which documents say the same: exact, near (MinHash and LSH, then verified) and line by line.

Near duplicates (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4): a
document is the set of its n-grams of words; `bands` times `rows` minima of hash permutations
(datasketch) estimate the Jaccard similarity s of two sets, and two documents become candidates
where all minima of a band agree. That happens with probability 1 - (1 - s^rows)^bands:

    s            0.5    0.6    0.7    0.75   0.8    0.85   0.9
    25 bands, 8  0.093  0.345  0.773  0.928  0.990  0.9996 0.999999

Candidates are then verified: they are duplicates where the exact Jaccard of their sets reaches
`similarity`. A document is dropped only where it is a duplicate of an earlier one that stays.
Chains are not followed: where A is like B and B like C, C stays unless it is like A, for along a
chain of small changes two documents may end up with nothing in common.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable

import numpy as np

from zoo.prep.cleaning.languages import LETTERS

_WORD = re.compile(rf"[{LETTERS}]+(?:\u200c[{LETTERS}]+)*")
_AT_ONCE = 1 << 14  # shingles that are permuted at once: datasketch holds a row for each
# In a bucket of more documents than this, each is compared to the first and the last ones before.
ALL_PAIRS = 32
_CACHED_WORDS = 1 << 20


def hash64(text: str) -> int:
    """Returns 64 bits of text: the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def normal(text: str) -> str:
    """Returns text as exact duplicates share it: words in lower case, without marks and spaces."""
    return " ".join(_WORD.findall(text.lower()))


@functools.lru_cache(_CACHED_WORDS)
def _word_hash(word: str) -> int:
    return hash64(word)


def shingles(normal_text: str, n: int) -> np.ndarray:
    """Returns the different n-grams of words as sorted uint32 hashes; at least one.

    Args:
      normal_text: of `normal`.
      n: words; a shorter text is one n-gram.
    """
    words = normal_text.split(" ")
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    n = min(n, len(words))
    count = len(words) - n + 1
    mixed = np.zeros(count, np.uint64)
    for i in range(n):
        mixed = (mixed ^ hashes[i : i + count]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return np.unique((mixed >> np.uint64(32)).astype(np.uint32))


def band_hashes(found: np.ndarray, bands: int, rows: int) -> list[int]:
    """Returns a hash of 64 bits for each band of the MinHash of shingles."""
    sketch = _sketch(bands * rows)
    sketch.clear()
    for first in range(0, len(found), _AT_ONCE):
        sketch.update_batch(found[first : first + _AT_ONCE].tolist())
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
    """Returns the exact Jaccard similarity of two sorted arrays without repeats."""
    if not len(a) and not len(b):
        return 1.0
    both = np.concatenate([a, b])
    both.sort(kind="stable")
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / (len(both) - common)


def repeats(hashes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns (m, 2) uint64: key of a document and of the first one with the same hash."""
    order = np.lexsort((keys, hashes))
    hashes, keys = hashes[order], keys[order]
    first = np.r_[True, hashes[1:] != hashes[:-1]][: len(hashes)]
    of_group = keys[first][np.cumsum(first) - 1]
    return np.stack([keys[~first], of_group[~first]], 1).reshape(-1, 2)


def frequent(hashes: np.ndarray, keys: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes that more than `most` documents have, sorted, and their first keys."""
    order = np.lexsort((keys, hashes))
    hashes, keys = hashes[order], keys[order]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]][: len(hashes)])
    counts = np.diff(np.r_[starts, len(hashes)])
    starts = starts[counts > most]
    return hashes[starts], keys[starts]


def candidates(hashes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Returns (m, 2) uint64, sorted: pairs of keys, the smaller first, that share a band's hash.

    All pairs of a small bucket; in one of more than ALL_PAIRS documents each with half as many of
    the first and of the last before it.
    """
    order = np.lexsort((keys, hashes))
    hashes, keys = hashes[order], keys[order]
    starts = np.flatnonzero(np.r_[True, hashes[1:] != hashes[:-1]][: len(hashes)])
    counts = np.diff(np.r_[starts, len(hashes)])
    pairs = [np.empty((0, 2), np.uint64)]
    for start, count in zip(starts[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        members = keys[start : start + count]
        if count <= ALL_PAIRS:
            first, second = np.triu_indices(count, 1)
            pairs.append(np.stack([members[first], members[second]], 1))
            continue
        half = ALL_PAIRS // 2
        for place in range(half):
            later = members[place + 1 :]
            pairs.append(np.stack([np.full_like(later, members[place]), later], 1))
        rest = members[half:]  # of which each was compared to the first ones
        for back in range(1, half + 1):
            pairs.append(np.stack([rest[:-back], rest[back:]], 1))
    return np.unique(np.concatenate(pairs), axis=0)


def representatives(
    duplicates: Iterable[np.ndarray], similar: Callable[[int, int], bool]
) -> np.ndarray:
    """Decides which documents go: in the order of keys, each that is like one that stays.

    Args:
      duplicates: (n, 2) uint64 each: keys of two documents that are alike, the smaller first.
      similar: whether two documents are alike. It is asked for those that are not among the pairs
        (a bucket of many documents has no pairs of all): whether a document is like the one that
        stays for its neighbor.

    Returns:
      (m, 2) uint64, sorted: key of a document that goes, and of one it is like, which stays.
    """
    duplicates = np.concatenate([np.empty((0, 2), np.uint64), *duplicates])
    keys, places = np.unique(duplicates, return_inverse=True)
    places = places.reshape(-1, 2)
    places = places[np.lexsort((places[:, 0], places[:, 1]))]
    seconds, starts = np.unique(places[:, 1], return_index=True)
    kept = np.arange(len(keys))  # for each document the one that stays: itself or an earlier one
    for second, start, end in zip(seconds, starts, np.r_[starts, len(places)][1:], strict=True):
        earlier = places[start:end, 0]
        of_earlier = kept[earlier]
        stays = earlier[of_earlier == earlier]
        if len(stays):
            kept[second] = stays[0]
            continue
        for other in np.unique(of_earlier):
            if similar(int(keys[other]), int(keys[second])):
                kept[second] = other
                break
    goes = kept != np.arange(len(keys))
    return np.stack([keys[goes], keys[kept[goes]]], 1)
