"""Gives rare classes as much influence on training as frequent ones."""

import dataclasses

import numpy as np

from zoo.data.rows import rows_of
from zoo.errors import UsageError


def balanced(dataset):
    """Returns the dataset with a training split in which all classes have the same size.

    The examples of each class are repeated up to the size of the largest class. How often two
    examples of a class occur differs by at most one.

    Args:
      dataset: a `zoo.data.Dataset`, with the validation split held out already.

    Raises:
      UsageError: if the training split has no array "label" of integers.
    """
    arrays = dataset.splits["train"]
    labels = np.asarray(arrays.get("label", ()))
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise UsageError(
            "data.balanced requires one integer label per example. Received: dataset "
            f"{dataset.name!r} with the arrays {', '.join(arrays)}."
        )
    generator = np.random.Generator(np.random.PCG64(0))
    classes, counts = np.unique(labels, return_counts=True)
    rows = []
    for label in classes:
        members = generator.permutation(np.flatnonzero(labels == label))
        rows.append(np.resize(members, counts.max()))
    rows = np.sort(np.concatenate(rows))
    train = {key: rows_of(value, rows) for key, value in arrays.items()}
    return dataclasses.replace(dataset, splits={**dataset.splits, "train": train})


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns a weight per class with which all classes have the same total weight.

    Args:
      labels: (N,) integers; a class without examples has no influence on the other weights.
      num_classes: number of classes.

    Returns:
      (num_classes,) float32; the mean weight of the examples is 1.
    """
    counts = np.bincount(labels, minlength=num_classes)
    present = np.count_nonzero(counts)
    return np.float32(len(labels) / (present * np.maximum(counts, 1)))
