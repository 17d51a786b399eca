"""Plans the stages of a compression chain such as `prune+qat`. Does not import TensorFlow."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from trainers.compress_jobs.methods import FORMATS, METHODS, Method, value_of
from trainers.config.base import section
from trainers.config.recipe import as_dict, change, of_workdir
from trainers.run.workdir import read_config
from zoo import registry
from zoo.errors import UsageError, check_name


@dataclasses.dataclass(frozen=True)
class Stage:
    """One method of a chain, with its config and work directories.

    Attributes:
      method: the method.
      config: config of the stage.
      start: absolute path of the work directory to compress.
      workdir: absolute path of the work directory to write.
    """

    method: Method
    config: ml_collections.ConfigDict
    start: Path
    workdir: Path


def parse_chain(text: str) -> list[Method]:
    """Reads METHOD or METHOD+METHOD; raises `UsageError` for an unknown method."""
    for name in text.split("+"):
        check_name("method", name, METHODS)
    return [METHODS[name] for name in text.split("+")]


def plan(
    methods: Sequence[Method], start: Path, out: Path, overrides: Sequence[tuple[str, str]]
) -> list[Stage]:
    """Returns the stages of a chain.

    A method starts from the config of the method before it, so that a quantized model remains
    quantized and a pruned model keeps its zeros. An override of the section `compress` applies to
    the method with these keys, another override to each method that trains.

    Args:
      methods: methods of the chain, in order.
      start: absolute path of the work directory to compress.
      out: absolute path of the work directory of the last method; earlier methods use subfolders.
      overrides: `(key, text)` pairs from the user.

    Raises:
      UsageError: if the chain is impossible, or the recipe does not support a method.
    """
    saved_config, origin, stages = read_config(start), start, []
    # The model of the work directory is merged: adapters would train it once more.
    config = of_workdir({k: v for k, v in saved_config["config"].items() if k != "lora"})
    _check_chain(methods, start, config, dict(overrides))
    if config.trainer.strategy == "multi_worker":
        config = change(config, [("trainer.strategy", "one_device")])
    for i, method in enumerate(methods):
        workdir = out / "stages" / f"{i + 1}-{method.name}" if i < len(methods) - 1 else out
        if method.name == "distill":
            config = _student_recipe(config, overrides)
        before, method_overrides = section(config, "compress"), _overrides_of(i, methods, overrides)
        changes = _changes(method, config, method_overrides)
        if method.name == "distill":
            changes |= {"init_from": "", "compress.distill.teacher": str(start)}
        elif method.trains:
            changes["init_from"] = str(start)
        if method.trains and saved_config["tokenizer"]:
            changes["data.tokenizer"] = str(origin)
        config = change(config, [*changes.items(), *method_overrides])
        _check_stage(method, before, config)
        if method.trains:
            _check_same_data(saved_config["config"], config)
        stages.append(Stage(method, config, start, workdir))
        start = workdir
    return stages


def _overrides_of(i: int, methods: Sequence[Method], overrides) -> list[tuple[str, str]]:
    """Returns the overrides that apply to method `i` of a chain."""
    names = [method.name for method in methods]

    def applies(key: str) -> bool:
        part, owner, *_ = *key.split("."), ""
        if part == "compress" and owner in names:
            return owner == names[i]
        if part == "init_from":
            return names[i] == "distill"
        # The model of a chain with distill is its student.
        return methods[i].trains and not (part == "model" and "distill" in names[i + 1 :])

    return [(key, text) for key, text in overrides if applies(key)]


def _changes(method: Method, config, method_overrides: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Returns key -> new value, for the keys that a method changes in the config before it."""
    settings, changes = section(config, "compress"), {}
    for other in METHODS.values() if method.trains else ():
        changes |= other.reset() if other is method else other.settings_to_keep(settings)
    if not {key for key, _ in method_overrides} & {f"compress.{key}" for key in method.keys}:
        changes |= method.defaults
    changes = {f"compress.{key}": text for key, text in changes.items()}
    for key, text in method.requires.items():
        part, _, name = key.partition(".")
        if name in config[part]:
            changes[key] = text
    return changes


# Arguments that depend on the data: a student with another model name copies the teacher's values.
_DATA_ARGUMENTS = (
    "vocabulary_size", "sequence_length", "input_shape", "num_classes", "next_sentence",
)  # fmt: skip


