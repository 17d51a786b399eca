"""Whether a split can judge a classifier: which classes it has, and how many examples of each."""

import numpy as np

from zoo.errors import UsageError

_MOST = 0.9  # share of one class from which accuracy says little
_NAMED = 5  # classes that a line names


def check_classes(dataset, split: str) -> str:
    """Looks at the classes of a split by which a classifier is judged.

    Args:
      dataset: a `zoo.data.Dataset` with classes.
      split: its name.

    Returns:
      What metrics of the split do not show; "" where there is nothing to say.

    Raises:
      UsageError: for a validation split of a single class, where there are several to learn: by
        it, answering always that class is the best model.
    """
    labels, judged = (np.asarray(dataset.splits[name]["label"]) for name in ("train", split))
    number = 1 + max(labels.max(), judged.max())
    learned, counts = (np.bincount(x, minlength=number) for x in (labels, judged))
    names = [repr(name) for name in dataset.class_names] or range(number)
    classes, present = np.flatnonzero(learned), np.flatnonzero(counts)
    if len(classes) < 2:
        return ""
    if split == "validation" and len(present) == 1:
        raise UsageError(
            f"The validation split of {dataset.name!r} has examples of class {names[present[0]]} "
            f"alone, of {len(classes)} to learn: it cannot choose the best model. Take a split "
            "with examples of each, or leave it out and set data.validation_size, which is "
            "stratified."
        )
    parts = []
    if absent := [names[i] for i in classes if not counts[i]]:
        more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        listed = ", ".join(map(str, absent[:_NAMED]))
        parts.append(f"no example of class {listed}{more}, which no metric of it judges")
    share = counts.max() / counts.sum()
    if share >= _MOST:
        parts.append(
            f"{share:.1%} of the examples are of class {names[counts.argmax()]}: answering that "
            "always has this accuracy; report.html has precision and recall of each class"
        )
    return f"the {split} split: {'; '.join(parts)}" if parts else ""
