"""Synthetic rows of bytes that test long contexts: `data.source=synthetic:NAME`.

| name | row | targets |
|---|---|---|
| `duplication` | 0 w 0 w 0, with w of random symbols 1 to 127 | the second w |
| `needle` | filler with pairs "KK:VVVV" at random places, "KK=VVVV" for each pair | last VVVV |

`duplication` is the task of Kitaev et al. 2020 (Reformer, arXiv:2001.04451, section 2, "Analysis on
a synthetic task"). In `needle`, the filler consists of lower-case letters and spaces, a key of two
upper-case letters, and a value of four bytes from 128 to 255. Tokens that are no targets count
neither in the loss nor in the accuracy. A row is a function of its split and its index, so there
are no files, and the splits have different rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.text import tokenizers
from zoo.data.text.special_tokens import FIRST_WORD
from zoo.errors import UsageError, check_name
from zoo.storage.disk import json_digest

SYNTHETIC = "synthetic:"
FORMAT = 1  # increase it when rows change
# Number of rows. A run ends before it has seen all training rows.
SPLITS = {"train": 2**20, "validation": 32, "test": 128}

NUM_SYMBOLS = 127
NUM_PAIRS = 4
_FILLER = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz ", np.uint8)
_KEY, _VALUE = 2, 4  # number of bytes
_PAIR = _KEY + 1 + _VALUE


def duplication(generator, length: int) -> np.ndarray:
    """Returns a row (length + 1,) of bytes: 0 w 0 w 0.

    Args:
      generator: NumPy random generator.
      length: number of input positions, even.
    """
    row = np.zeros(length + 1, np.uint8)
    row[1 : length // 2] = generator.integers(1, NUM_SYMBOLS + 1, length // 2 - 1)
    row[length // 2 + 1 : -1] = row[1 : length // 2]
    return row


def duplication_targets(length: int) -> np.ndarray:
    """Returns whether each byte of a row is a target, (length + 1,) booleans."""
    places = np.arange(length + 1)
    return (places > length // 2) & (places < length)


def needle(generator, length: int) -> np.ndarray:
    """Returns a row (length + 1,) of bytes: filler with pairs, then the questions.

    Args:
      generator: NumPy random generator.
      length: number of input positions.
    """
    pairs = np.empty((NUM_PAIRS, _PAIR), np.uint8)
    keys = generator.choice(26**2, NUM_PAIRS, replace=False)
    pairs[:, 0], pairs[:, 1] = ord("A") + keys // 26, ord("A") + keys % 26
    pairs[:, _KEY] = ord(":")
    pairs[:, _KEY + 1 :] = generator.integers(128, 256, (NUM_PAIRS, _VALUE))
    size = NUM_PAIRS * _PAIR
    row = generator.choice(_FILLER, length + 1)
    free = np.sort(generator.integers(0, length + 2 - 2 * size, NUM_PAIRS))
    for pair, start in zip(pairs, free + _PAIR * np.arange(NUM_PAIRS), strict=True):
        row[start : start + _PAIR] = pair
    questions = generator.permutation(pairs)
    questions[:, _KEY] = ord("=")
    row[-size:] = questions.reshape(-1)
    return row


def needle_targets(length: int) -> np.ndarray:
    """Returns whether each byte of a row is a target, (length + 1,) booleans."""
    targets = np.zeros(length + 1, bool)
    targets[-NUM_PAIRS * _PAIR :] = np.tile(np.arange(_PAIR) > _KEY, NUM_PAIRS)
    return targets


@dataclass(frozen=True)
class Source:
    """A kind of synthetic rows.

    Attributes:
      row: `row(generator, length)` returns a row of bytes.
      targets: `targets(length)` returns which bytes of a row are targets.
      minimum: smallest length.
      multiple: number that divides the length.
    """

    row: Callable
    targets: Callable
    minimum: int
    multiple: int = 1


SOURCES = {
    "duplication": Source(duplication, duplication_targets, 4, 2),
    "needle": Source(needle, needle_targets, 2 * NUM_PAIRS * _PAIR - 1),
}


class ComputedRows:
    """Rows that are computed when they are read.

    Args:
      compute: `compute(index)` returns the row of an index, of the shape and dtype of row 0.
      count: number of rows.
    """

    def __init__(self, compute: Callable[[int], np.ndarray], count: int):
        first = compute(0)
        self._compute, self.shape, self.dtype = compute, (count, *first.shape), first.dtype
        self.ndim, self.size = 1 + first.ndim, count * first.size

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index) -> np.ndarray:
        numbers = np.arange(len(self))[index]
        if not np.ndim(numbers):
            return self._compute(int(numbers))
        return np.stack([self._compute(int(number)) for number in numbers])


def synthetic_rows(data: Mapping, tokenizer=None) -> Dataset:
    """Returns rows for `zoo.tasks.clm`: "tokens" and "is_target", both (sequence_length + 1,).

    Args:
      data: section `data` of the recipe: source, manual_dir, tokenizer, normalization,
        sequence_length.
      tokenizer: tokenizer of a file; None for a new one of kind data["tokenizer"].

    Raises:
      UsageError: if there is no such source, the tokenizer is not "byte", or the length is wrong.
    """
    name, length = data["source"].removeprefix(SYNTHETIC), data["sequence_length"]
    check_name("synthetic source", name, SOURCES)
    source = SOURCES[name]
    if tokenizer is None and data["tokenizer"] == "byte":
        tokenizer = tokenizers.train("byte", ["\0"], 0, data["normalization"])
    if tokenizer is None or tokenizer.kind != "byte" or data["manual_dir"]:
        raise UsageError(
            f"{data['source']} requires data.tokenizer=byte and no data.manual_dir. Received: "
            f"data.tokenizer={data['tokenizer']!r}, data.manual_dir={data['manual_dir']!r}."
        )
    if length < source.minimum or length % source.multiple:
        rule = f"at least {source.minimum}"
        if source.multiple > 1:
            rule += f" and a multiple of {source.multiple}"
        raise UsageError(
            f"data.sequence_length must be {rule} for {data['source']}. Received: {length}."
        )
    targets = source.targets(length)
    splits = {}
    for number, (split, count) in enumerate(SPLITS.items()):

        def tokens(index, number=number):
            row = source.row(np.random.default_rng((number, index)), length)
            return np.uint16(FIRST_WORD) + row

        splits[split] = {
            "tokens": ComputedRows(tokens, count),
            "is_target": ComputedRows(lambda index: targets, count),
        }
    digest = json_digest([FORMAT, SPLITS, name, length, tokenizer.fingerprint])
    facts = {"Data": {"source": data["source"], "licence": "computed", **SPLITS}}
    return Dataset(data["source"], splits, (), digest, tokenizer, facts)
