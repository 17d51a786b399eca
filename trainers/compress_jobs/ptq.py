"""Post-training quantization to LiteRT files and to Keras models with integer kernels.

A work directory is complete only after its model was measured on the whole test split. LiteRT files
run in their own runtime. A Keras file is opened again and must compute the outputs of the model.
"""

import dataclasses
import importlib.util
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np

from trainers.compress_jobs.calibrated import quantize as quantize_calibrated
from trainers.compress_jobs.loaded_run import LoadedRun, load
from trainers.compress_jobs.methods import FORMATS, PtqFormat
from trainers.config.base import section
from trainers.config.recipe import as_dict
from trainers.evaluation.evaluate import Result, weights_name, write_evaluation
from trainers.export.formats import difference
from trainers.export.litert import write
from trainers.export.litert_file import NO_RUNTIME, has_integer_tensors
from trainers.run.workdir import WorkDirectory, read_metrics, save_model
from zoo.errors import RunError, UsageError
from zoo.keras_internals import all_layers
from zoo.layers.rounding import is_quantized
from zoo.models.float32 import in_float32
from zoo.saved.model import load_model, open_model
from zoo.saved.workdir import FLOATS, LITERT
from zoo.storage.disk import atomic, read_bytes

_LOG = logging.getLogger(__name__)

_TOLERANCE = 1e-5  # largest difference between a model and its file, relative to the largest output


def quantize(config, start: str | Path, workdir: str | Path, source: str = "") -> dict[str, float]:
    """Quantizes the model of a work directory, and measures the result.

    Args:
      config: config of the run, with `compress.ptq.format` set.
      start: path of the work directory to quantize.
      workdir: path of the new work directory. It gets model.tflite or model.keras, the model before
        quantization as float.keras, and the evaluation of the quantized file.
      source: name of the recipe.

    Returns:
      Metrics of the test split, or of the validation split if there is no test split.

    Raises:
      UsageError: if the model has no layer that the format quantizes.
      RunError: if the conversion fails, or the saved model computes different outputs.
    """
    directory = WorkDirectory(workdir).open()
    try:
        if (directory / "config.json").exists():
            directory.check_recipe(as_dict(config))
            if any((directory / name).exists() for name in (LITERT, "model.keras")):
                _check_origin(directory, start)
                _LOG.info(f"{workdir} is already finished")
                return load(workdir).metrics()
        run = load(start)
        run.model = in_float32(run.model)
        ptq_format = FORMATS[config.compress.ptq.format]
        quantize_to = {"litert": _to_litert, "keras": _to_keras}[ptq_format.runtime]
        with tempfile.TemporaryDirectory() as folder:
            file, result = quantize_to(run, ptq_format, config, Path(folder))
            metrics, predictions = result.evaluate() if run.split else ({}, {})
            _write_workdir(directory, config, source, run, file, metrics, predictions)
        return metrics
    finally:
        directory.close()


def _check_origin(directory: WorkDirectory, start) -> None:
    """Raises `UsageError` if a finished work directory was not made from `start`."""
    lines = read_metrics(directory.path)
    detail = next((line["detail"] for line in lines if line.get("event") == "rounded"), "")
    origin = detail.partition(" of ")[2]
    if origin != str(Path(start)):
        raise UsageError(f"{directory.path} was quantized from {origin}. Received: {start}.")


def _write_workdir(
    directory, config, source, run: LoadedRun, file: Path, metrics, predictions
) -> None:
    """Writes the work directory; the quantized file comes last, because it marks completion."""
    step = max((line.get("step", 0) for line in read_metrics(run.path)), default=0)
    directory.write_config(as_dict(config), source, run.dataset)
    if run.dataset.tokenizer is not None:
        run.dataset.tokenizer.save(directory / "tokenizer.json")
    directory.write_environment([])
    directory.start_metrics(0)
    directory.log(step=step, event="rounded", detail=f"{config.compress.ptq.format} of {run.path}")
    save_model(run.model, directory / FLOATS)
    if run.split:
        result = Result(run.split, weights_name("final", run.saved["config"]), step, metrics)
        write_evaluation(directory, result, "final", predictions, run.dataset)
    with atomic(directory / file.name) as copy:
        copy.write(read_bytes(file))


