"""Converts the cells of a label column to labels."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zoo.errors import short

# Kind of output -> name of the array of its labels.
ARRAYS = {"class": "label", "labels": "labels", "number": "target"}
OUTPUTS = tuple(ARRAYS)
SEPARATOR = "|"  # of several labels in one cell
MAX_CLASSES = 10_000  # a column with more different values is no label
_LARGEST = float(np.finfo(np.float32).max)


class InvalidLabel(Exception):
    """A label that cannot be used; the message completes "FILE, line 7: "."""


def kind_of(cell) -> str:
    """Returns the type of a cell: "text", "number", "boolean", "list", or a Python type."""
    for name, types in (
        ("text", str), ("boolean", bool), ("number", int | float), ("list", list),
    ):  # fmt: skip
        if isinstance(cell, types):
            return name
    return "nothing" if cell is None else type(cell).__name__


def parse(cell: Any, output: str, names: Mapping[str, str]) -> str | tuple[str, ...] | float:
    """Converts a cell to a label.

    Args:
      cell: a str, or a JSON value.
      output: "class", "labels" or "number".
      names: label in the file -> name of its class, for the labels that are allowed; if empty, any
        label is allowed and is its own name.

    Returns:
      The name of a class, a tuple of sorted names, or a number.

    Raises:
      InvalidLabel: if the cell has no such label.
    """
    if output == "number":
        return _number(cell)
    if output == "class":
        return _name(cell, names)
    cells = cell
    if isinstance(cell, str):
        cells = cell.split(SEPARATOR) if cell.strip() else []
    if not isinstance(cells, list):
        raise InvalidLabel(
            f"the labels must be a list, or text such as a{SEPARATOR}b. Received: {_shown(cell)}."
        )
    labels = [_name(label, names) for label in cells]
    if len(set(labels)) < len(labels):
        raise InvalidLabel(f"the labels must be different. Received: {_shown(cell)}.")
    return tuple(sorted(labels))


def _name(cell, names: Mapping[str, str]) -> str:
    if isinstance(cell, bool):
        name = str(cell).lower()
    elif isinstance(cell, int):
        name = str(cell)
    elif isinstance(cell, str) and cell.strip():
        name = cell.strip()
    else:
        advice = "; for numbers set task.output=number" if isinstance(cell, float) else ""
        raise InvalidLabel(
            f"the label must be text, an integer or a boolean. Received: {_shown(cell)}{advice}."
        )
    if not names:
        return name
    if name not in names:
        raise InvalidLabel(
            f"the label must be one of {short(', '.join(names))}. Received: {_shown(cell)}."
        )
    return names[name]


def _number(cell) -> float:
    try:
        number = float(cell) if kind_of(cell) in ("text", "number") else math.nan
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= _LARGEST:  # not a number, or infinite in float32
        raise InvalidLabel(f"the label must be a finite number. Received: {_shown(cell)}.")
    return number


def _shown(cell) -> str:
    return short(repr(cell)) if cell != "" else "an empty cell"


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns names in order: by value if all are integers, otherwise alphabetically."""
    names = set(names)
    if all(re.fullmatch(r"-?\d{1,18}", name, re.ASCII) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def as_array(labels: Sequence, output: str, class_names: Sequence[str]) -> np.ndarray:
    """Returns the labels of N examples as an array.

    Args:
      labels: values of `parse`.
      output: "class", "labels" or "number".
      class_names: names of the K classes.

    Returns:
      (N,) int32 for "class", (N, K) uint8 for "labels", (N,) float32 for "number".
    """
    if output == "number":
        return np.array(labels, np.float32)
    places = {name: place for place, name in enumerate(class_names)}
    if output == "class":
        return np.array([places[name] for name in labels], np.int32)
    array = np.zeros((len(labels), len(class_names)), np.uint8)
    for row, names in zip(array, labels, strict=True):
        row[[places[name] for name in names]] = 1
    return array
