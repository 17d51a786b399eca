"""Names to models and tasks. Duplicates and unknown names are errors. Loads no TensorFlow."""

import fnmatch
import importlib
import inspect
import numbers
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from zoo.catalog import CATALOG, Entry
from zoo.errors import RunError, UsageError, near_names, short

_models: dict[str, Entry] = {}
_tasks: dict[str, str | Callable] = {
    "image_classification": "zoo.tasks.image_classification:ImageClassification",
    "clm": "zoo.tasks.clm:CausalLanguageModeling",
    "seq2seq": "zoo.tasks.seq2seq:SequenceToSequence",
    "mlm": "zoo.tasks.mlm:MaskedLanguageModeling",
    "nsp": "zoo.tasks.mlm:NextSentencePrediction",
    "gan": "zoo.tasks.gan:GenerativeAdversarial",
}
# How a task's data come from a recipe's `data` section; by name or npz file where not given here.
_loaders: dict[str, str | Callable] = {
    "clm": "zoo.data.text:language_modeling",
    "seq2seq": "zoo.data.parallel:pairs",
    "mlm": "zoo.data.sentence_pairs:rows_of_text",
    "nsp": "zoo.data.sentence_pairs:sentence_pairs",
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
    remat: str = "",
) -> Entry:
    """Adds a model under a name; the arguments are the columns of `zoo.catalog.Entry`.

    Raises:
      UsageError: where the name is taken.
    """
    return _add(
        Entry(
            name, builder, task, parameters, paper, licence,
            arguments or {}, tiny or {}, task_arguments or {}, remat,
        )
    )  # fmt: skip


def _add(entry: Entry) -> Entry:
    if entry.name in _models:
        raise UsageError(
            f"A model name is registered once. Received: {entry.name!r}, already built by "
            f"{_models[entry.name].builder}."
        )
    _models[entry.name] = entry
    return entry


for _entry in CATALOG:
    _add(_entry)


def register_task(name: str, task: str | Callable, load: str | Callable | None = None) -> None:
    """Adds a task class (or `"module:Class"`) under a name; see `zoo.tasks.base.Task`.

    Args:
      name: of the task.
      task: the class.
      load: `load(data, task) -> zoo.data.Dataset` from the recipe's `data` and `task` sections
        (dicts); by default the data set that `data.source` names.

    Raises:
      UsageError: where the name is taken.
    """
    if name in _tasks:
        raise UsageError(f"A task name is registered once. Received: {name!r}.")
    _tasks[name] = task
    if load is not None:
        _loaders[name] = load


def import_builders() -> None:
    """Imports the modules of all builders, which registers their layers with Keras for loading."""
    for row in _models.values():
        if isinstance(row.builder, str):
            importlib.import_module(row.builder.partition(":")[0])


def makes_data(task: str) -> bool:
    """Whether a task makes its data set itself, as those on text do with their tokenizers."""
    return task in _loaders


def load_data(data: Mapping[str, Any], task: Mapping[str, Any]):
    """Returns the `zoo.data.Dataset` of a recipe; loads no TensorFlow of its own.

    Args:
      data: the recipe's section `data`.
      task: the recipe's section `task`.

    Raises:
      UsageError: for an unknown source, or a value that does not fit it.
      RunError: for missing or damaged data.
    """
    if task["name"] in _loaders:
        return _resolve(_loaders[task["name"]])(data, task)
    from zoo.data import load

    # Recipes that were resolved before there was an image_size have none.
    return load(data["source"], data["manual_dir"] or None, tuple(data.get("image_size", ())))


def entry(name: str) -> Entry:
    """Returns the catalog row of a model.

    Raises:
      UsageError: for an unknown name, with the nearest known ones.
    """
    if not isinstance(name, str) or name not in _models:
        raise UsageError(f"No model is named {name!r}.{near_names(name, _models)} See `zoo list`.")
    return _models[name]


def list_models(pattern: str = "*", task: str | None = None) -> list[str]:
    """Returns the names, sorted, that match a shell pattern (`cnn*`) and, if given, a task.

    Raises:
      UsageError: for a task that does not exist.
    """
    if task is not None and task not in _tasks:
        raise UsageError(f"No task is named {task!r}.{near_names(task, _tasks)}")
    return sorted(
        name
        for name, row in _models.items()
        if fnmatch.fnmatchcase(name, pattern) and task in (None, row.task)
    )


def list_tasks() -> list[str]:
    """Returns the names of the tasks, sorted."""
    return sorted(_tasks)


def _resolve(target: str | Callable) -> Callable:
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"Cannot import {target!r} (MODULE:NAME): {short(error)}.") from error


