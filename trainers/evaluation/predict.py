"""Predicts the classes of image files that are not part of a dataset."""

from collections.abc import Sequence

import numpy as np

from trainers.run.workdir import read_config
from zoo import registry
from zoo.data.arrays.images import Unreadable, decode
from zoo.errors import UsageError
from zoo.saved.workdir import model_path
from zoo.start import start_tensorflow

_BATCH = 64


def predict_images(
    workdir: str, files: Sequence[str], *, checkpoint: str = "final", invert: bool = False
) -> tuple[list[dict], list[str]]:
    """Classifies image files with the model of a work directory.

    Args:
      workdir: work directory of a run with the task `image_classification`.
      files: paths of images; see `zoo.data.arrays.images`.
      checkpoint: `"final"` or `"best"`.
      invert: whether to invert the brightness of the images first.

    Returns:
      `(rows, errors)`: one dict per readable file with "file", "label" (name of the class) and
      "probability", and one error message per unreadable file.

    Raises:
      UsageError: if the model has another task, or takes images that are neither gray nor RGB.
    """
    config = read_config(workdir)
    if (task := config["config"]["task"]["name"]) != "image_classification":
        raise UsageError(
            "zoo predict requires a model of the task image_classification, text_classification, "
            f"qa or clm. Received: {workdir}, a model of the task {task!r}."
        )
    model_path(workdir, checkpoint)  # reports a missing file before TensorFlow is loaded
    model = None
    shape = tuple(config["config"]["model"].get("input_shape") or ())
    if len(shape) != 3:  # the model's builder has no argument input_shape
        model = _load(workdir, checkpoint)
        shape = model.input_shape[1:]
    if shape[-1] not in (1, 3):
        raise UsageError(
            f"zoo predict supports models of gray and RGB images. Received: {workdir}, a "
            f"model of images with {shape[-1]} channels."
        )
    names, rows, errors = list(config["class_names"]), [], []
    for start in range(0, len(files), _BATCH):
        readable, arrays = [], []
        for file in files[start : start + _BATCH]:
            try:
                pixels, _ = decode(file, shape)
            except Unreadable as error:
                errors.append(f"{file} is not a readable image: {error}.")
                continue
            readable.append(file)
            arrays.append(np.float32(255 - pixels if invert else pixels) / 255)
        if not arrays:
            continue
        model = model or _load(workdir, checkpoint)
        probabilities = model.predict(np.stack(arrays), verbose=0)
        names += map(str, range(len(names), probabilities.shape[-1]))
        rows += [
            {"file": file, "label": names[int(p.argmax())], "probability": float(p.max())}
            for file, p in zip(readable, probabilities, strict=True)
        ]
    return rows, errors


def _load(workdir: str, checkpoint: str):
    start_tensorflow()
    model = registry.load(workdir, checkpoint)
    model.compile(jit_compile=False)  # TensorFlow's build for TPUs has no XLA for CPUs
    return model
