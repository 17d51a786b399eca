"""Data sets by name, each a dictionary of NumPy arrays a split.

Arrays, not iterators: an example is found by its number, so that the order of the data can be a
function of (seed, epoch, index) and a run resumes exactly.

Your own data, in a file:

    np.savez("mine.npz", train_image=…, train_label=…, test_image=…, test_label=…)
    zoo.data.load("npz:mine.npz")

a folder of pictures with a folder for each class (zoo/data/arrays/pictures.py), resized to one
size:

    zoo.data.load("folder:/my/pictures", image_size=(224, 224))

or in a module of yours (loaded with `--import=my_module`):

    zoo.data.register_dataset("mine", lambda manual_dir: zoo.data.Dataset(...))
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import RunError, UsageError, near_names

NPZ = "npz:"
FOLDER = "folder:"
TFDS = "tfds:"

# What a user's files may call a split.
SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
          "validation": "validation", "test": "test"}  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Named splits of equally long arrays; checked when it is made.

    Attributes:
      name: as given to `load`.
      splits: split name -> array name -> array, example number first. Arrays may be read-only
        and on disk (`np.memmap`). Where there, "image" is (N, height, width, channels) uint8 and
        "label" is (N,) int32 or int64, a position in `class_names`.
      class_names: the classes in the order of their labels; empty where there are none.
      fingerprint: changes when the data change; a run resumes only on the data it began with.
      tokenizer: of text, a `zoo.data.text.tokenizers.Tokenizer`; it is kept beside the run.
      facts: title -> name -> JSON value: what the report tells of the data.

    Raises:
      RunError: an empty split, arrays of different lengths, or an "image" or "label" that is
        not what is said above.
    """

    name: str
    splits: Mapping[str, Mapping[str, np.ndarray]]
    class_names: tuple[str, ...]
    fingerprint: str
    tokenizer: Any = None
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        if not self.splits:
            raise RunError(f"The data set {self.name!r} has no splits.")
        for split, arrays in self.splits.items():
            _check_split(self.name, split, arrays, len(self.class_names))


def _check_split(name: str, split: str, arrays: Mapping[str, np.ndarray], num_classes: int):
    where = f"Data set {name!r}, split {split!r}"
    if not arrays:
        raise RunError(f"{where} has no arrays.")
    for key, array in arrays.items():
        if key == "weight":
            raise RunError(
                f"{where}, array 'weight' has a name that is the trainer's own: its weights are 0 "
                "for padding and 1 for examples. Take another name."
            )
        if array.dtype == object:
            raise RunError(f"{where}, array {key!r} holds Python objects, not numbers or text.")
        if array.ndim == 0 or len(array) == 0:
            raise RunError(f"{where}, array {key!r} is empty: its shape is {array.shape}.")
        if key == "image" and (array.dtype != np.uint8 or array.ndim != 4 or array.size == 0):
            raise RunError(
                f"{where}, array 'image' must be (N, height, width, channels) uint8. "
                f"Received: {array.shape} {array.dtype}."
            )
        if key == "label":
            _check_label(where, array, num_classes)
    lengths = {key: len(array) for key, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise RunError(
            f"{where}: all arrays must be equally long. "
            f"Received: {', '.join(f'{k} {n:,}' for k, n in lengths.items())}."
        )


def _check_label(where: str, label: np.ndarray, num_classes: int):
    if label.dtype not in (np.int32, np.int64) or label.ndim != 1:
        raise RunError(
            f"{where}, array 'label' must be (N,) int32 or int64. "
            f"Received: {label.shape} {label.dtype}."
        )
    # Left unchecked, a label outside the classes trains to NaN without another word.
    if num_classes and (label.min() < 0 or label.max() >= num_classes):
        raise RunError(
            f"{where}, array 'label' must lie in 0 … {num_classes - 1}, a number a class. "
            f"Received: {label.min()} … {label.max()}."
        )


def fingerprint(splits: Mapping[str, Mapping[str, np.ndarray]], class_names: Sequence[str]) -> str:
    """Returns the sha256 of everything in `splits`; reads every byte, in no time for < 1 GB."""
    digest = hashlib.sha256(repr(tuple(class_names)).encode())
    for split in sorted(splits):
        for key, array in sorted(splits[split].items()):
            digest.update(repr((split, key, array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


@dataclass(frozen=True)
class DatasetEntry:
    """One row of the register; see `register_dataset`."""

    name: str
    loader: Callable[[Path | None], Dataset]
    files: Sequence | Callable[[], Sequence] = ()
    description: str = ""
    licence: str = ""

    def original_files(self) -> tuple:
        """Returns the `zoo.data.fetch.FetchFile`s of this data set."""
        return tuple(self.files() if callable(self.files) else self.files)


_REGISTER: dict[str, DatasetEntry] = {}


def register_dataset(name, loader, files=(), description="", licence=""):
    """Makes `load(name)` and, where it has `files`, `zoo fetch NAME` work.

    Args:
      name: letters, digits, `_`, `-` and `.`; also the name of its folder in `data_dir()`.
      loader: function of `manual_dir` (a Path, or None where the user gave none) that returns a
        `Dataset`. It is called by each `load`.
      files: `zoo.data.fetch.FetchFile`s, or a function that returns them where they take a slow
        import to know.
      description: one line.
      licence: as its source states it.

    Raises:
      UsageError: for a name that is taken or cannot be the name of a folder.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(
            f"A data set's name is made of letters, digits, '_', '-' and '.'. Received: {name!r}."
        )
    if name in _REGISTER:
        raise UsageError(f"A data set {name!r} is registered already: choose another name.")
    _REGISTER[name] = DatasetEntry(name, loader, files, description, licence)


def list_datasets() -> tuple[str, ...]:
    """Returns the registered names, sorted."""
    return tuple(sorted(_REGISTER))


def dataset_entry(name: str) -> DatasetEntry:
    """Returns the row of `name`; raises UsageError with the near names where there is none."""
    if name not in _REGISTER:
        near = near_names(name, _REGISTER)
        if os.path.exists(name):
            near = f" Did you mean '{FOLDER if os.path.isdir(name) else NPZ}{name}'?"
        raise UsageError(
            f"There is no data set {name!r}.{near} "
            f"Known: {', '.join(list_datasets())}, npz:FILE.npz for your own arrays, "
            "folder:FOLDER for pictures, tfds:NAME:VERSION for any of TFDS; your own by --import "
            "of the module that registers it."
        )
    return _REGISTER[name]