# --- LiteRT ---------------------------------------------------------------------------------------


def _to_litert(run: LoadedRun, ptq_format: PtqFormat, config, folder: Path):
    """Returns the path of a new LiteRT file in `folder`, and the run with this file."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise UsageError(f"{ptq_format.name} cannot be evaluated: {NO_RUNTIME}.")
    file, examples = folder / LITERT, None
    if ptq_format.mode == "int8":
        examples = run.representative(config.compress.ptq.examples, config.trainer.seed)
    per_tensor = bool(section(config, "compress.cluster").number)
    write(run.serving_model(), run.examples(), file, ptq_format.mode, examples, per_tensor)
    if ptq_format.mode == "dynamic" and not has_integer_tensors(file):
        raise UsageError(
            "litert_dynamic quantizes kernels of at least 1,024 values. The model of "
            f"{run.path} has no such kernel: use compress.ptq.format=litert_int8."
        )
    return file, dataclasses.replace(run, file=file)


# --- Keras ----------------------------------------------------------------------------------------


def _to_keras(run: LoadedRun, ptq_format: PtqFormat, config, folder: Path):
    """Returns the path of a new Keras file in `folder`, and the run with its model."""
    if is_quantized(run.model):
        raise UsageError(
            f"The model of {run.path} was trained with qat, which only LiteRT supports: use "
            f"compress.ptq.format=litert_dynamic. Received: {ptq_format.name}."
        )
    model, file = in_float32(load_model(run.path)), folder / "model.keras"
    _quantize_kernels(model, ptq_format, run, config.compress.ptq.examples, config.trainer.seed)
    return file, dataclasses.replace(run, model=_save_and_reopen(model, file, run, ptq_format))


def _quantize_kernels(model, ptq_format: PtqFormat, run: LoadedRun, examples: int, seed: int):
    """Quantizes the kernels of a model in place; the inputs of the layers stay in float32."""
    from keras import quantizers

    mode = ptq_format.mode
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one warning per layer without kernels
        if mode in ("gptq", "awq"):
            counts = quantize_calibrated(model, mode, run.representative(examples, seed))
            _LOG.info(
                f"{ptq_format.name}: {len(counts)} layers quantized, each calibrated on at least "
                f"{min(counts.values()):,} input vectors"
            )
        elif mode == "int8":
            model.quantize(config=quantizers.Int8QuantizationConfig(activation_quantizer=None))
        else:
            model.quantize(config=quantizers.Int4QuantizationConfig(activation_quantizer=None))
    if not any(getattr(layer, "quantization_mode", None) for layer in all_layers(model)):
        raise UsageError(
            f"{ptq_format.name} supports Dense, EinsumDense and embedding layers. The model "
            f"{model.name!r} has no such layer: use compress.ptq.format=litert_dynamic, which also "
            "supports convolutions and recurrent cells."
        )


def _save_and_reopen(model, path: Path, run: LoadedRun, ptq_format: PtqFormat):
    """Saves a quantized model and opens it again; returns it if the outputs are equal."""
    model.save(path)
    try:
        reopened_model = open_model(path)
    except RunError as error:
        raise RunError(f"{ptq_format.name}: the saved model cannot be loaded: {error}") from None
    gap = difference(_outputs(model, run), _outputs(reopened_model, run))
    if not gap <= _TOLERANCE:
        raise RunError(
            f"{ptq_format.name}: the saved model computes other outputs after it is loaded. The "
            f"largest difference is {gap:.2g} of the largest output."
        )
    return reopened_model


def _outputs(model, run: LoadedRun) -> list[np.ndarray]:
    import keras

    serving_model = run.task.serving_model(model)
    examples = run.examples()
    inputs = keras.tree.map_structure(lambda tensor: examples[tensor.name], serving_model.input)
    outputs = keras.tree.flatten(serving_model(inputs, training=False))
    return [np.asarray(x, np.float32) for x in outputs]
