"""Registry of datasets; every split of a dataset is a dictionary of NumPy arrays.

Arrays allow random access, so the order of the data can be a function of (seed, epoch, index), and
a run resumes exactly.

To use your own arrays in a file:

    np.savez("mine.npz", train_image=…, train_label=…, test_image=…, test_label=…)
    zoo.data.load("npz:mine.npz")

A folder of images with a folder per class (zoo/data/arrays/images.py), resized to one size:

    zoo.data.load("folder:/my/images", image_size=(224, 224))

A dataset of your own module, which `--import=my_module` imports:

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

# Names of splits in users' files -> our names.
SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
          "validation": "validation", "test": "test"}  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Named splits of equally long arrays; validated on creation.

    Attributes:
      name: argument of `load`.
      splits: split name -> array name -> array (N, ...) of N examples. Arrays may be memory-mapped
        and read-only. "image" must be (N, height, width, channels) uint8, and "label" (N,) int32
        or int64, an index into `class_names`.
      class_names: names of the classes by label; may be empty.
      fingerprint: changes when the data change; a run resumes only with equal data.
      tokenizer: `zoo.data.text.tokenizers.Tokenizer` of a text dataset; saved with a run.
      facts: title -> name -> JSON value, shown in the report.

    Raises:
      RunError: if a split is empty, arrays differ in length, or "image" or "label" has another
        shape or dtype.
    """

    name: str
    splits: Mapping[str, Mapping[str, np.ndarray]]
    class_names: tuple[str, ...]
    fingerprint: str
    tokenizer: Any = None
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        if not self.splits:
            raise RunError(f"The dataset {self.name!r} has no splits.")
        for split, arrays in self.splits.items():
            _check_split(self.name, split, arrays, len(self.class_names))


def _check_split(name: str, split: str, arrays: Mapping[str, np.ndarray], num_classes: int):
    where = f"Dataset {name!r}, split {split!r}"
    if not arrays:
        raise RunError(f"{where}: a split must have at least one array.")
    for key, array in arrays.items():
        if key == "weight":
            raise RunError(
                f"{where}: no array may be named 'weight', which the trainer uses for padding. "
                "Rename the array."
            )
        if array.dtype == object:
            raise RunError(
                f"{where}, array {key!r} must contain numbers or strings. Received: dtype object."
            )
        if array.ndim == 0 or len(array) == 0:
            raise RunError(
                f"{where}, array {key!r} must not be empty. Received: shape {array.shape}."
            )
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
            f"{where}: all arrays must have the same length. "
            f"Received: {', '.join(f'{k} {n:,}' for k, n in lengths.items())}."
        )


def _check_label(where: str, label: np.ndarray, num_classes: int):
    if label.dtype not in (np.int32, np.int64) or label.ndim != 1:
        raise RunError(
            f"{where}, array 'label' must be (N,) int32 or int64. "
            f"Received: {label.shape} {label.dtype}."
        )
    # A label outside the classes gives a loss of NaN without an error.
    if num_classes and (label.min() < 0 or label.max() >= num_classes):
        raise RunError(
            f"{where}, array 'label' must be in 0 … {num_classes - 1}, one integer per class. "
            f"Received: {label.min()} … {label.max()}."
        )


def fingerprint(splits: Mapping[str, Mapping[str, np.ndarray]], class_names: Sequence[str]) -> str:
    """Returns the hex sha256 of all names and arrays; reads every byte."""
    digest = hashlib.sha256(repr(tuple(class_names)).encode())
    for split in sorted(splits):
        for key, array in sorted(splits[split].items()):
            digest.update(repr((split, key, array.dtype.str, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


@dataclass(frozen=True)
class DatasetEntry:
    """A registered dataset; see `register_dataset`."""

    name: str
    loader: Callable[[Path | None], Dataset]
    files: Sequence | Callable[[], Sequence] = ()
    description: str = ""
    licence: str = ""

    def original_files(self) -> tuple:
        """Returns the `zoo.data.fetch.FetchFile` of every original file."""
        return tuple(self.files() if callable(self.files) else self.files)


_DATASETS: dict[str, DatasetEntry] = {}


def register_dataset(name, loader, files=(), description="", licence=""):
    """Registers a dataset for `load(name)` and, if it has `files`, for `zoo fetch NAME`.

    Args:
      name: letters, digits, `_`, `-` and `.`; also the name of the folder in `data_dir()`.
      loader: `loader(manual_dir) -> Dataset`; `manual_dir` is a Path or None. Called by each
        `load`.
      files: `zoo.data.fetch.FetchFile` objects, or a function that returns them if that needs slow
        imports.
      description: one line.
      licence: stated by the source.

    Raises:
      UsageError: if the name is registered already or is invalid.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UsageError(
            f"The name of a dataset may have letters, digits, '_', '-' and '.'. Received: {name!r}."
        )
    if name in _DATASETS:
        raise UsageError(f"A dataset {name!r} is registered already: choose another name.")
    _DATASETS[name] = DatasetEntry(name, loader, files, description, licence)


def list_datasets() -> tuple[str, ...]:
    """Returns the sorted names of registered datasets."""
    return tuple(sorted(_DATASETS))


def refuse_manual_dir(name: str, folder: Path | None):
    """Raises UsageError if the user set `data.manual_dir`, which the dataset would ignore."""
    if folder:
        raise UsageError(f"data.manual_dir must be empty for {name!r}. Received: {folder}.")


def dataset_entry(name: str) -> DatasetEntry:
    """Returns a registered dataset; raises UsageError with similar names if it is unknown."""
    if name not in _DATASETS:
        near = near_names(name, _DATASETS)
        if os.path.exists(name):
            near = f" Did you mean '{FOLDER if os.path.isdir(name) else NPZ}{name}'?"
        raise UsageError(
            f"There is no dataset {name!r}.{near} "
            f"Known: {', '.join(list_datasets())}, npz:FILE.npz for your own arrays, "
            "folder:FOLDER for images, tfds:NAME:VERSION for TFDS, and datasets registered by a "
            "module of --import."
        )
    return _DATASETS[name]
