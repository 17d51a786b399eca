"""Quantisation after training: LiteRT files, and Keras models whose kernels are integers.

Nothing is trained. What is written counts only once it was measured: a LiteRT file by the task's
metrics over the whole test split, run in its own runtime; a Keras model besides by its file, opened
again, computing the same.
"""

import dataclasses
import importlib.util
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from trainers.compress_jobs.calibrated import quantize as calibrate
from trainers.compress_jobs.loaded_run import LoadedRun, load
from trainers.config.base import section
from trainers.config.recipe import as_dict
from trainers.evaluation.evaluate import Result, weights_name, write_evaluation
from trainers.export.formats import difference
from trainers.export.litert import write
from trainers.export.litert_file import NO_RUNTIME, holds_integers
from trainers.run.workdir import WorkDirectory, read_metrics, save_model
from zoo.errors import RunError, UsageError
from zoo.keras_internals import all_layers
from zoo.layers.rounding import is_quantized
from zoo.models.float32 import in_float32
from zoo.saved.model import load_model, open_model
from zoo.saved.workdir import FLOATS, LITERT
from zoo.storage.disk import atomic, read_bytes

_SAME = 1e-5  # of the largest output: a model and what its file gives


def quantize(config, start: str | Path, workdir: str | Path, source: str = "") -> dict[str, float]:
    """Rounds a work directory's model and measures the result.

    Args:
      config: its recipe with `compress.ptq.format`.
      start: the work directory.
      workdir: where the result is written: model.tflite, or model.keras; float.keras, the model
        that was rounded; evaluation/, by the compressed file.
      source: name of the recipe.

    Returns:
      The metrics of the test split, of the validation split where there is none.

    Raises:
      UsageError: where the model has nothing that the format rounds.
      RunError: where the conversion fails, or the saved model computes something else.
    """
    directory = WorkDirectory(workdir).open()
    try:
        if (directory / "config.json").exists():
            directory.check_recipe(as_dict(config))
            if any((directory / name).exists() for name in (LITERT, "model.keras")):
                _check_origin(directory, start)
                print(f"{workdir} is finished already", file=sys.stderr)
                return load(workdir).metrics()
        found = load(start)
        found.model = in_float32(found.model)
        settings = config.compress.ptq
        kind, _, form = settings.format.partition("_")
        if kind == "litert" and importlib.util.find_spec("ai_edge_litert") is None:
            raise UsageError(f"{settings.format} is measured in its own runtime: {NO_RUNTIME}.")
        if kind == "keras" and is_quantized(found.model):
            raise UsageError(
                f"The model of {start} learned in 8 bits, which LiteRT keeps: use "
                f"compress.ptq.format=litert_dynamic. Received: {settings.format}."
            )
        with tempfile.TemporaryDirectory() as folder:
            if kind == "litert":
                made = Path(folder) / LITERT
                examples = None
                if form == "int8":
                    examples = found.representative(settings.examples, config.trainer.seed)
                clustered = bool(section(config, "compress.cluster").number)
                write(found.served(), found.examples(), made, form, examples, clustered)
                if form == "dynamic" and not holds_integers(made):
                    raise UsageError(
                        "LiteRT's litert_dynamic rounds kernels of 1,024 numbers or more. The "
                        f"model of {start} has none: use compress.ptq.format=litert_int8."
                    )
                result = _with(found, file=made)
            else:
                made = Path(folder) / "model.keras"
                rounded = load_in_float32(start)
                _quantize(rounded, form, found, settings.examples, config.trainer.seed)
                result = _with(found, model=_reopened(rounded, made, found, settings.format))
            metrics, predictions = result.evaluate() if found.split else ({}, {})
            _keep(directory, config, source, found, made, metrics, predictions)
        return metrics
    finally:
        directory.close()


def _check_origin(directory: WorkDirectory, start) -> None:
    """Raises `UsageError` where what is finished was made of another work directory."""
    lines = read_metrics(directory.path)
    detail = next((line["detail"] for line in lines if line.get("event") == "rounded"), "")
    origin = detail.partition(" of ")[2]
    if origin != str(Path(start)):
        raise UsageError(f"{directory.path} was made of {origin}. Received: {start}.")


def load_in_float32(workdir):
    """A work directory's model once more, computing in float32."""
    return in_float32(load_model(workdir))


def _with(found: LoadedRun, model=None, file=None) -> LoadedRun:
    """The same task and data with the compressed model."""
    return dataclasses.replace(found, model=model or found.model, file=file)


def _keep(directory, config, source, found: LoadedRun, made: Path, metrics, predictions) -> None:
    """Writes the work directory; what tells that it is whole comes last."""
    step = max((line.get("step", 0) for line in read_metrics(found.path)), default=0)
    directory.write_config(as_dict(config), source, found.dataset)
    if found.dataset.tokenizer is not None:
        found.dataset.tokenizer.save(directory / "tokenizer.json")
    directory.write_environment([])
    directory.start_metrics(0)
    directory.log(
        step=step, event="rounded", detail=f"{config.compress.ptq.format} of {found.path}"
    )
    save_model(found.model, directory / FLOATS)
    if found.split:
        result = Result(found.split, weights_name("final", found.saved["config"]), step, metrics)
        write_evaluation(directory, result, "final", predictions, found.dataset)
    with atomic(directory / made.name) as file:
        file.write(read_bytes(made))


# --- Keras ----------------------------------------------------------------------------------------


def _quantize(model, form: str, found: LoadedRun, examples: int, seed: int) -> None:
    """Has Keras round a model's kernels, in place; what a layer is given stays as it is."""
    from keras import quantizers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a line for each layer that has nothing to round
        if form in ("gptq", "awq"):
            counts = calibrate(model, form, found.representative(examples, seed))
            print(
                f"keras_{form}: {len(counts)} layers rounded, each calibrated on at least "
                f"{min(counts.values()):,} input vectors",
                file=sys.stderr,
            )
        elif form == "int8":
            model.quantize(config=quantizers.Int8QuantizationConfig(activation_quantizer=None))
        else:
            model.quantize(config=quantizers.Int4QuantizationConfig(activation_quantizer=None))
    if not any(getattr(layer, "quantization_mode", None) for layer in all_layers(model)):
        raise UsageError(
            f"keras_{form} rounds the kernels of Dense, EinsumDense and embeddings. The model "
            f"{model.name!r} has none: litert_dynamic rounds convolutions and recurrent cells too."
        )


def _reopened(model, path: Path, found: LoadedRun, form: str):
    """Saves a quantised model, opens it, and returns it where it computes the same."""
    model.save(path)
    try:
        again = open_model(path)
    except RunError as error:
        raise RunError(f"{form}: the model cannot be opened again: {error}") from None
    one, other = (_outputs(x, found) for x in (model, again))
    if not difference(one, other) <= _SAME:
        raise RunError(
            f"{form}: the saved model computes something else when it is opened again (by "
            f"{difference(one, other):.2g} of the largest output): Keras loses a part of it."
        )
    return again


def _outputs(model, found: LoadedRun) -> list[np.ndarray]:
    import keras

    served = found.task.served(model)
    examples = found.examples()
    arranged = keras.tree.map_structure(lambda tensor: examples[tensor.name], served.input)
    flat = keras.tree.flatten(served(arranged, training=False))
    return [np.asarray(x, np.float32) for x in flat]
