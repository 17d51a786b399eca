"""Checks the class balance of the split on which a classifier is evaluated."""

import numpy as np

from zoo.errors import UsageError

_MAX_SHARE = 0.9  # of one class; from here on accuracy means little
_SHOWN = 5  # number of classes that a message lists


def check_classes(dataset, split: str) -> str:
    """Checks the classes of an evaluation split.

    Args:
      dataset: a `zoo.data.Dataset` with labels.
      split: name of the split.

    Returns:
      A warning about absent or dominant classes, or "".

    Raises:
      UsageError: if the validation split has one class and the training split several: a constant
        prediction would be the best model.
    """
    train, labels = (np.asarray(dataset.splits[name]["label"]) for name in ("train", split))
    size = 1 + max(train.max(), labels.max())
    train_counts, counts = (np.bincount(x, minlength=size) for x in (train, labels))
    names = [repr(name) for name in dataset.class_names] or range(size)
    classes, present = np.flatnonzero(train_counts), np.flatnonzero(counts)
    if len(classes) < 2:
        return ""
    if split == "validation" and len(present) == 1:
        raise UsageError(
            f"The validation split of {dataset.name!r} must have examples of several classes to "
            f"choose the best model. Received: only class {names[present[0]]} of {len(classes)}. "
            "Add examples of the others, or remove the split and set data.validation_size, which "
            "is stratified."
        )
    parts = []
    if absent := [names[i] for i in classes if not counts[i]]:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        shown_classes = ", ".join(map(str, absent[:_SHOWN]))
        parts.append(f"no example of class {shown_classes}{more}, which its metrics do not cover")
    share = counts.max() / counts.sum()
    if share >= _MAX_SHARE:
        parts.append(
            f"{share:.1%} of the examples are of class {names[counts.argmax()]}: always predicting "
            "this class has this accuracy; report.html has precision and recall of each class"
        )
    return f"the {split} split: {'; '.join(parts)}" if parts else ""
