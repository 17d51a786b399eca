"""Questions whose answers take a known number of steps, for the task `by_depth`.

| `data.source` | question | best guess |
|---|---|---|
| `synthetic:chase` | the root of a node's tree, from a list of edges | 1 / 4 |
| `synthetic:modular` | the value of a chain of sums and products modulo 7 | 1 / 7 |
| `synthetic:parity` | the sum of bits modulo 2 | 1 / 2 |
| `synthetic:sort` | a number of a list by its rank | `sort_guess` |

`synthetic:NAME_steps` has the same questions with the steps written out before the answer (chain of
thought). Rows of the splits train and validation have depths up to `task.depth`, those of test up
to `DEEPER` times as much. A row is a function of its split and its index. The hash of its content
decides which split it may belong to, so no row of one split occurs in another one.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.text import tokenizers
from zoo.data.text.dataset import own_tokenizer
from zoo.data.text.synthetic.chase import BREAK, TREES, chase, chase_guess, chase_length
from zoo.data.text.synthetic.computed import ComputedRows
from zoo.data.text.synthetic.contexts import SYNTHETIC
from zoo.data.text.synthetic.modular import (
    chain_length,
    modular,
    modular_guess,
    parity,
    parity_guess,
)
from zoo.data.text.synthetic.question import row_of
from zoo.data.text.synthetic.sort import NUMBERS, sort, sort_guess, sort_length
from zoo.errors import UsageError, check_name
from zoo.storage.disk import json_digest

FORMAT = 1  # increase it when rows change
DEEPER = 2
# Number of rows. A run ends before it has seen all training rows.
SPLITS = {"train": 2**20, "validation": 128, "test": 512}
ARRAYS = ("tokens", "answers", "depths", "questions")
_STEPS = "_steps"
_SHARES = 16  # of all contents: one for validation, one for test, the others for train
_ATTEMPTS = 1000


@dataclass(frozen=True)
class Kind:
    """A kind of questions.

    Attributes:
      row: `row(generator, depth, largest, steps)`, see `zoo.data.text.synthetic.chase.chase`.
      length: `length(depth, steps)`, number of positions of a row.
      guess: `guess(depth)`, accuracy of the best guess.
      largest: largest depth of a row.
      mixed: whether one row without steps has questions of all depths.
    """

    row: Callable
    length: Callable
    guess: Callable
    largest: int
    mixed: bool = True


KINDS = {
    "chase": Kind(chase, chase_length, chase_guess, BREAK // TREES - 1),
    "modular": Kind(modular, chain_length, modular_guess, 1000),
    "parity": Kind(parity, chain_length, parity_guess, 1000),
    "sort": Kind(sort, sort_length, sort_guess, NUMBERS - 1, mixed=False),
}


def kind_of(source: str) -> tuple[Kind, bool]:
    """Returns the kind of `data.source`, and whether its steps are written out.

    Raises:
      UsageError: if there is no such source.
    """
    name = source.removeprefix(SYNTHETIC)
    check_name("source of questions", name, [*KINDS, *(k + _STEPS for k in KINDS)])
    return KINDS[name.removesuffix(_STEPS)], name.endswith(_STEPS)


def questions(data: Mapping, task: Mapping) -> Dataset:
    """Returns rows for `zoo.tasks.by_depth`, the arrays `ARRAYS` of `row_of`, each (T,).

    Args:
      data: section `data` of the recipe: source, manual_dir, tokenizer, normalization,
        sequence_length.
      task: section `task` of the recipe: depth.

    Raises:
      UsageError: if there is no such source, or a key has another value than the source requires.
    """
    kind, steps = kind_of(data["source"])
    if data["tokenizer"] == "byte":
        tokenizer = tokenizers.train("byte", ["\0"], 0, data["normalization"])
    else:
        tokenizer = own_tokenizer(data)
    is_byte = tokenizer is not None and tokenizer.kind == "byte"
    if not is_byte or data["manual_dir"] or data["sequence_length"]:
        raise UsageError(
            f"{data['source']} requires data.tokenizer=byte, no data.manual_dir, and "
            "data.sequence_length=0, because the length follows from task.depth. Received: "
            f"data.tokenizer={data['tokenizer']!r}, data.manual_dir={data['manual_dir']!r}, "
            f"data.sequence_length={data['sequence_length']}."
        )
    depth = task["depth"]
    if not 1 <= depth * DEEPER <= kind.largest:
        raise UsageError(
            f"task.depth must be from 1 to {kind.largest // DEEPER} for {data['source']}. "
            f"Received: {depth}."
        )
    splits = {
        split: split_rows(data["source"], depth, split, depth * (DEEPER if split == "test" else 1))
        for split in SPLITS
    }
    digest = json_digest([FORMAT, SPLITS, data["source"], depth, tokenizer.fingerprint])
    facts = {"Data": {"source": data["source"], "licence": "computed", **SPLITS}}
    return Dataset(data["source"], splits, (), digest, tokenizer, facts)


def split_rows(source: str, trained: int, split: str, depth: int, exact: bool = False) -> dict:
    """Returns the arrays of a split, array name -> rows.

    Args:
      source: `data.source`.
      trained: `task.depth`.
      split: name of the split.
      depth: largest depth of a row.
      exact: whether all rows have this depth. Otherwise those with a single depth have any depth
        up to it.
    """
    kind, steps = kind_of(source)
    number, length = list(SPLITS).index(split), kind.length(depth, steps)
    varies = (steps or not kind.mixed) and not exact

    @functools.lru_cache(1024)  # the arrays of a row are read one after the other
    def row(index):
        for attempt in range(_ATTEMPTS):
            generator = np.random.default_rng((number, index, attempt))
            levels = int(generator.integers(1, depth + 1)) if varies else depth
            prompt, asked, key = kind.row(generator, levels, trained * DEEPER, steps)
            if _split_of(key) == split:
                return row_of(prompt, asked, length)
        raise UsageError(
            f"{source} has no rows of depth {depth} for the split {split!r}: increase task.depth."
        )

    return {
        name: ComputedRows(lambda index, i=i: row(index)[i], SPLITS[split])
        for i, name in enumerate(ARRAYS)
    }


def _split_of(key: bytes) -> str:
    """Returns the split that a row with this content belongs to."""
    return {0: "validation", 1: "test"}.get(zlib.crc32(key) % _SHARES, "train")
