"""Registry of models and tasks by name. Does not import TensorFlow."""

import fnmatch
import importlib
import inspect
import logging
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from zoo.catalog import CATALOG, Entry
from zoo.errors import RunError, UsageError, near_names, short

_LOG = logging.getLogger(__name__)

_models: dict[str, Entry] = {row.name: row for row in CATALOG}
_tasks: dict[str, str | Callable] = {
    "image_classification": "zoo.tasks.image_classification:ImageClassification",
    "clm": "zoo.tasks.clm:CausalLanguageModeling",
    "moe": "zoo.tasks.moe:MixtureLanguageModeling",
    "retro": "zoo.tasks.retro:RetrievalLanguageModeling",
    "seq2seq": "zoo.tasks.seq2seq:SequenceToSequence",
    "mlm": "zoo.tasks.mlm:MaskedLanguageModeling",
    "nsp": "zoo.tasks.mlm:NextSentencePrediction",
    "electra": "zoo.tasks.electra:ReplacedTokenDetection",
    "text_classification": "zoo.tasks.text_classification:TextClassification",
    "qa": "zoo.tasks.qa:QuestionAnswering",
    "by_depth": "zoo.tasks.by_depth:ByDepth",
    "gan": "zoo.tasks.gan:GenerativeAdversarial",
}
# Functions that load the data of a task; other tasks load the dataset named by `data.source`.
_loaders: dict[str, str | Callable] = {
    "clm": "zoo.data.text.dataset:language_modeling",
    "moe": "zoo.data.text.dataset:language_modeling",
    "retro": "zoo.retrieval.neighbor_rows:rows_with_neighbors",
    "seq2seq": "zoo.data.text.parallel:pairs",
    "mlm": "zoo.data.text.sentence_pairs:rows_of_text",
    "nsp": "zoo.data.text.sentence_pairs:sentence_pairs",
    "electra": "zoo.data.text.sentence_pairs:rows_of_text",
    "text_classification": "zoo.data.text.labeled:text_classification",
    "qa": "zoo.data.text.questions.dataset:question_answering",
    "by_depth": "zoo.data.text.synthetic.reasoning:questions",
}


def register(
    name: str,
    builder: str | Callable,
    task: str,
    *,
    parameters: int = 0,
    paper: str = "",
    licence: str = "",
    arguments: Mapping[str, Any] | None = None,
    tiny: Mapping[str, Any] | None = None,
    task_arguments: Mapping[str, Any] | None = None,
) -> Entry:
    """Registers a model; the arguments are the attributes of `zoo.catalog.Entry`.

    Raises:
      UsageError: if the name is registered already.
    """
    if name in _models:
        raise UsageError(
            f"A model name must be registered only once. Received: {name!r}, which is "
            f"registered with builder {_models[name].builder}."
        )
    _models[name] = Entry(
        name, builder, task, parameters, paper, licence,
        arguments or {}, tiny or {}, task_arguments or {},
    )  # fmt: skip
    return _models[name]


def register_task(name: str, task: str | Callable, load: str | Callable | None = None) -> None:
    """Registers a task.

    Args:
      name: name of the task.
      task: a subclass of `zoo.tasks.base.Task`, or `"module:Class"`.
      load: `load(data, task) -> zoo.data.Dataset`, called with the sections `data` and `task` of
        the config (dicts); by default the dataset named by `data.source` is loaded.

    Raises:
      UsageError: if the name is registered already.
    """
    if name in _tasks:
        raise UsageError(f"A task name must be registered only once. Received: {name!r}.")
    _tasks[name] = task
    if load is not None:
        _loaders[name] = load


def import_builders() -> None:
    """Imports the modules of all builders and of heads, which registers their layers with Keras."""
    importlib.import_module("zoo.models.answer_head")  # and zoo.models.heads
    for row in _models.values():
        if isinstance(row.builder, str):
            importlib.import_module(row.builder.partition(":")[0])


def has_loader(task: str) -> bool:
    """Returns whether a task has its own data loader, such as tasks on text."""
    return task in _loaders


def load_data(data: Mapping[str, Any], task: Mapping[str, Any]):
    """Loads the `zoo.data.Dataset` of a config.

    Args:
      data: section `data` of the config.
      task: section `task` of the config.

    Raises:
      UsageError: if the source is unknown, or does not support a key.
      RunError: if data are missing or damaged.
    """
    if task["name"] in _loaders:
        dataset = resolve(_loaders[task["name"]])(data, task)
    else:
        dataset = resolve("zoo.data:load")(
            data["source"], data["manual_dir"] or None, tuple(data["image_size"])
        )
    counts = {split: len(next(iter(arrays.values()))) for split, arrays in dataset.splits.items()}
    _LOG.debug(f"dataset {dataset.name!r}, number of examples: {counts}")
    return dataset


def entry(name: str) -> Entry:
    """Returns the catalog row of a model.

    Raises:
      UsageError: if the name is unknown; the message suggests similar names.
    """
    if not isinstance(name, str) or name not in _models:
        raise UsageError(f"No model is named {name!r}.{near_names(name, _models)} See `zoo list`.")
    return _models[name]


def list_models(pattern: str = "*", task: str | None = None) -> list[str]:
    """Returns the sorted names of models.

    Args:
      pattern: shell pattern of the names, such as `cnn*`.
      task: name of a task; only models of this task are returned.

    Raises:
      UsageError: if the task is unknown.
    """
    if task is not None and task not in _tasks:
        raise UsageError(f"No task is named {task!r}.{near_names(task, _tasks)}")
    return sorted(
        name
        for name, row in _models.items()
        if fnmatch.fnmatchcase(name, pattern) and task in (None, row.task)
    )


