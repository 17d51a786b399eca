"""Quality and diversity metrics of generated images, from the features of a trained classifier.

A classifier of the same images takes the place of the usual Inception network: the input of its
last layer gives the features, its output the class probabilities.
"""

from pathlib import Path

import numpy as np

from zoo import registry
from zoo.errors import UsageError
from zoo.generation.image_grids import make_images, predict_in_batches
from zoo.saved.workdir import model_path, read_config
from zoo.storage.disk import file_digest

NEIGHBORS = 3  # as in Kynkäänniemi et al. 2019
_ROWS = 1000  # rows of a distance matrix in memory at once


def measure(model, dataset, split: str, classifier: str, samples: int, seed: int = 0) -> dict:
    """Compares images of a generator with real images.

    Args:
      model: model with a `generator` that returns images in [-1, 1].
      dataset: dataset with the real images.
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
      precision, recall: see `precision_recall`; absent unless there are more than `NEIGHBORS`
        real and generated images.
      classes_covered: see `classes_covered`; real_classes: number of classes in the split.
      smallest_class_share, real_smallest_class_share: minimum over the classes in the split.
      class_entropy, real_class_entropy: entropy of the shares of all classes, in nats.
      top_probability, real_top_probability: mean of the largest probability per image.
      classifier: name of the work directory and a hash of the model file.
    """
    model_of_classifier = registry.load(classifier)
    image_shape = tuple(dataset.splits["train"]["image"].shape[1:])
    if tuple(model_of_classifier.input_shape[1:]) != image_shape:
        raise _shape_error(classifier, dataset, model_of_classifier.input_shape[1:])
    features = _features(model_of_classifier)
    real, real_classes = features(dataset.splits[split]["image"][:samples])
    generated_features, classes = features(make_images(model, samples, seed))
    shares, real_shares = class_shares(classes), class_shares(real_classes)
    present = real_shares > 0
    metrics = {}
    if len(real) > 1:
        metrics["frechet_distance"] = frechet_distance(real, generated_features)
    if min(len(real), len(generated_features)) > NEIGHBORS:
        metrics["precision"], metrics["recall"] = precision_recall(real, generated_features)
    metrics |= {
        "classes_covered": classes_covered(shares, real_shares),
        "real_classes": int(present.sum()),
        "smallest_class_share": float(shares[present].min()),
        "real_smallest_class_share": float(real_shares[present].min()),
        "class_entropy": entropy(shares),
        "real_class_entropy": entropy(real_shares),
        "top_probability": float(classes.max(-1).mean()),
        "real_top_probability": float(real_classes.max(-1).mean()),
        "classifier": f"{Path(classifier).resolve().name} sha256:{_model_hash(classifier)}",
    }
    if split != "train" and len(real) > 1:
        train_images = dataset.splits["train"]["image"]
        rows = np.random.default_rng(seed).permutation(len(train_images))[:samples]
        if len(rows) > 1:
            train_features, _ = features(train_images[np.sort(rows)])
            metrics["real_frechet_distance"] = frechet_distance(real, train_features)
    return metrics


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
    """Raises `UsageError` if the work directory contains no classifier of images of this shape."""
    saved_config = read_config(classifier)
    model_path(classifier)
    if saved_config["config"]["task"]["name"] != "image_classification":
        raise UsageError(
            "task.classifier must be a work directory of the task 'image_classification'. "
            f"Received: {classifier} of the task {saved_config['config']['task']['name']!r}."
        )
    shape = tuple(saved_config["config"]["model"].get("input_shape", ()))
    image_shape = tuple(dataset.splits["train"]["image"].shape[1:])
    if shape and shape != image_shape:  # () follows from the data of the classifier
        raise _shape_error(classifier, dataset, shape)


def _shape_error(classifier: str, dataset, shape) -> UsageError:
    image_shape = tuple(dataset.splits["train"]["image"].shape[1:])
    return UsageError(
        f"task.classifier must accept images of shape {image_shape}, as in dataset "
        f"{dataset.name!r}. Received: {classifier}, which accepts shape {tuple(shape)}."
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
    square_root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    eigenvalues = np.linalg.eigvalsh(square_root @ second @ square_root)
    cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    return float(max(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross, 0.0))


def precision_recall(real: np.ndarray, generated: np.ndarray) -> tuple[float, float]:
    """Computes improved precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 2).

    Args:
      real, generated: features (samples, dimensions), each with more than `NEIGHBORS` samples.

    Returns:
      `(precision, recall)`: precision is the share of `generated` inside the balls around `real`.
      The radius of a ball is the distance to the third neighbor in `real`. Recall swaps both
      sets.
    """
    radii_real, radii_generated = _squared_radii(real), _squared_radii(generated)
    inside_real = np.zeros(len(generated), bool)
    real_inside = []
    for start in range(0, len(real), _ROWS):
        squares = _squared_distances(real[start : start + _ROWS], generated)
        inside_real |= (squares <= radii_real[start : start + _ROWS, None]).any(0)
        real_inside.append((squares <= radii_generated).any(1))
    return float(inside_real.mean()), float(np.concatenate(real_inside).mean())


def _squared_radii(points: np.ndarray) -> np.ndarray:
    """Returns the squared distance (N,) of each point to its third neighbor."""
    parts = []
    for start in range(0, len(points), _ROWS):
        squares = _squared_distances(points[start : start + _ROWS], points)
        # Index 0 is the point itself.
        parts.append(np.partition(squares, NEIGHBORS, axis=1)[:, NEIGHBORS])
    return np.concatenate(parts)


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    first, second = first.astype("float64"), second.astype("float64")
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return np.clip(squares, 0, None)


def _features(classifier):
    """Returns a function from uint8 images to features and probabilities of the classifier."""
    import keras

    features_and_output = keras.Model(
        classifier.input, [classifier.layers[-1].input, classifier.output]
    )

    def run(images):
        inputs = images.astype("float32") / 255
        return predict_in_batches(features_and_output, inputs)

    return run


def _model_hash(classifier: str) -> str:
    return file_digest(model_path(classifier))[:16]
