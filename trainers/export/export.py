"""A trained model as a file for other runtimes, checked in that runtime before it counts.

`export_workdir` does the work in a child process (`trainers.export.formats`): a conversion that
fails can end the interpreter. The exported file computes in float32, takes what the data holds
(bytes of images, token ids), and is written with a description beside it, `OUT.json`. For a work
directory of `zoo compress ptq` the file in it is copied, in its own format. Loads no TensorFlow.
"""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainers.run.workdir import read_config
from zoo import processes
from zoo.errors import RunError, UsageError, short
from zoo.saved.workdir import is_litert, model_path
from zoo.storage.disk import atomic_path, write_json

# Format -> ending of its name ("" for a folder), and the packages besides TensorFlow.
FORMATS = {
    "saved_model": ("", ()),
    "litert": (".tflite", ("ai_edge_litert",)),
    "onnx": (".onnx", ("tf2onnx", "onnxruntime")),
    "keras": (".keras", ()),
}


def export_workdir(
    workdir: str, form: str, out: str, checkpoint: str = "final", modules: Sequence[str] = ()
) -> dict:
    """Exports a work directory's model; loads no TensorFlow of its own.

    Args:
      workdir: of `zoo train`.
      form: a key of `FORMATS`.
      out: what is made: a folder for saved_model, else a file of the format's ending.
      checkpoint: "final" or "best".
      modules: of the user, that register what the model is made of.

    Returns:
      What is written to `OUT.json`: inputs, outputs, labels, bytes, the largest difference from the
      Keras model on the examples, and which these were.

    Raises:
      UsageError: where `out` is there already or has another ending, or a package is missing.
      RunError: where the conversion fails, or its result computes something else; nothing is left.
    """
    ending, packages = FORMATS[form]
    path = Path(out)
    if ending and path.suffix != ending:
        raise UsageError(f"A file of the format {form} ends in {ending}. Received: {out}.")
    for place in (path, _beside(path)):
        if place.exists():
            raise UsageError(f"{place} is there already: delete it or name another --out.")
    if lacking := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"The format {form} takes the package {lacking[0]}: pip install 'keras-zoo[export]'."
        )
    saved = read_config(workdir)
    if is_litert(saved) and checkpoint == "final":
        if form != "litert":
            raise UsageError(
                f"{workdir} holds a LiteRT file ({rounded_format(saved)}), of which nothing else "
                f"can be made: --format=litert gives it. Received: --format={form}; that takes the "
                "work directory that `zoo compress ptq` started from."
            )
    else:
        model_path(workdir, checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as made:
        done = processes.run(
            "trainers.export.formats:main", workdir, form, str(made), checkpoint, *modules,
            tensorflow=True,
        )  # fmt: skip
        if done.returncode < 0:
            raise RunError(f"The conversion to {form} was ended by signal {-done.returncode}.")
        if done.returncode:
            words = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise RunError(f"The conversion to {form} failed: {short(words)}")
        found = json.loads(done.stdout.splitlines()[-1])
    write_json(_beside(path), found)
    return found


def rounded_format(saved: Mapping) -> str:
    """The format of `zoo compress ptq` that a work directory has; "" for none."""
    return saved["config"].get("compress", {}).get("ptq", {}).get("format", "")


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")
