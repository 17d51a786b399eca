"""Exports a trained model to a file for another runtime; does not import TensorFlow.

`export_workdir` converts in a child process (`trainers.export.formats`), because a failing
converter can end the interpreter. The exported model computes in float32. Its inputs have the
format of the data: uint8 images or token ids. `OUT.json` describes the file `OUT`. If the work
directory was written by `zoo compress ptq`, its quantized file is copied in its own format.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainers.run.workdir import read_config
from zoo import processes
from zoo.errors import UsageError
from zoo.saved.workdir import is_litert, model_path
from zoo.storage.disk import atomic_path, write_json

# Export format -> suffix ("" for a folder) and required packages in addition to TensorFlow.
FORMATS = {
    "saved_model": ("", ()),
    "litert": (".tflite", ("ai_edge_litert",)),
    "onnx": (".onnx", ("tf2onnx", "onnxruntime")),
    "keras": (".keras", ()),
}


def export_workdir(
    workdir: str, export_format: str, out: str, checkpoint="final", modules: Sequence[str] = ()
) -> dict:
    """Exports the model of a work directory.

    Args:
      workdir: work directory of `zoo train` or `zoo compress`.
      export_format: key of `FORMATS`.
      out: path of the result: a folder for saved_model, else a file with the format's suffix.
      checkpoint: "final" or "best".
      modules: names of the user's modules that register parts of the model.

    Returns:
      Content of `OUT.json`: inputs, outputs, labels, bytes, the source of the examples, and the
      largest difference from the Keras model on these examples.

    Raises:
      UsageError: if `out` exists or has another suffix, or a package is missing.
      RunError: if the conversion fails, or the exported model computes different outputs. No file
        is written in this case.
    """
    suffix, packages = FORMATS[export_format]
    path = Path(out)
    if suffix and path.suffix != suffix:
        raise UsageError(f"--out must end in {suffix} for {export_format}. Received: {out}.")
    for existing in (path, _description_path(path)):
        if existing.exists():
            raise UsageError(
                f"{existing} already exists. Delete {existing} or choose another --out."
            )
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"--format={export_format} requires the package {missing[0]}: "
            "pip install 'keras-zoo[export]'."
        )
    saved_config = read_config(workdir)
    if is_litert(saved_config) and checkpoint == "final":
        if export_format != "litert":
            raise UsageError(
                f"{workdir} has a LiteRT file ({quantized_format(saved_config)}), which must be "
                f"exported with --format=litert. Received: --format={export_format}. For another "
                "format export the work directory that `zoo compress ptq` started from."
            )
    else:
        model_path(workdir, checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary_path:
        description = processes.call(
            f"The conversion to {export_format}", "trainers.export.formats:export", workdir,
            export_format, str(temporary_path), checkpoint, *modules, tensorflow=True,
        )  # fmt: skip
    write_json(_description_path(path), description)
    return description


def quantized_format(saved_config: Mapping) -> str:
    """Returns the `zoo compress ptq` format of a work directory; "" for other runs."""
    return saved_config["config"].get("compress", {}).get("ptq", {}).get("format", "")


def _description_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")
