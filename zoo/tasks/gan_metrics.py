"""Quality and diversity metrics of generated images, from the features of a trained classifier.

A classifier of the same images takes the place of the usual Inception network: the input of its
last layer gives the features, its output the class probabilities.
"""

from pathlib import Path

import numpy as np

from zoo import registry
from zoo.errors import UsageError
from zoo.generation.image_grids import in_batches, make_pictures
from zoo.saved.workdir import model_path, read_config
from zoo.storage.disk import file_digest

NEIGHBOURS = 3  # as in Kynkäänniemi et al. 2019
_ROWS = 1000  # rows of a distance matrix in memory at once


def measure(model, dataset, split: str, classifier: str, samples: int, seed: int = 0) -> dict:
    """Compares images of a generator with real images.

    Args:
      model: model with a `generator` that returns images in [-1, 1].
      dataset: data set with the real images.
      split: split whose first `samples` images are the real ones.
      classifier: work directory of a model from images in [0, 1] to probabilities.
      samples: number of images to generate.
      seed: random seed of the noise.

    Returns:
      A dict of metrics. Classes are those that the classifier predicts; "real_" stands for the
      split's images in place of the generated ones.
      frechet_distance: see `frechet_distance`; absent for fewer than two real images.
      real_frechet_distance: the distance between the split and up to `samples` training images;
        absent for the split "train".
      precision, recall: see `precision_recall`; absent unless there are more than `NEIGHBOURS`
        real and generated images.
      classes_covered: see `classes_covered`; real_classes: number of classes in the split.
      smallest_class_share, real_smallest_class_share: minimum over the classes in the split.
      class_entropy, real_class_entropy: entropy of the shares of all classes, in nats.
      top_probability, real_top_probability: mean of the largest probability per image.
      classifier: name of the work directory and a hash of the model file.
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
    """Returns the share of each predicted class (classes,), from probabilities (N, classes)."""
    counts = np.bincount(probabilities.argmax(-1), minlength=probabilities.shape[1])
    return counts / len(probabilities)


def classes_covered(shares: np.ndarray, real_shares: np.ndarray) -> int:
    """Returns the number of real classes with at least half their real share."""
    return int((shares >= real_shares / 2)[real_shares > 0].sum())


def entropy(shares: np.ndarray) -> float:
    """Returns the entropy of shares that sum to 1, in nats."""
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def check_classifier(classifier: str, dataset) -> None:
    """Raises `UsageError` if the work directory holds no classifier of images of this shape."""
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
    """Returns the Fréchet distance of Gaussian fits (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

    Args:
      one, other: features (samples, dimensions).
    """
    one, other = np.asarray(one, "float64"), np.asarray(other, "float64")
    shift = one.mean(0) - other.mean(0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    # tr sqrt(A B) = tr sqrt(sqrt(A) B sqrt(A)); the latter matrix is symmetric.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    mixed = np.linalg.eigvalsh(root @ second @ root)
    cross = np.sqrt(np.clip(mixed, 0, None)).sum()
    return float(max(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross, 0.0))


def precision_recall(real: np.ndarray, made: np.ndarray) -> tuple[float, float]:
    """Computes improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 2).

    Args:
      real, made: features (samples, dimensions), each with more than `NEIGHBOURS` samples.

    Returns:
      `(precision, recall)`: precision is the share of `made` inside the balls around `real`. The
      radius of a ball is the distance to the third neighbor in `real`. Recall swaps both sets.
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
    """Returns the squared distance (N,) of each point to its third neighbor."""
    parts = []
    for start in range(0, len(points), _ROWS):
        squares = _squares(points[start : start + _ROWS], points)
        # Index 0 is the point itself.
        parts.append(np.partition(squares, NEIGHBOURS, axis=1)[:, NEIGHBOURS])
    return np.concatenate(parts)


def _squares(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    one, other = one.astype("float64"), other.astype("float64")
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return np.clip(squares, 0, None)


def _features(judge):
    """Returns a function from uint8 images to features and probabilities of the classifier."""
    import keras

    both = keras.Model(judge.input, [judge.layers[-1].input, judge.output])

    def run(pictures):
        inputs = pictures.astype("float32") / 255
        return in_batches(both, inputs)

    return run


def _hash(classifier: str) -> str:
    return file_digest(model_path(classifier))[:16]