def resolve(target: str | Callable) -> Callable:
    """Imports and returns the object of `"module:name"`; returns anything but a string unchanged.

    Modules that must not import Keras use such names for objects of modules that do.

    Raises:
      UsageError: if there is no such module or name.
    """
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"Cannot import {target!r} (MODULE:NAME): {short(error)}.") from error


def _check_arguments(function: Callable, arguments: Mapping[str, Any], owner: str) -> None:
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in arguments:
        if name not in parameters:
            raise UsageError(
                f"{owner} has no argument {name!r}.{near_names(name, parameters)} "
                f"Its arguments: {', '.join(parameters)}."
            )
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except Exception:  # annotations of a user's function may not be resolvable
        return
    # Builders and tasks of the zoo accept no negative number, and no size from 2**31 on.
    is_zoo_function = function.__module__.startswith("zoo.")
    limits = (0, 2**31) if is_zoo_function else (-(2**63), 2**63)
    for name, value in arguments.items():
        if name in hints and not _is_a(value, hints[name], *limits):
            hint = hints[name]
            kind = hint.__name__ if type(hint) is type else str(hint)
            bounds = " from 0 to 2**31" if is_zoo_function and re.search("int|float", kind) else ""
            raise UsageError(
                f"{owner}: {name} must be of type {kind}{bounds}. Received: {repr(value)[:200]}."
            )


def _is_a(value, hint, minimum: int, limit: int) -> bool:
    """Returns whether an argument has the annotated type, and numbers are in [minimum, limit)."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, part, minimum, limit) for part in parts)
    if hint in (int, float):
        is_valid = isinstance(value, numbers.Integral if hint is int else numbers.Real)
        return is_valid and not isinstance(value, bool) and minimum <= value < limit
    if hint in (bool, str, types.NoneType):
        return isinstance(value, hint)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if parts[-1] is not ... and len(value) != len(parts):
            return False
        # All elements of such a tuple have the same type.
        return all(_is_a(item, parts[0], minimum, limit) for item in value)
    return True


def _plain(value):
    """Converts NumPy numbers, which Keras refuses as sizes, to Python numbers."""
    is_numpy = isinstance(value, numbers.Number) and hasattr(value, "item")
    return value.item() if is_numpy else value


def arguments(name: str) -> dict[str, Any]:
    """Returns the builder's default arguments of a model, updated with those of its catalog row.

    `name` and arguments without a default are omitted.
    """
    row = entry(name)
    parameters = inspect.signature(resolve(row.builder)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {key: value for key, value in {**defaults, **row.arguments}.items() if key != "name"}


def build(name: str, /, **overrides):
    """Builds a model.

    Args:
      name: name of a registered model.
      **overrides: builder arguments that replace those of the catalog row.

    Returns:
      A built `keras.Model`.

    Raises:
      UsageError: if the name, an argument or a value is invalid.
    """
    row = entry(name)
    return _call(resolve(row.builder), {**row.arguments, **overrides}, f"Model {name!r}")


def _call(function: Callable, arguments: Mapping[str, Any], owner: str):
    """Calls a builder or a task class with checked arguments; converts errors to UsageError."""
    _check_arguments(function, arguments, owner)
    arguments = {key: _plain(value) for key, value in arguments.items()}
    try:
        return function(**arguments)
    except (UsageError, RunError):
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        received = short(", ".join(f"{key}={value!r}" for key, value in arguments.items()))
        raise UsageError(
            f"{owner} cannot be built: {type(error).__name__}: {short(error)} Received: {received}."
        ) from error


def build_task(name: str, **arguments):
    """Creates a task.

    Args:
      name: name of a registered task.
      **arguments: arguments of the class of the task.

    Raises:
      UsageError: if the name, an argument or a value is invalid.
    """
    if not isinstance(name, str) or name not in _tasks:
        raise UsageError(
            f"No task is named {name!r}.{near_names(name, _tasks)} "
            f"Known: {', '.join(sorted(_tasks))}."
        )
    return _call(resolve(_tasks[name]), arguments, f"Task {name!r}")


def describe(name: str, batch_size: int = 1, **overrides):
    """Describes a model without allocating its weights.

    Args:
      name: name of a registered model.
      batch_size: batch size for the estimate of memory.
      **overrides: builder arguments that replace those of the catalog row.

    Returns:
      A `zoo.description.Description`.
    """
    return resolve("zoo.description:describe_model")(name, batch_size, **overrides)


def load(workdir: str, checkpoint: str = "final"):
    """Loads the trained `keras.Model` of a work directory or of a .keras file.

    The model takes the output of its task's `prepare`: an image classifier takes floats in [0, 1],
    whereas exported classifiers take uint8.

    Args:
      workdir: work directory of `zoo train`, or a file of `zoo export --format=keras`.
      checkpoint: `"final"` (last weights, or their average with EMA) or `"best"` (best on the
        validation split).

    Raises:
      UsageError: if there is no such model.
    """
    if str(workdir).endswith(".keras"):
        if not os.path.exists(workdir):
            raise UsageError(f"There is no file {workdir}.")
        return resolve("zoo.saved.model:open_model")(workdir)
    return resolve("zoo.saved.model:load_model")(workdir, checkpoint)
