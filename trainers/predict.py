"""Labels for pictures from outside the data set."""

from collections.abc import Sequence

import numpy as np

from trainers.start import start_tensorflow
from trainers.workdir import load_model, model_path, read_config
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
    from PIL import Image, ImageOps

    config = read_config(workdir)
    if config["config"]["task"]["name"] != "image_classification":
        raise UsageError(
            f"zoo predict labels pictures; {workdir} holds a model of the task "
            f"{config['config']['task']['name']!r}."
        )
    # Looked for before the model is loaded: a wrong path is answered at once.
    model_path(workdir, checkpoint)
    pictures = []
    for file in files:
        try:
            with Image.open(file) as picture:
                pictures.append(_plain(ImageOps.exif_transpose(picture)))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise RunError(f"Cannot read {file} as a picture: {error}.") from None
    start_tensorflow()
    model = load_model(workdir, checkpoint)
    height, width, channels = model.input_shape[1:]
    arrays = []
    for picture in pictures:
        picture = picture.convert("L" if channels == 1 else "RGB")
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if invert:
            picture = ImageOps.invert(picture)
        arrays.append(np.asarray(picture, np.float32).reshape(height, width, channels) / 255)
    probabilities = model.predict(np.stack(arrays), verbose=0)
    names = config["class_names"] or [str(i) for i in range(probabilities.shape[-1])]
    return [
        {"file": file, "label": names[int(p.argmax())], "probability": float(p.max())}
        for file, p in zip(files, probabilities, strict=True)
    ]


def _plain(picture):
    """Turns a picture into 8-bit RGB as a viewer shows it: all greys, white behind the clear."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
        grey = np.clip(np.asarray(picture, np.int64) // 256, 0, 255)
        picture = Image.fromarray(grey.astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")