def _student_recipe(config, overrides):
    """Returns the config of a student without any other compression.

    A student with another model name gets the arguments of that model in the catalog.
    """
    config = copy.deepcopy(config)
    name = dict(overrides).get("model.name", config.model.name)
    with config.unlocked():
        config.compress = {}
        if "chunk" in config.task:  # distillation needs the logits of all positions
            config.task.chunk = 0
        if name != config.model.name:
            teacher = config.model.to_dict()
            student_arguments = registry.arguments(name)
            shared_overrides = {
                k: teacher[k] for k in _DATA_ARGUMENTS if k in student_arguments and k in teacher
            }
            config.model = {**student_arguments, **shared_overrides, "name": name}
    return config


# --- checks -------------------------------------------------------------------------------------


def _check_chain(methods: Sequence[Method], start: Path, config, overrides: Mapping) -> None:
    """Raises `UsageError` for a wrong order of methods, or overrides that no method supports."""
    names = [method.name for method in methods]
    if ptq_format := section(config, "compress.ptq").format:
        raise UsageError(
            f"zoo compress does not support models of ptq. Received: {start} ({ptq_format})."
        )
    if misplaced_methods := [method.name for method in methods[:-1] if not method.trains]:
        raise UsageError(
            f"{misplaced_methods[0]} must be the last method of a chain. Received: "
            f"{'+'.join(names)}."
        )
    for key in overrides if not methods[0].trains else ():
        if not key.startswith(f"compress.{names[0]}."):
            raise UsageError(f"{names[0]} does not train: remove the override. Received: {key}.")
    if "init_from" in overrides and "distill" not in names:
        raise UsageError(
            f"zoo compress starts from {start}: only the method distill supports init_from. "
            f"Received: init_from={overrides['init_from']}."
        )
    if overrides.get("trainer.strategy") == "multi_worker":
        raise UsageError(
            "zoo compress runs in one process. Received: trainer.strategy=multi_worker."
        )


def _check_stage(method: Method, before: Mapping, config) -> None:
    """Raises `UsageError` if a method has no effect, or destroys the result of another method.

    `before` is the section `compress` of the stage before; `config` is the config of this stage.
    """
    settings, name = section(config, "compress"), method.name
    if not any(value_of(settings, key) for key in method.keys):
        values = ", ".join(f"compress.{key}={value_of(settings, key)}" for key in method.keys)
        raise UsageError(f"{name} has no effect: set one of these keys. Received: {values}.")
    to_keras = name == "ptq" and FORMATS[settings.ptq.format].runtime == "keras"
    is_pruned, has_products = METHODS["prune"].is_used, METHODS["low_rank"].is_used
    conflicts = {
        "compress.prune.m_by_n determines the sparsity: remove compress.prune.sparsity":
            name == "prune" and settings.prune.sparsity and settings.prune.m_by_n,
        "low_rank destroys the zeros of pruned kernels: use prune after low_rank":
            name == "low_rank" and is_pruned(before),
        "structured does not support factorized kernels: use structured before low_rank":
            name == "structured" and has_products(before),
        "qat and cluster are mutually exclusive: use one of qat and cluster":
            name in ("qat", "cluster") and settings.qat.on and settings.cluster.number,
        "Quantization by Keras has a scale per output, which splits clusters: use "
        "compress.ptq.format=litert_dynamic or litert_int8":
            to_keras and settings.cluster.number,
        "Quantization by Keras does not support factorized kernels: use "
        "compress.ptq.format=litert_dynamic":
            to_keras and has_products(settings),
    }  # fmt: skip
    for message, applies_here in conflicts.items():
        if applies_here:
            raise UsageError(f"{message}. Received: zoo compress {name}.")


# Keys of the sections data and task that change neither the examples nor their metrics.
_MAY_CHANGE = {"data.tokenizer", "data.manual_dir", "task.chunk"}


def _check_same_data(before: Mapping, config) -> None:
    """Raises `UsageError` if results of `config` and of the config `before` are not comparable."""
    for part in ("data", "task"):
        for key, value in as_dict(config)[part].items():
            old = before[part].get(key, value)
            if value != old and f"{part}.{key}" not in _MAY_CHANGE:
                raise UsageError(
                    "zoo compress compares models on the same examples: leave "
                    f"{part}.{key} at {old!r}. Received: {value!r}."
                )
