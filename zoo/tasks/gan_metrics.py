"""How good and how varied made pictures are, by the features of a trained classifier.

As in the field's usual measures, but with a classifier of the same pictures in place of Inception:
its last layer's input are the features, its output the classes.
"""

from pathlib import Path

import numpy as np

from zoo import registry
from zoo.errors import UsageError
from zoo.generation.image_grids import in_batches, make_pictures
from zoo.saved.workdir import model_path, read_config
from zoo.storage.disk import file_digest

NEIGHBOURS = 3  # of Kynkäänniemi et al.
_ROWS = 1000  # of a distance matrix that exist at once


def measure(model, dataset, split: str, classifier: str, samples: int, seed: int = 0) -> dict:
    """Measures what a generator makes against a split's pictures.

    Args:
      model: with a `generator` that gives pictures in [-1, 1].
      dataset: whose pictures are the real ones.
      split: of which the first `samples` are compared with.
      classifier: a work directory; takes pictures in [0, 1] and gives probabilities.
      samples: how many are made.
      seed: of their noise.

    Returns:
      frechet_distance: see `frechet_distance`; real_frechet_distance: that of as many training
        images, for comparison (where the split is another one).
      precision, recall: see `precision_recall`; absent where a side has no more than `NEIGHBOURS`
        images.
      classes_covered: how many of the split's classes get at least half the share of the samples
        that they have of the split; real_classes: how many classes the split has. Both by the
        classifier.
      smallest_class_share: of the samples, over the classes that the split has;
        real_smallest_class_share: the same of the split.
      class_entropy, real_class_entropy: of the shares of all classes, in nats.
      top_probability: mean of the classifier's largest probability.
      real_top_probability: the same of the split's images.
      classifier: the name of its folder and a hash of its weights' file.

    What a single image, or none, cannot tell is absent.
    """
    judge = registry.load(classifier)
    features = _features(judge)
    real, real_classes = features(dataset.splits[split]["image"][:samples])
    made, classes = features(make_pictures(model, samples, seed))
    shares, real_shares = class_shares(classes), class_shares(real_classes)
    there = real_shares > 0
    found = {}
    if len(real) > 1:
        found["frechet_distance"] = frechet_distance(real, made)
    if min(len(real), len(made)) > NEIGHBOURS:
        found["precision"], found["recall"] = precision_recall(real, made)
    found |= {
        "classes_covered": classes_covered(shares, real_shares),
        "real_classes": int(there.sum()),
        "smallest_class_share": float(shares[there].min()),
        "real_smallest_class_share": float(real_shares[there].min()),
        "class_entropy": entropy(shares),
        "real_class_entropy": entropy(real_shares),
        "top_probability": float(classes.max(-1).mean()),
        "real_top_probability": float(real_classes.max(-1).mean()),
        "classifier": f"{Path(classifier).resolve().name} sha256:{_hash(classifier)}",
    }
    if split != "train" and len(real) > 1:
        stored = dataset.splits["train"]["image"]
        rows = np.random.default_rng(seed).permutation(len(stored))[:samples]
        if len(rows) > 1:
            other, _ = features(stored[np.sort(rows)])
            found["real_frechet_distance"] = frechet_distance(real, other)
    return found


def class_shares(probabilities: np.ndarray) -> np.ndarray:
    """Returns the share of each class in the predicted classes of `(N, classes)`."""
    counts = np.bincount(probabilities.argmax(-1), minlength=probabilities.shape[1])
    return counts / len(probabilities)


def classes_covered(shares: np.ndarray, real_shares: np.ndarray) -> int:
    """Returns how many of the real classes have at least half their real share."""
    return int((shares >= real_shares / 2)[real_shares > 0].sum())


def entropy(shares: np.ndarray) -> float:
    """Returns the entropy of shares that sum to 1, in nats."""
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def check_classifier(classifier: str, dataset) -> None:
    """Raises `UsageError` where the work directory holds no classifier of such pictures."""
    saved = read_config(classifier)
    model_path(classifier)
    if saved["config"]["task"]["name"] != "image_classification":
        raise UsageError(
            "task.classifier is a work directory of the task 'image_classification'. Received: "
            f"{classifier}, of the task {saved['config']['task']['name']!r}."
        )
    shape = tuple(saved["config"]["model"].get("input_shape", ()))
    pictures = tuple(dataset.splits["train"]["image"].shape[1:])
    if shape != pictures:
        raise UsageError(
            f"task.classifier takes pictures of shape {shape}, and data set {dataset.name!r} has "
            f"{pictures}. Received: {classifier}."
        )


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Fréchet distance of normal distributions (Heusel et al. 2017, arXiv:1706.08500, equation 6).

    Args:
      one, other: features (samples, dimensions).
    """
    one, other = np.asarray(one, "float64"), np.asarray(other, "float64")
    shift = one.mean(0) - other.mean(0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # tr sqrt(A B) = tr sqrt(sqrt(A) B sqrt(A)), which is symmetric.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ second @ root)
    cross = np.sqrt(np.clip(mixed, 0, None)).sum()
    return float(max(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross, 0.0))


def precision_recall(real: np.ndarray, made: np.ndarray) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, equation 2).

    Args:
      real, made: features (samples, dimensions), more than `NEIGHBOURS` of each.

    Returns:
      The share of `made` inside the balls that reach from each of `real` to its third neighbour
      among `real`; and the same the other way round.
    """
    radii_real, radii_made = _radii(real), _radii(made)
    inside_real = np.zeros(len(made), bool)
    recalled = []
    for start in range(0, len(real), _ROWS):
        squares = _squares(real[start : start + _ROWS], made)
        inside_real |= (squares <= radii_real[start : start + _ROWS, None]).any(0)
        recalled.append((squares <= radii_made).any(1))
    return float(inside_real.mean()), float(np.concatenate(recalled).mean())


def _radii(points: np.ndarray) -> np.ndarray:
    """Squared distance of each point to its third neighbour."""
    parts = []
    for start in range(0, len(points), _ROWS):
        squares = _squares(points[start : start + _ROWS], points)
        parts.append(np.partition(squares, NEIGHBOURS, axis=1)[:, NEIGHBOURS])  # 0 is itself
    return np.concatenate(parts)


def _squares(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype("float64"), other.astype("float64")
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return np.clip(squares, 0, None)


def _features(judge):
    """Returns a function from uint8 pictures to the input of the last layer, and its output."""
    import keras

    both = keras.Model(judge.input, [judge.layers[-1].input, judge.output])

    def run(pictures):
        inputs = pictures.astype("float32") / 255
        return in_batches(both, inputs)

    return run


def _hash(classifier: str) -> str:
    return file_digest(model_path(classifier))[:16]
