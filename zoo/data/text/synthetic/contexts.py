"""Rows of bytes that test long contexts, for the task `clm`: `data.source=synthetic:NAME`.

| name | row | targets |
|---|---|---|
| `duplication` | 0 w 0 w 0, with w of random symbols 1 to 127 | the second w |
| `needle` | filler with pairs "KK:VVVV" at random places, "KK=VVVV" for each pair | last VVVV |

Tokens that are no targets count neither in the loss nor in the accuracy. A row is a function of its
split and its index, so there are no files, and the splits have different rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.text import tokenizers
from zoo.data.text.special_tokens import FIRST_WORD
from zoo.data.text.synthetic.computed import ComputedRows
from zoo.data.text.synthetic.duplication import duplication, duplication_targets
from zoo.data.text.synthetic.needle import NUM_PAIRS, PAIR, needle, needle_targets
from zoo.errors import UsageError, check_name
from zoo.storage.disk import json_digest

SYNTHETIC = "synthetic:"
FORMAT = 1  # increase it when rows change
# Number of rows. A run ends before it has seen all training rows.
SPLITS = {"train": 2**20, "validation": 32, "test": 128}


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
    "needle": Source(needle, needle_targets, 2 * NUM_PAIRS * PAIR - 1),
}


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
