"""Examples of the training split that are kept back for validation, the same in every run."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from zoo.data.rows import rows_of
from zoo.errors import UsageError

_NAMED = 5  # classes that a line names


def with_hold_out(dataset, size: int):
    """Returns the data set with `size` training examples as its split "validation".

    Args:
      dataset: a `zoo.data.Dataset`.
      size: number of examples; 0 leaves the data set as it is.

    Returns:
      `(dataset, note)`: the note says how the examples were chosen; "" where none were.

    Raises:
      UsageError: where there is no training split, or a validation split besides, or `size` does
        not leave both splits an example of each class.
    """
    if "train" not in dataset.splits:
        raise UsageError(
            f"Training needs the split 'train'. Data set {dataset.name!r} has: "
            f"{', '.join(dataset.splits)}."
        )
    if not size:
        return dataset, ""
    if "validation" in dataset.splits:
        raise UsageError(
            f"Data set {dataset.name!r} has a validation split: leave data.validation_size at 0. "
            f"Received: {size}."
        )
    stored = dataset.splits["train"]
    examples = len(next(iter(stored.values())))
    if size >= examples:
        raise UsageError(
            f"Data set {dataset.name!r} has {examples} training examples. Received: "
            f"data.validation_size={size}."
        )
    kept, held = hold_out(stored, size, dataset.class_names)
    splits = {**dataset.splits, "train": kept, "validation": held}
    return dataclasses.replace(dataset, splits=splits), _note(stored, held, dataset.class_names)


def judged_split(splits: Mapping, read_test: bool = True) -> str:
    """Returns the split by which a trained model is judged: test, else validation, else ""."""
    names = ("test", "validation") if read_test else ("validation",)
    return next((name for name in names if name in splits), "")


def hold_out(arrays: Mapping[str, np.ndarray], size: int, class_names: Sequence[str] = ()):
    """Splits `size` examples off for validation, the same ones in every run.

    Where examples have a "label", one integer each, both parts hold the classes in the proportions
    of the whole, and at least one example of each class.

    Args:
      arrays: equally long arrays.
      size: number of examples, less than there are.
      class_names: for errors.

    Returns:
      `(training, validation)`, both dicts of arrays; validation is None for size 0. What is too
      large for the memory stays on the disk.

    Raises:
      UsageError: where a part cannot hold an example of each class.
    """
    if not size:
        return arrays, None
    examples = len(next(iter(arrays.values())))
    order = np.random.Generator(np.random.PCG64(0)).permutation(examples)
    chosen = order[:size]
    if (labels := _labels(arrays)) is not None:
        chosen = _stratified(labels, order, size, class_names)
    is_held = np.zeros(examples, bool)
    is_held[chosen] = True
    kept, held = np.flatnonzero(~is_held), np.flatnonzero(is_held)
    return {k: rows_of(v, kept) for k, v in arrays.items()}, {
        k: rows_of(v, held) for k, v in arrays.items()
    }


def _labels(arrays: Mapping) -> np.ndarray | None:
    """Returns the class of each example, where there are two classes or more."""
    if "label" not in arrays:
        return None
    labels = np.asarray(arrays["label"])
    classes = labels.ndim == 1 and labels.dtype.kind in "iu"
    return labels if classes and labels.min() != labels.max() else None


def _stratified(labels, order, size: int, class_names) -> np.ndarray:
    """Returns the first examples of each class in `order`, as many as is its share of `size`."""
    classes, counts = np.unique(labels, return_counts=True)
    rest = len(labels) - size
    if min(size, rest) < len(classes):
        raise UsageError(
            f"Validation and training each need an example of each of the {len(classes)} classes. "
            f"Received: data.validation_size={size} of {len(labels)} training examples."
        )
    if counts.min() < 2:
        name = _name(classes[counts.argmin()], class_names)
        raise UsageError(
            f"data.validation_size needs two examples or more of each class: one for validation, "
            f"one for training. Received: class {name} with one. Add examples, or leave the class "
            "out."
        )
    shares = size * counts / len(labels)
    taken = np.clip(np.floor(shares), 1, counts - 1).astype(int)
    while (missing := size - taken.sum()) != 0:
        # One at a time, to the class that is furthest from its share and has room.
        step = 1 if missing > 0 else -1
        room = (taken < counts - 1) if step > 0 else (taken > 1)
        gaps = np.where(room, step * (shares - taken), -np.inf)
        taken[gaps.argmax()] += step
    of_class = np.searchsorted(classes, labels[order])
    return np.concatenate([order[of_class == i][:n] for i, n in enumerate(taken)])


def _note(stored: Mapping, held: Mapping, class_names) -> str:
    count = len(next(iter(held.values())))
    if _labels(stored) is None:
        return f"{count:,} training examples, drawn at random, are for validation"
    classes, before = np.unique(np.asarray(stored["label"]), return_counts=True)
    after = [np.count_nonzero(np.asarray(held["label"]) == label) for label in classes]
    rarest = np.argsort(before, kind="stable")[:_NAMED]
    parts = [f"{_name(classes[i], class_names)} {after[i]:,} of {before[i]:,}" for i in rarest]
    more = len(classes) - len(parts)
    listed = ", ".join(parts) + (f" and {more} more classes" if more else "")
    return f"{count:,} training examples, stratified by class, are for validation: {listed}"


def _name(label, class_names) -> str:
    return repr(class_names[label]) if 0 <= label < len(class_names) else str(label)
