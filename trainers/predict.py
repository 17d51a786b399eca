"""Labels for pictures from outside the data set."""

from collections.abc import Sequence

import numpy as np

from trainers.start import start_tensorflow
from trainers.workdir import load_model, model_path, read_config
from zoo.data.pictures import Unreadable, decode
from zoo.errors import UsageError

_BATCH = 64


def predict_pictures(
    workdir: str, files: Sequence[str], *, checkpoint: str = "final", invert: bool = False
) -> tuple[list[dict], list[str]]:
    """Labels pictures with a work directory's classifier.

    Args:
      workdir: of a model that was trained on the task `image_classification`.
      files: paths of pictures; see `zoo.data.pictures`.
      checkpoint: `"final"` or `"best"`.
      invert: whether to swap light and dark first.

    Returns:
      `(rows, errors)`: a dict per readable file, "file", "label" (the class's name) and
      "probability"; and one message per file that cannot be read, by name.

    Raises:
      UsageError: for a work directory of another task.
    """
    config = read_config(workdir)
    if config["config"]["task"]["name"] != "image_classification":
        raise UsageError(
            f"zoo predict labels pictures; {workdir} holds a model of the task "
            f"{config['config']['task']['name']!r}."
        )
    # Looked for before the model is loaded: a wrong path is answered at once.
    model_path(workdir, checkpoint)
    model = None
    shape = tuple(config["config"]["model"].get("input_shape") or ())
    if len(shape) != 3:  # a builder without that argument: the model tells
        model = _load(workdir, checkpoint)
        shape = model.input_shape[1:]
    if shape[-1] not in (1, 3):
        raise UsageError(
            f"zoo predict reads pictures in grey or RGB; {workdir} holds a model of pictures with "
            f"{shape[-1]} channels."
        )
    names, rows, errors = list(config["class_names"]), [], []
    for start in range(0, len(files), _BATCH):
        readable, arrays = [], []
        for file in files[start : start + _BATCH]:
            try:
                pixels, _ = decode(file, shape)
            except Unreadable as error:
                errors.append(f"Cannot read {file} as a picture: {error}.")
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
    model = load_model(workdir, checkpoint)
    model.compile(jit_compile=False)  # which the build for TPUs cannot do for a CPU
    return model
