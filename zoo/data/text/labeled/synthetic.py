"""Made-up labeled texts for trying out recipes without a download: `data.source=synthetic:NAME`.

| name | text | classes |
|---|---|---|
| `opinions` | "we saw this film again, it was not very dull ." | negative, positive |
| `inference` | "the cup is red and the door is open ." and "the cup is blue ." | contradiction, … |

`opinions` is decided by an adjective, and by a "not" before it in every fifth text. `inference` has
pairs: the second text repeats a statement of the first (entailment), denies one (contradiction), or
tells something new (neutral).
"""

from pathlib import Path

import numpy as np

from zoo.data.text.labeled.examples import Source
from zoo.data.text.labeled.tables import Table
from zoo.errors import check_name
from zoo.storage.disk import json_digest

SYNTHETIC = "synthetic:"
VERSION = 1  # increase it when texts change
SPLITS = {"train": 2000, "test": 400}

_GOOD = ["good", "great", "funny", "warm", "clever", "moving", "bright", "fresh"]
_BAD = ["bad", "dull", "slow", "cold", "silly", "boring", "empty", "weak"]
_SUBJECTS = ["film", "story", "plot", "cast", "music", "ending", "script", "scene"]
_BEFORE = ["we saw this {} again ,", "my friend says the {} ,", "the {} of last year ,", "the {} ,"]
_OBJECTS = ["cup", "door", "house", "car", "shirt", "book", "table", "lamp"]
_STATES = [("red", "blue"), ("open", "closed"), ("old", "new"), ("big", "small"), ("wet", "dry")]


def opinions(generator) -> tuple[str, str]:
    """Returns a text and its class."""

    def choose(words):
        return words[generator.integers(len(words))]

    is_good, is_negated = generator.integers(0, 2), int(generator.random() < 0.2)
    words = [choose(_BEFORE).format(choose(_SUBJECTS)), "it was"]
    words += ["not"] * is_negated + ["very"] * generator.integers(0, 2)
    words += [choose(_GOOD if is_good else _BAD), "."]
    return " ".join(words), ("negative", "positive")[is_good ^ is_negated]


def inference(generator) -> tuple[str, str, str]:
    """Returns a premise, a hypothesis and their class."""
    objects = generator.permutation(_OBJECTS)[:3]
    pairs = [_STATES[i] for i in generator.integers(len(_STATES), size=3)]
    sides = generator.integers(0, 2, 3)
    facts = [
        f"the {thing} is {pair[side]}"
        for thing, pair, side in zip(objects, pairs, sides, strict=True)
    ]
    label = ("contradiction", "entailment", "neutral")[generator.integers(3)]
    told = generator.integers(2)
    hypothesis = {
        "entailment": facts[told],
        "contradiction": f"the {objects[told]} is {pairs[told][1 - sides[told]]}",
        "neutral": facts[2],
    }[label]
    return f"{facts[0]} and {facts[1]} .", f"{hypothesis} .", label


_KINDS = {
    "opinions": (opinions, ("text", "label")),
    "inference": (inference, ("premise", "hypothesis", "label")),
}


def synthetic_source(name: str) -> Source:
    """Returns the source `synthetic:NAME`; its texts are the same each time.

    Raises:
      UsageError: if the name is unknown.
    """
    kind = name.removeprefix(SYNTHETIC)
    check_name("synthetic labeled text", kind, _KINDS)
    make, columns = _KINDS[kind]

    def table(split: str, seed: int) -> Table:
        generator = np.random.default_rng(seed)
        rows = [dict(zip(columns, make(generator), strict=True)) for _ in range(SPLITS[split])]

        def read(chosen):
            for number, row in enumerate(rows, 1):
                yield number, tuple(row[column] for column in chosen)

        return Table(Path(f"{name} ({split})"), columns, read, "row")

    tables = {split: table(split, seed) for seed, split in enumerate(SPLITS)}
    return Source(name, tables, json_digest([VERSION, name]), columns, licence="Apache-2.0")
