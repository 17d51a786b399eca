"""A user's own arrays: one .npz file that holds SPLIT_NAME arrays, such as train_image."""

from pathlib import Path

import numpy as np

from zoo.data.arrays import open_npz
from zoo.data.datasets import SPLITS, Dataset, fingerprint
from zoo.data.disk import lies_at
from zoo.errors import RunError, UsageError, short

# A label beyond this is a damaged number, not a class; it would ask for a billion class names.
MAX_CLASSES = 100_000


def load(name: str, path: Path) -> Dataset:
    """Returns the data set of the file `path`, its classes named by their numbers.

    "training" is the split train, "val" and "valid" are validation; others keep their names. Every
    split holds the arrays that train holds. Integer labels of any size become int64.

    Raises:
      UsageError: there is no such file.
      RunError: it cannot be read, or an array is missing or wrong.
    """
    if not path.is_file():
        raise UsageError(f"There is no file {path}. {lies_at(path)}")
    splits, arrays = {}, _read_npz(path)
    listed = [f"{key!r} {array.shape}" for key, array in arrays.items()]
    there = f"It has: {', '.join(listed[:10]) or 'none'}{', ...' if len(listed) > 10 else ''}."
    for key, array in arrays.items():
        split, _, array_name = key.partition("_")
        if not (split and array_name):
            raise RunError(
                f"{path}: arrays are named SPLIT_NAME, such as train_image. Received: {key!r}. "
                f"{there}"
            )
        split = SPLITS.get(split, split)
        if array_name in splits.get(split, {}):
            raise RunError(f"{path} has two arrays for '{split}_{array_name}'.")
        if array_name == "label" and array.dtype.kind in "iu":
            array = array.astype(np.int64)
        splits.setdefault(split, {})[array_name] = array
    for split in ("train", *splits):
        for array_name in splits.get("train") or ("image", "label"):
            if array_name not in splits.get(split, {}):
                raise RunError(f"{path} has no array '{split}_{array_name}'. {there}")
    labels = [arrays["label"] for arrays in splits.values() if "label" in arrays]
    numbers = [label.max() for label in labels if label.dtype == np.int64 and label.size]
    top = int(max(numbers, default=-1))
    if top >= MAX_CLASSES:
        raise RunError(f"{path}: labels are class numbers from 0. Received: {top}.")
    class_names = tuple(str(number) for number in range(top + 1))
    return Dataset(name, splits, class_names, fingerprint(splits, class_names))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    what = ""
    try:
        with open_npz(path) as archive:
            arrays = {}
            for what in archive:
                arrays[what] = archive[what]
            return arrays
    except RunError:
        raise
    # NumPy and zipfile raise about ten kinds for a damaged file, MemoryError among them.
    except Exception as error:
        where = f"{path}, array {what!r}" if what else str(path)
        raise RunError(f"{where} cannot be read as a NumPy .npz file: {short(error)}") from None
