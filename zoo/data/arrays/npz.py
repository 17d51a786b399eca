"""Loads a dataset from an .npz file with arrays SPLIT_NAME, such as train_image."""

from pathlib import Path

import numpy as np

from zoo.data.datasets import SPLITS, Dataset, fingerprint
from zoo.errors import RunError, UsageError, short
from zoo.storage.arrays import open_npz
from zoo.storage.disk import content_of

# A larger label is damaged, and would need as many class names.
MAX_CLASSES = 100_000


def load(name: str, path: Path) -> Dataset:
    """Loads a dataset from an .npz file; its classes are named by their labels.

    "training" is the split train, "val" and "valid" are validation; other splits keep their names.
    Every split must have the arrays of train. Integer labels are converted to int64.

    Args:
      name: name of the dataset.
      path: path of the file.

    Raises:
      UsageError: if the file does not exist.
      RunError: if the file cannot be read, or an array is missing or invalid.
    """
    if not path.is_file():
        raise UsageError(f"There is no file {path}. {content_of(path)}")
    splits, arrays = {}, _read_npz(path)
    shapes = [f"{key!r} {array.shape}" for key, array in arrays.items()]
    content = f"It has: {', '.join(shapes[:10]) or 'none'}{', ...' if len(shapes) > 10 else ''}."
    for key, array in arrays.items():
        split, _, array_name = key.partition("_")
        if not (split and array_name):
            raise RunError(
                f"{path}: arrays must be named SPLIT_NAME, such as train_image. Received: {key!r}. "
                f"{content}"
            )
        split = SPLITS.get(split, split)
        if array_name in splits.get(split, {}):
            raise RunError(f"{path} has two arrays for '{split}_{array_name}'. Remove one.")
        if array_name == "label" and array.dtype.kind in "iu":
            array = array.astype(np.int64)
        splits.setdefault(split, {})[array_name] = array
    for split in ("train", *splits):
        for array_name in splits.get("train") or ("image", "label"):
            if array_name not in splits.get(split, {}):
                raise RunError(f"{path} has no array '{split}_{array_name}'. {content}")
    labels = [arrays["label"] for arrays in splits.values() if "label" in arrays]
    largest = [label.max() for label in labels if label.dtype == np.int64 and label.size]
    last = int(max(largest, default=-1))
    if last >= MAX_CLASSES:
        raise RunError(f"{path}: labels must be smaller than {MAX_CLASSES:,}. Received: {last}.")
    class_names = tuple(str(number) for number in range(last + 1))
    return Dataset(name, splits, class_names, fingerprint(splits, class_names))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    name = ""
    try:
        with open_npz(path) as archive:
            arrays = {}
            for name in archive:
                arrays[name] = archive[name]
            return arrays
    except RunError:
        raise
    # NumPy and zipfile raise about ten kinds of errors for a damaged file, MemoryError among them.
    except Exception as error:
        where = f"{path}, array {name!r}" if name else str(path)
        raise RunError(f"{where} cannot be read as a NumPy .npz file: {short(error)}") from None
