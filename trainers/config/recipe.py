"""Turns `cnn_mnist:debug --config.trainer.epochs=2` into a checked, complete configuration.

Does not import TensorFlow.
"""

import ast
import dataclasses
import fnmatch
import functools
import importlib.util
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from trainers.config import base, compress, data, lora, optimizer, schedule, trainer
from trainers.config.paths import make_absolute
from trainers.config.schema import check_types
from trainers.config.user_code import load_file, run
from zoo.errors import UsageError, near_names, short

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"


# --- recipes --------------------------------------------------------------------------------------


def list_recipes() -> list[str]:
    """Returns the names of the recipes that come with the zoo."""
    return sorted(p.stem for p in _CONFIGS.glob("*.py") if p.stem != "__init__")


def recipes_of(model: str) -> list[str]:
    """Returns the names of the recipes that build a model."""
    return [name for name in list_recipes() if load_recipe(name).model.name == model]


@dataclasses.dataclass(frozen=True)
class RecipeSummary:
    """Name, model, task and the first line of the docstring of a recipe."""

    name: str
    model: str
    task: str
    purpose: str


def describe_recipes(pattern: str = "*", task: str | None = None) -> list[RecipeSummary]:
    """Returns the recipes that come with the zoo, sorted by name.

    Args:
      pattern: shell pattern of the names.
      task: name of a task; only recipes of this task are returned.
    """
    rows = []
    for name in fnmatch.filter(list_recipes(), pattern):
        config = load_recipe(name)
        if task in (None, config.task.name):
            purpose = (_shipped(name).__doc__ or "").partition("\n")[0]
            model = config.model.name or "(that of init_from)"
            rows.append(RecipeSummary(name, model, config.task.name, purpose))
    return rows


def load_recipe(source: str) -> ml_collections.ConfigDict:
    """Runs a recipe's `get_config`.

    Args:
      source: `NAME[:ARG]` of a recipe in configs/, or `PATH.py[:ARG]` of a user's recipe.

    Raises:
      UsageError: for an unknown name, a missing file, an argument that the recipe does not know, or
        a key or value of the wrong type.
    """
    name, _, argument = source.partition(":")
    path = Path(name)
    if not name.endswith(".py"):
        module = _shipped(name)
    elif not path.is_file():
        raise UsageError(f"The recipe file {name} does not exist.")
    elif path.resolve().parent == _CONFIGS:  # the same recipe as by its name
        module = _shipped(path.stem)
    else:
        module = load_file(path)
    if not callable(vars(module).get("get_config")):
        raise UsageError(f"The recipe {name} has no function get_config(arg).")
    what = f"The recipe {module.__file__}"
    config = run(what, lambda: module.get_config(argument), module.__file__)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(
            f"get_config of the recipe {name} must return a ConfigDict; see trainers.config.base. "
            f"Received: {type(config).__name__}."
        )
    plain = run(what, config.to_dict)
    check_types(plain)
    return _without_defaults(base.with_optional(plain))


def shipped_recipe(name: str, argument: str = "") -> ml_collections.ConfigDict:
    """Returns all sections of a recipe that comes with the zoo, for another recipe to change.

    Args:
      name: name of the recipe.
      argument: variant of the recipe.

    Raises:
      UsageError: for an unknown name or variant.
    """
    return _shipped(name).get_config(argument)


