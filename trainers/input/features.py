"""Computes the features of a frozen part of a model once and stores them on disk.

The folder's name is the hash of everything that the features depend on: weights and layers of the
frozen part, the data, and the augmentation. So stored features are never stale: any change leads to
another folder.
"""

import hashlib
import json
import logging
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from zoo import keras_internals
from zoo.data.pipeline import evaluation_batches
from zoo.progress import progress
from zoo.storage.locks import one_at_a_time
from zoo.storage.paths import cache_dir
from zoo.storage.records import RecordWriter, open_records
from zoo.tasks.base import FrozenPart, Task

_LOG = logging.getLogger(__name__)

_FORMAT = 1
_BATCH = 32
_READ = 4096  # images per block of the hash


def features_of(
    frozen: FrozenPart, task: Task, arrays: Mapping[str, np.ndarray], changes: Mapping, seed: int
) -> tuple[dict[str, np.ndarray], str]:
    """Returns a split with "feature" in place of "image".

    Args:
      frozen: result of `Task.frozen_part`. Features have the shape (F,), with views (views, F).
      task: the task, which prepares the examples.
      arrays: the split.
      changes: the section `task` of the configuration, which holds the augmentation.
      seed: random seed of the run and of the augmentation.

    Returns:
      `(arrays, message)`: the message names the folder, and whether the features were in it.
    """
    key = _key(frozen, arrays["image"], changes if frozen.views else {}, seed)
    folder = cache_dir() / "features" / key
    with one_at_a_time(folder):
        is_cached = folder.exists()
        if not is_cached:
            count = len(next(iter(arrays.values())))
            views = f", {frozen.views} views per image" if frozen.views else ""
            _LOG.info(f"computing the features of {count:,} images{views}")
            _write(folder, frozen, task, arrays, seed)
        feature = open_records(folder).arrays["feature"]
    others = {name: array for name, array in arrays.items() if name != "image"}
    if feature.nbytes <= 2**28:  # one shard
        feature = np.asarray(feature)
    return {**others, "feature": feature}, f"{'read from' if is_cached else 'stored in'} {folder}"


def _key(frozen: FrozenPart, images, changes: Mapping, seed: int) -> str:
    layers = [
        (type(layer).__name__, {k: v for k, v in layer.get_config().items() if k != "name"})
        for layer in keras_internals.all_layers(frozen.model)
        if not isinstance(layer, keras.Model)
    ]
    content = {
        "format": _FORMAT, "versions": (keras.__version__, tf.__version__), "layers": layers,
        "views": frozen.views, "seed": seed if frozen.views else 0, "changes": changes,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    values = [variable.numpy() for variable in frozen.model.weights]
    for start in range(0, len(images), _READ):
        values.append(images[start : start + _READ])
        for value in map(np.ascontiguousarray, values):
            digest.update(repr((value.shape, value.dtype.str)).encode())
            digest.update(value.reshape(-1).view(np.uint8))
        values = []
    return digest.hexdigest()


def _write(folder, frozen: FrozenPart, task: Task, arrays, seed: int) -> None:
    model, count = frozen.model, len(next(iter(arrays.values())))

    @tf.function(autograph=False)
    def run(image):
        return tf.cast(model(image, training=False), tf.float32)

    passes = [
        evaluation_batches(
            arrays, task.prepare, batch_size=min(_BATCH, count), replicas=1,
            training=bool(frozen.views), seed=seed * max(1, frozen.views) + view,
        )
        for view in range(max(1, frozen.views))
    ]  # fmt: skip
    num_written = 0
    with RecordWriter(folder, {"feature": (frozen.feature_shape, "float32")}) as writer:
        steps = zip(*passes, strict=True)
        for batches in progress(steps, title="features", unit="batches", total=-(-count // _BATCH)):
            views = [run(batch["image"]).numpy() for batch in batches]
            rows = np.stack(views, axis=1) if frozen.views else views[0]
            rows = rows[: count - num_written]  # the last batch is padded
            writer.append(feature=rows)
            num_written += len(rows)


def make_synthetic_arrays(task: Task, model, examples: int, seed: int) -> dict:
    """Returns synthetic stored examples, with features in place of images of a frozen part."""
    arrays, frozen = task.synthetic(model, examples, seed), task.frozen_part(model)
    if frozen.model is None:
        return arrays
    feature = np.random.default_rng(0).random((examples, *frozen.feature_shape), "float32")
    others = {key: array for key, array in arrays.items() if key != "image"}
    return task.add_training_arrays({**others, "feature": feature})
