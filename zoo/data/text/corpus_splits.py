"""Splits documents into train, validation and test.

A split is a function that returns a new iterator, so that documents are not held in memory.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np


def key_hash(key: str) -> int:
    """Returns a uniform 64-bit hash, equal on every machine."""
    # The name of a file may have lone surrogates.
    data = key.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def split_by_hash(
    documents: Callable[[], Iterator[tuple[str, object]]], share: float, hashes=None
) -> dict[str, Callable[[], Iterator]]:
    """Returns train, validation and test splits, by the hash of each document's key.

    Args:
      documents: returns a new iterator of (key, document).
      share: share of the different keys, from 0 to 0.5, in validation and in test; at least 1 key.
      hashes: hashes of all keys, if known.
    """
    if hashes is None:
        hashes = np.fromiter((key_hash(key) for key, _ in documents()), np.uint64)
    sorted_hashes = np.unique(np.asarray(hashes, np.uint64))
    count = max(1, round(share * len(sorted_hashes)))
    first_test, first_train = int(sorted_hashes[count]), int(sorted_hashes[2 * count])

    def documents_between(low, high):
        return (document for key, document in documents() if low <= key_hash(key) < high)

    return {
        "train": functools.partial(documents_between, first_train, 1 << 64),
        "validation": functools.partial(documents_between, 0, first_test),
        "test": functools.partial(documents_between, first_test, first_train),
    }


def split_by_cut(
    documents: Callable[[], Iterator[str]], lengths: Sequence[int]
) -> dict[str, Callable[[], Iterator]]:
    """Returns train and validation splits; validation has the last 10 % of the characters."""
    total = sum(lengths)
    window = total // 10
    offset, index = max(1, total * 9 // 10), 0
    while offset >= lengths[index]:
        offset -= lengths[index]
        index += 1
    document = next(itertools.islice(documents(), index, None))
    line_end = document.rfind("\n", max(0, offset - window), offset)
    if line_end >= 0:
        offset = line_end + 1
    elif index and offset <= window:
        offset = 0

    def train():
        for number, document in enumerate(itertools.islice(documents(), index + 1)):
            if piece := document if number < index else document[:offset]:
                yield piece

    def validation():
        for number, document in enumerate(itertools.islice(documents(), index, None)):
            yield document if number else document[offset:]

    return {"train": train, "validation": validation}