@functools.cache
def _shipped(name: str):
    """Returns the module of a recipe, by its path because users may have a `configs` too."""
    if name not in list_recipes():
        raise UsageError(
            f"No recipe is named {name!r}.{near_names(name, list_recipes())} "
            f"Known: {', '.join(list_recipes())}; or give a path that ends in .py."
        )
    spec = importlib.util.spec_from_file_location(f"zoo_recipe_{name}", _CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_variant(argument: str, known: Sequence[str]) -> None:
    """Raises `UsageError` for an argument of a recipe that is neither "" nor in `known`."""
    if argument and argument not in known:
        raise UsageError(
            f"The recipe has no variant {argument!r}.{near_names(argument, known)} "
            f"Known: {', '.join(known)}."
        )


# --- configurations -------------------------------------------------------------------------------


def resolve(source: str, overrides: Sequence[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
    """Loads a recipe, applies overrides in order, and checks the result.

    Args:
      source: recipe as for `load_recipe`.
      overrides: `(key, text)` pairs: `("trainer.epochs", "3")`.

    Returns:
      A locked ConfigDict. Optional sections that hold only defaults are left out.

    Raises:
      UsageError: for an unknown key, a value of another type, or mutually exclusive values.
    """
    return change(load_recipe(source), overrides)


def of_workdir(saved_config: Mapping) -> ml_collections.ConfigDict:
    """Returns the configuration of a work directory, for changes and another run.

    Args:
      saved_config: the section "config" of its config.json.
    """
    return ml_collections.ConfigDict(_with_tuples(saved_config)).lock()


def _with_tuples(values):
    """Converts the lists of JSON to tuples; lists inside lists stay lists."""
    if isinstance(values, Mapping):
        return {key: _with_tuples(value) for key, value in values.items()}
    return tuple(values) if isinstance(values, list) else values


def change(
    config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]]
) -> ml_collections.ConfigDict:
    """Returns a configuration changed by overrides, and checked; see `resolve`."""
    config = _all_sections(config)
    overrides = [(key.strip(), text.strip()) for key, text in overrides]
    # The keys of a section depend on its name, so names come first. Keys that the new
    # optimizer or schedule lacks are dropped; keys that the user gives are refused below.
    for key, text in overrides:
        section, _, rest = key.partition(".")
        if section in base.NAMED and rest == "name":
            keys = base.NAMED[section].get(text, ())
            kept_arguments = {k: v for k, v in config[section].to_dict().items() if k in keys}
            config[section] = base.named(section, text, kept_arguments)
    for key, text in overrides:
        _override(config, key, text)
    user_keys = {key for key, _ in overrides}
    for key, other in (("steps", "epochs"), ("epochs", "steps")):  # one replaces the other
        if (
            f"trainer.{key}" in user_keys
            and f"trainer.{other}" not in user_keys
            and config.trainer[key]
        ):
            config.trainer[other] = 0
    make_absolute(config)
    data.follow_images(config, user_keys)
    data.follow_prepared(config.data, user_keys)
    check(config)
    return _without_defaults(config.to_dict())


def check(config: ml_collections.ConfigDict) -> None:
    """Checks each section by the rules that need no weights and no data; raises `UsageError`."""
    check_types(run("The recipe", config.to_dict))
    config = _all_sections(config)
    for section in ("model", "task"):
        # A section model without arguments is filled from init_from.
        is_filled_later = section == "model" and len(config.model) == 1
        if not config[section].name and not is_filled_later:
            raise UsageError(f"The recipe must set {section}.name.")
    data.check(config.data)
    optimizer.check(**config.optimizer)
    schedule.check(**config.schedule)
    trainer.check(config.trainer, config.task)
    compress.check(config.compress, config.trainer, config.task)
    techniques = base.without_defaults({"compress": config.compress.to_dict()}).get("compress", ())
    lora.check(config.lora, techniques)
    lora.check_strategy(config.lora, config.trainer.strategy)


def as_dict(config: ml_collections.ConfigDict) -> dict:
    """Returns plain dicts and lists, as config.json holds them."""
    return json.loads(_without_defaults(_all_sections(config).to_dict()).to_json())


def _all_sections(config) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(base.with_optional(config.to_dict()))


def _without_defaults(plain: Mapping) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(base.without_defaults(plain)).lock()


# --- overrides ------------------------------------------------------------------------------------


def _override(config, key: str, text: str) -> None:
    *sections, last = key.split(".")
    parent = config
    for section in sections:
        parent = parent[section] if _is_section(parent, section) else None
    if parent is None or last not in parent:
        known_keys = list(_keys(config))
        raise UsageError(f"The recipe has no key {key!r}.{near_names(key, known_keys)}")
    if _is_section(parent, last):
        raise UsageError(f"{key} is a section; set one of its keys: {', '.join(parent[last])}.")
    parent[last] = _parse_value(key, text, parent[last])


def _is_section(parent, name: str) -> bool:
    return parent is not None and isinstance(parent.get(name), ml_collections.ConfigDict)


def _keys(config, prefix: str = ""):
    for name in config:
        if _is_section(config, name):
            yield from _keys(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def _parse_value(key: str, text: str, current):
    """Parses text as the type of the current value."""
    expected_type = type(current)
    if expected_type is str:
        return text
    try:
        if expected_type is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        value = _literal(text) if text else ()
        if expected_type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if expected_type is int and isinstance(value, float) and value.is_integer():
            return int(value)  # 1e4
        if expected_type in (tuple, list):
            return expected_type(value if isinstance(value, tuple | list) else (value,))
        if type(value) is expected_type:
            return value
    except (RecursionError, OverflowError):
        pass
    except (ValueError, SyntaxError, KeyError, TypeError):
        if expected_type in (tuple, list):  # names without quotes: a,b
            return expected_type(
                part.strip() for part in text.strip("()[]").split(",") if part.strip()
            )
    raise UsageError(
        f"{key} must be of type {expected_type.__name__} (now {short(repr(current))}). Received: "
        f"{short(repr(text))}."
    )


def _literal(text: str):
    """Parses a Python literal; raises RecursionError for text that may nest deeply.

    Python's parser recurses, and up to Python 3.12 it may fail on any text afterwards
    (python/cpython#106905). So outside of quotes text has at most 200 brackets, and at most 200
    characters between commas.
    """
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "''", text)
    if len(re.findall(r"[(\[{]", bare)) > 200 or max(map(len, bare.split(","))) > 200:
        raise RecursionError
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns about values that look like code
        return ast.literal_eval(text)
