"""Holds out training examples for validation, the same ones in every run."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from zoo.data.rows import rows_of
from zoo.errors import UsageError

_SHOWN = 5  # number of classes that a message lists


def with_hold_out(dataset, size: int):
    """Moves `size` training examples of a dataset to a new split "validation".

    Args:
      dataset: a `zoo.data.Dataset`.
      size: number of examples; 0 returns the dataset unchanged.

    Returns:
      `(dataset, note)`. The note describes how the examples were chosen; "" for size 0.

    Raises:
      UsageError: if there is no training split, if there is a validation split already, or if one
        of the splits would lack a class.
    """
    if "train" not in dataset.splits:
        raise UsageError(
            f"Training requires the split 'train'. Dataset {dataset.name!r} has: "
            f"{', '.join(dataset.splits)}."
        )
    if not size:
        return dataset, ""
    if "validation" in dataset.splits:
        raise UsageError(
            f"data.validation_size must be 0 for dataset {dataset.name!r}, which has a validation "
            f"split. Received: {size}."
        )
    training_arrays = dataset.splits["train"]
    examples = len(next(iter(training_arrays.values())))
    if size >= examples:
        raise UsageError(
            "data.validation_size must be smaller than the number of training examples of "
            f"{dataset.name!r} ({examples}). Received: {size}."
        )
    train, validation = hold_out(training_arrays, size, dataset.class_names)
    splits = {**dataset.splits, "train": train, "validation": validation}
    note = _note(training_arrays, validation, dataset.class_names)
    return dataclasses.replace(dataset, splits=splits), note


def evaluation_split(splits: Mapping, read_test: bool = True) -> str:
    """Returns the split for the final evaluation: "test", else "validation", else ""."""
    names = ("test", "validation") if read_test else ("validation",)
    return next((name for name in names if name in splits), "")


def hold_out(arrays: Mapping[str, np.ndarray], size: int, class_names: Sequence[str] = ()):
    """Splits `size` examples off for validation, the same ones in every run.

    If there is an array "label" of integers, the split is stratified, with at least one example of
    each class in both parts.

    Args:
      arrays: equally long arrays.
      size: number of validation examples, less than the number of examples.
      class_names: names of the classes, for error messages.

    Returns:
      `(training, validation)`, both dicts of arrays; validation is None for size 0. Large arrays
      stay on the disk.

    Raises:
      UsageError: if a part would lack a class.
    """
    if not size:
        return arrays, None
    examples = len(next(iter(arrays.values())))
    order = np.random.Generator(np.random.PCG64(0)).permutation(examples)
    validation_rows = order[:size]
    if (labels := _labels(arrays)) is not None:
        validation_rows = _stratified(labels, order, size, class_names)
    is_validation = np.zeros(examples, bool)
    is_validation[validation_rows] = True
    train, validation = np.flatnonzero(~is_validation), np.flatnonzero(is_validation)
    return {k: rows_of(v, train) for k, v in arrays.items()}, {
        k: rows_of(v, validation) for k, v in arrays.items()
    }


def _labels(arrays: Mapping) -> np.ndarray | None:
    """Returns the class of each example, or None if there are fewer than two classes."""
    if "label" not in arrays:
        return None
    labels = np.asarray(arrays["label"])
    classes = labels.ndim == 1 and labels.dtype.kind in "iu"
    return labels if classes and labels.min() != labels.max() else None


def _stratified(labels, order, size: int, class_names) -> np.ndarray:
    """Returns `size` examples: of each class the first ones in `order`, by its share."""
    classes, counts = np.unique(labels, return_counts=True)
    num_training = len(labels) - size
    if min(size, num_training) < len(classes):
        raise UsageError(
            "Validation and training must each have an example of each class. Received: "
            f"data.validation_size={size} of {len(labels)} training examples, with {len(classes)} "
            "classes."
        )
    if counts.min() < 2:
        name = _name(classes[counts.argmin()], class_names)
        raise UsageError(
            "data.validation_size requires at least two examples of each class: one for "
            f"validation, one for training. Received: one example of class {name}. Add examples, "
            "or remove the class."
        )
    shares = size * counts / len(labels)
    sizes = np.clip(np.floor(shares), 1, counts - 1).astype(int)
    while (missing := size - sizes.sum()) != 0:
        # One example at a time, of the class that is furthest from its share and has room.
        step = 1 if missing > 0 else -1
        room = (sizes < counts - 1) if step > 0 else (sizes > 1)
        gaps = np.where(room, step * (shares - sizes), -np.inf)
        sizes[gaps.argmax()] += step
    indices = np.searchsorted(classes, labels[order])
    return np.concatenate([order[indices == i][:n] for i, n in enumerate(sizes)])


def _note(training_arrays: Mapping, validation: Mapping, class_names) -> str:
    count = len(next(iter(validation.values())))
    if _labels(training_arrays) is None:
        return f"{count:,} random training examples are held out for validation"
    classes, before = np.unique(np.asarray(training_arrays["label"]), return_counts=True)
    after = [np.count_nonzero(np.asarray(validation["label"]) == label) for label in classes]
    rarest = np.argsort(before, kind="stable")[:_SHOWN]
    parts = [f"{_name(classes[i], class_names)} {after[i]:,} of {before[i]:,}" for i in rarest]
    more = len(classes) - len(parts)
    class_counts = ", ".join(parts) + (f" and {more} more classes" if more else "")
    return (
        f"{count:,} training examples, stratified by class, are held out for validation: "
        f"{class_counts}"
    )


def _name(label, class_names) -> str:
    return repr(class_names[label]) if 0 <= label < len(class_names) else str(label)