def _check_arguments(function: Callable, arguments: Mapping[str, Any], what: str) -> None:
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in arguments:
        if name not in parameters:
            raise UsageError(
                f"{what} takes no argument {name!r}.{near_names(name, parameters)} "
                f"It takes: {', '.join(parameters)}."
            )
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except Exception:  # annotations of a user's function may name what is not there
        return
    # Ours take no number below 0, and no larger size than 2**31.
    ours = function.__module__.startswith("zoo.")
    limits = (0, 2**31) if ours else (-(2**63), 2**63)
    for name, value in arguments.items():
        if name in hints and not _is_a(value, hints[name], *limits):
            hint = hints[name]
            wanted = hint.__name__ if type(hint) is type else str(hint)
            bounded = ours and re.search("int|float", wanted)
            raise UsageError(
                f"{what}: {name} is of type {wanted}{', from 0 to 2**31' if bounded else ''}. "
                f"Received: {repr(value)[:200]}."
            )


def _is_a(value, hint, least: int, limit: int) -> bool:
    """Whether an argument fits an annotation; numbers are finite, from `least` to below `limit`."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, part, least, limit) for part in parts)
    if hint in (int, float):
        fits = isinstance(value, numbers.Integral if hint is int else numbers.Real)
        return fits and not isinstance(value, bool) and least <= value < limit
    if hint in (bool, str, types.NoneType):
        return isinstance(value, hint)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if parts[-1] is not ... and len(value) != len(parts):
            return False
        # Of all our tuples the elements are of one type.
        return all(_is_a(one, parts[0], least, limit) for one in value)
    return True


def _plain(value):
    """Returns the Python number of NumPy's, which Keras refuses as a size; else the value."""
    of_numpy = isinstance(value, numbers.Number) and hasattr(value, "item")
    return value.item() if of_numpy else value


def arguments(name: str) -> dict[str, Any]:
    """Returns the arguments of a model's builder but its `name`, with those of the catalog row.

    Those without a default are left out.
    """
    row = entry(name)
    parameters = inspect.signature(_resolve(row.builder)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {key: value for key, value in {**defaults, **row.arguments}.items() if key != "name"}


def build(name: str, /, **overrides):
    """Builds a model.

    Args:
      name: a name of the registry.
      **overrides: builder arguments that replace those of the catalog row.

    Returns:
      A built `keras.Model`.

    Raises:
      UsageError: for an unknown name or argument, or a value of which no model can be built.
    """
    row = entry(name)
    builder = _resolve(row.builder)
    arguments = {**row.arguments, **overrides}
    _check_arguments(builder, arguments, f"Model {name!r}")
    arguments = {key: _plain(value) for key, value in arguments.items()}
    try:
        return builder(**arguments)
    except (UsageError, RunError):
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise UsageError(
            f"Model {name!r} cannot be built: {type(error).__name__}: {short(error)} Received: "
            f"{short(given)}."
        ) from error


def build_task(name: str, /, **arguments):
    """Makes the task of that name.

    Raises:
      UsageError: for an unknown name or argument.
    """
    if not isinstance(name, str) or name not in _tasks:
        raise UsageError(
            f"No task is named {name!r}.{near_names(name, _tasks)} "
            f"Known: {', '.join(list_tasks())}."
        )
    task = _resolve(_tasks[name])
    _check_arguments(task, arguments, f"Task {name!r}")
    try:
        return task(**arguments)
    except (UsageError, RunError):
        raise
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise UsageError(
            f"Task {name!r} cannot be made: {type(error).__name__}: {error}"
        ) from error


def describe(name: str, batch_size: int = 1, **overrides):
    """Returns a `zoo.description.Description` of a model, without allocating its weights."""
    from zoo.description import describe_model

    return describe_model(name, batch_size, **overrides)


def load(workdir: str, checkpoint: str = "final"):
    """Returns the trained `keras.Model` of a work directory, or of a .keras file.

    It takes what its task's `prepare` gives: classifiers pictures as floats in [0, 1], where those
    that `zoo export` writes take bytes.

    Args:
      workdir: where `zoo train` worked, or a file that `zoo export --format=keras` wrote.
      checkpoint: `"final"` (the last weights, averaged ones where EMA is on) or `"best"` (by the
        validation split).

    Raises:
      UsageError: where the folder holds no such model.
    """
    from trainers.workdir import load_model, open_model

    if str(workdir).endswith(".keras"):
        if not os.path.exists(workdir):
            raise UsageError(f"There is no file {workdir}.")
        return open_model(workdir)
    return load_model(workdir, checkpoint)
