"""Labels for pictures from outside the data set."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainers.start import start_tensorflow
from trainers.workdir import load_model, model_path, read_config
from zoo.data.pictures import Unreadable, decode
from zoo.errors import RunError, UsageError


def predict_pictures(
    workdir: str, files: Sequence[str], *, checkpoint: str = "final", invert: bool = False
) -> list[dict]:
    """Labels pictures with a work directory's classifier.

    Args:
      workdir: of a model that was trained on the task `image_classification`.
      files: paths of pictures in any format that Pillow reads.
      checkpoint: `"final"` or `"best"`.
      invert: whether to swap light and dark first.

    Returns:
      A dict a file: "file", "label" (the class's name), "probability".

    Raises:
      UsageError: for a work directory of another task.
      RunError: for a file that cannot be read as a picture, by name.
    """
    config = read_config(workdir)
    if config["config"]["task"]["name"] != "image_classification":
        raise UsageError(
            f"zoo predict labels pictures; {workdir} holds a model of the task "
            f"{config['config']['task']['name']!r}."
        )
    # Looked for before the model is loaded: a wrong path is answered at once.
    model_path(workdir, checkpoint)
    if missing := [file for file in files if not Path(file).is_file()]:
        raise RunError(f"Cannot read {missing[0]} as a picture: there is no such file.")
    start_tensorflow()
    model = load_model(workdir, checkpoint)
    if model.input_shape[-1] not in (1, 3):
        raise UsageError(
            f"zoo predict reads pictures in grey or RGB; {workdir} holds a model of pictures with "
            f"{model.input_shape[-1]} channels."
        )
    arrays = []
    for file in files:
        try:
            pixels, _ = decode(file, model.input_shape[1:])
        except Unreadable as error:
            raise RunError(f"Cannot read {file} as a picture: {error}.") from None
        arrays.append(np.float32(255 - pixels if invert else pixels) / 255)
    model.compile(jit_compile=False)  # which the build for TPUs cannot do for a CPU
    probabilities = model.predict(np.stack(arrays), verbose=0)
    names = list(config["class_names"])
    names += map(str, range(len(names), probabilities.shape[-1]))
    return [
        {"file": file, "label": names[int(p.argmax())], "probability": float(p.max())}
        for file, p in zip(files, probabilities, strict=True)
    ]
