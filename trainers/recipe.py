"""From `cnn_mnist:debug --config.trainer.epochs=2` to a checked, complete configuration.

Loads no TensorFlow.
"""

import ast
import importlib
import importlib.util
import re
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from configs import base
from trainers.preemption import SERVERS
from trainers.schema import NAMED_SECTIONS, check_values
from zoo.data.disk import read_json
from zoo.data.tokenizers import KINDS
from zoo.data.windows import Windows
from zoo.errors import RunError, UsageError, near_names, short
from zoo.processes import search_current_folder_last, shadowed

_CONFIGS = Path(base.__file__).parent
_LENGTHS = ("trainer.steps", "trainer.epochs")
STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu", "auto")
# The files of the user that were run: recipes, and modules of --import.
user_files: set[Path] = set()


def list_recipes() -> list[str]:
    """Returns the names of the recipes that come with the zoo."""
    return sorted(p.stem for p in _CONFIGS.glob("*.py") if p.stem not in ("__init__", "base"))


def load_recipe(source: str) -> ml_collections.ConfigDict:
    """Runs a recipe's `get_config`.

    Args:
      source: `NAME[:ARG]` of a recipe in configs/, or `PATH.py[:ARG]` of the user's own.

    Raises:
      UsageError: for an unknown name, a missing file, or an argument the recipe does not know.
    """
    name, _, argument = source.partition(":")
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"There is no recipe file {name}.")
        # A recipe of configs/ is the same one by its path as by its name.
        if path.resolve().parent == _CONFIGS.resolve():
            module = importlib.import_module(f"configs.{path.stem}")
        else:
            spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
            module = importlib.util.module_from_spec(spec)
            _run(f"The recipe {path}", lambda: spec.loader.exec_module(module), str(path))
            user_files.add(path.resolve())
    elif name in list_recipes():
        module = importlib.import_module(f"configs.{name}")
    else:
        raise UsageError(
            f"No recipe is named {name!r}.{near_names(name, list_recipes())} "
            f"Known: {', '.join(list_recipes())}; or give a path that ends in .py."
        )
    if not callable(vars(module).get("get_config")):
        raise UsageError(f"The recipe {name} has no function get_config(arg).")
    what, file = f"The recipe {module.__file__}", module.__file__
    config = _run(what, lambda: module.get_config(argument), file)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(
            f"get_config of the recipe {name} returns a ConfigDict; start from configs.base. "
            f"Received: {type(config).__name__}."
        )
    for section in base.base():
        if section not in config:
            raise UsageError(f"The recipe lacks {section}; start from configs.base.")
    check_values(_run(what, config.to_dict))
    return config.lock()


def _run(what: str, part, file: str = ""):
    """Runs code of the user, or what depends on it; an error in it is the user's.

    Args:
      what: how the error message calls it.
      part: a function without arguments.
      file: the source file of which the message names the line.
    """
    try:
        return part()
    except (UsageError, RunError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit, RecursionError and MemoryError among them
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if file and frame.filename == file]
        where = f", line {lines[-1]}" if lines else ""
        try:
            said = str(error)
        except Exception:
            said = "an error without a message"
        raise UsageError(
            f"{what} does not run{where}: {type(error).__name__}: {short(said)}."
        ) from None


def unknown_variant(argument: str, known: Sequence[str]) -> UsageError:
    """The error of a recipe for an argument that it does not know."""
    return UsageError(
        f"The recipe has no variant {argument!r}.{near_names(argument, known)} "
        f"Known: {', '.join(known)}."
    )


def resolve(source: str, overrides: Sequence[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
    """Loads a recipe, applies overrides in order, and checks the result.

    Args:
      source: as for `load_recipe`.
      overrides: `(key, text)` pairs: `("trainer.epochs", "3")`.

    Returns:
      A locked ConfigDict with a value for every key.

    Raises:
      UsageError: for an unknown key, a value of another type, or values that exclude each other.
    """
    return change(load_recipe(source), overrides)


def of_workdir(saved: Mapping) -> ml_collections.ConfigDict:
    """Returns the recipe that a work directory was made with, to be changed and run anew.

    Args:
      saved: the section "config" of its config.json.
    """
    config = base.base()
    for section, values in saved.items():
        if not isinstance(values, dict):
            config[section] = values
            continue
        values = _with_tuples(values)
        if section in ("data", "trainer", "compress", "prep"):  # a newer key keeps its default
            config[section].update(values)
        elif section in NAMED_SECTIONS:
            name = values.pop("name")
            config[section] = NAMED_SECTIONS[section][1](name, **values)
        else:
            config[section] = values
    return config.lock()


def _with_tuples(section: Mapping) -> dict:
    """What JSON made a list was a tuple."""
    kinds = {list: tuple, dict: _with_tuples}
    return {key: kinds.get(type(value), lambda v: v)(value) for key, value in section.items()}


def change(
    config: ml_collections.ConfigDict, overrides: Sequence[tuple[str, str]]
) -> ml_collections.ConfigDict:
    """Applies overrides to a recipe, in order, and checks the result; see `resolve`."""
    overrides = [(key.strip(), text.strip()) for key, text in overrides]
    # A section's name decides which keys there are, so names come first. Keys that the recipe
    # gave and the new optimizer lacks are dropped; keys that the user gives are refused below.
    for key, text in overrides:
        section, _, rest = key.partition(".")
        if section in NAMED_SECTIONS and rest == "name" and text != config[section].name:
            known, make = NAMED_SECTIONS[section]
            inherited = config[section].to_dict()
            section_keys = known.get(text, {})
            values = {k: v for k, v in inherited.items() if k in section_keys}
            with config.unlocked():
                config[section] = make(text, **values)
            config.lock()
    for key, text in overrides:
        _override(config, key, text)
    given = [key for key in _LENGTHS if any(key == k for k, _ in overrides)]
    if len(given) == 2 and config.trainer.steps and config.trainer.epochs:
        raise UsageError(
            "A run's length is given in steps or in epochs. Received: both trainer.steps="
            f"{config.trainer.steps} and trainer.epochs={config.trainer.epochs}."
        )
    if len(given) == 1 and config.trainer[given[0].partition(".")[2]]:
        other = _LENGTHS[1 - _LENGTHS.index(given[0])].partition(".")[2]
        config.trainer[other] = 0
    _anchor(config)
    _follow_prepared(config, {key for key, _ in overrides})
    check(config)
    return config


def _follow_prepared(config: ml_collections.ConfigDict, given: set[str]) -> None:
    """Takes the layout of prepared rows into a recipe, but for keys that the user gives.

    A recipe's variants have sequence lengths of their own, and packed rows have the length that
    they were prepared with. What cannot be read here is told when the data are loaded.
    """
    kind, _, folder = config.data.source.partition(":")
    about = Path(folder) / "prepared.json"
    if kind != "prepared" or not _exists(about):
        return
    about = read_json(about)
    if not isinstance(about, dict) or about.get("packing") != "best_fit":
        return
    for key in ("packing", "sequence_length"):
        value = about.get(key)
        if f"data.{key}" in given or config.data[key] == value:
            continue
        if isinstance(value, type(config.data[key])):
            config.data[key] = value
            print(f"zoo: data.{key}={value}, as {folder} was prepared", file=sys.stderr)


# What stands in place of a path, whatever folders there are.
_NAMES = ("none", "imagenet", *KINDS)


def expanded(path: str) -> Path:
    """The path with ~ and ~NAME replaced; raises `UsageError` where nobody is called so."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"No user's folder is known. Received: {path!r}.") from None


def _refuse_remote(key: str, path: str) -> None:
    if "://" in path:
        raise UsageError(
            f"{key} is read from this machine's disk: copy it here first. Received: {path!r}."
        )


def _anchor(config: ml_collections.ConfigDict) -> None:
    """Makes the paths of a recipe absolute, so that they hold in whatever folder it is used."""
    kind, colon, path = config.data.source.partition(":")
    _refuse_remote("data.source", path)
    if kind in ("text", "pairs", "npz", "folder", "prepared") and colon:
        if not path:
            raise UsageError(f"data.source={kind}:PATH needs a path. Received: '{kind}:'.")
        config.data.source = f"{kind}{colon}{expanded(path).absolute()}"
    places = [
        (config.data, "tokenizer"), (config, "init_from"), (config.compress.distill, "teacher"),
    ]  # fmt: skip
    more = (config.model, "weights"), (config.task, "classifier"), (config.data, "manual_dir")
    places += [(section, key) for section, key in more if isinstance(section.get(key), str)]
    for section, key in places:
        value = section[key]
        if key == "init_from" and "://" in value:
            continue  # what a run starts from may lie anywhere
        _refuse_remote(key, value)
        if value and not (value in _NAMES or value.startswith("keras_hub:")):
            path = expanded(value).absolute()
            # What a run starts from may be gone when it goes on.
            if _exists(path) or key == "init_from":
                section[key] = str(path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


def check_examples(arrays: Mapping, batch_size: int) -> None:
    """Raises `UsageError` where a training split has less than a batch.

    Args:
      arrays: of the training split.
      batch_size: examples of one update.
    """
    examples = len(next(iter(arrays.values())))
    if batch_size <= examples:
        return
    if "tokens" not in arrays:
        raise UsageError(
            f"trainer.global_batch_size ({batch_size}) must not exceed the number of training "
            f"examples ({examples}): lower it, or train on more data."
        )
    rows = arrays["tokens"]
    length, missing = rows.shape[1] - 1, (batch_size - examples) * (rows.shape[1] - 1)
    count, ways = "", [f"trainer.global_batch_size={examples} or less"]
    if isinstance(rows, Windows):
        tokens = len(rows.stream)
        count, missing = f" has {tokens:,} tokens and", (batch_size - 1) * length + 2 - tokens
        if (shorter := (tokens - 1) // batch_size) > 1:
            ways.append(f"data.sequence_length={shorter} or less")
    raise UsageError(
        f"The training split{count} fills {examples} of the {batch_size} sequences of {length} "
        f"tokens that an update takes (trainer.global_batch_size, data.sequence_length): "
        f"{missing:,} tokens are missing. Set {' or '.join(ways)}, or train on more text."
    )


def check(config: ml_collections.ConfigDict) -> None:
    """Checks what can be checked without building anything; raises `UsageError`."""
    plain = _run("The recipe", config.to_dict)
    check_values(plain)
    for section in ("model", "task"):
        if not plain[section]["name"]:
            raise UsageError(f"The recipe has no {section}.name.")
    trainer, chunk = config.trainer, plain["task"].get("chunk", 0)
    if config.compress.keep_zeros and (config.compress.sparsity or config.compress.m_by_n):
        raise UsageError(
            "compress.keep_zeros stands in place of compress.sparsity and compress.m_by_n. "
            f"Received: sparsity={config.compress.sparsity}, m_by_n={config.compress.m_by_n}."
        )
    if (config.compress.qat.on or config.compress.cluster.number) and chunk:
        raise UsageError(
            "Layers that are quantised or clustered are called as they are: compress.qat and "
            f"compress.cluster go with task.chunk=0. Received: {chunk}."
        )
    if config.compress.cluster.number and trainer.jit_compile:
        raise UsageError(
            "XLA cannot compile clusters: set trainer.jit_compile=False. Received: True."
        )
    if bool(trainer.steps > 0) == bool(trainer.epochs > 0):
        raise UsageError(
            "A run's length is given in steps or in epochs, one of them positive. Received: "
            f"trainer.steps={trainer.steps}, trainer.epochs={trainer.epochs}."
        )
    at_least = {
        "global_batch_size": 1, "steps_per_execution": 1, "log_every": 1, "keep": 1,
    }  # fmt: skip
    for key, least in at_least.items():
        if trainer[key] < least:
            raise UsageError(f"trainer.{key} is at least {least}. Received: {trainer[key]}.")
    check_strategy(trainer.strategy)
    if trainer.seed >= 2**32:
        raise UsageError(f"trainer.seed is less than 2**32. Received: {trainer.seed}.")
    if trainer.preemption_notice not in ("", *SERVERS):
        raise UsageError(
            f"trainer.preemption_notice is one of {', '.join(SERVERS)}, or empty. "
            f"Received: {trainer.preemption_notice!r}."
        )
    if not 0 <= trainer.ema < 1:
        raise UsageError(f"trainer.ema is 0 (off) or lies in (0, 1). Received: {trainer.ema}.")


def check_strategy(name: str) -> None:
    """Raises `UsageError` for an unknown strategy."""
    if name not in STRATEGIES:
        raise UsageError(
            f"No strategy is named {name!r}.{near_names(name, STRATEGIES)} "
            f"Known: {', '.join(STRATEGIES)}."
        )


def check_batch(config: ml_collections.ConfigDict, replicas: int) -> None:
    """Checks that the global batch divides over replicas and micro-batches; raises `UsageError`."""
    size, micro = config.trainer.global_batch_size, config.trainer.micro_batch_size
    if size % replicas:
        raise UsageError(
            "The global batch divides by the number of replicas. Received: "
            f"trainer.global_batch_size={size} for {replicas} replicas."
        )
    if micro and (size // replicas) % micro:
        raise UsageError(
            "The micro batch divides a replica's share of the global batch. Received: "
            f"trainer.micro_batch_size={micro} for a share of {size // replicas}."
        )


def check_tpu(config) -> None:
    """Raises `UsageError` for what no TPU can do."""
    trainer = config.trainer
    if trainer.precision == "mixed_float16":
        raise UsageError(
            "A TPU computes in float32 or bfloat16. Received: trainer.precision=mixed_float16; "
            "take mixed_bfloat16, which needs no loss scaling."
        )
    if trainer.jit_compile:
        raise UsageError(
            "A TPU's step is compiled as a whole. Received: trainer.jit_compile=True; leave it off."
        )
    if trainer.deterministic:
        raise UsageError("trainer.deterministic is for GPUs. Received: True on a TPU.")
    check_replicas(trainer.replicas)


def check_replicas(replicas: int) -> None:
    """Raises `UsageError` where a number of cores is asked for."""
    if replicas:
        raise UsageError(
            f"Strategy tpu takes all cores. Received: trainer.replicas={replicas}; leave it at 0."
        )


def as_dict(config: ml_collections.ConfigDict) -> dict:
    """Returns plain dicts and lists, as config.json holds them."""
    import json

    return json.loads(config.to_json())


def _override(config, key: str, text: str) -> None:
    *sections, last = key.split(".")
    place = config
    for section in sections:
        place = place[section] if _is_section(place, section) else None
    if place is None or last not in place:
        known = list(_keys(config))
        raise UsageError(f"The recipe has no key {key!r}.{near_names(key, known)}")
    if _is_section(place, last):
        raise UsageError(f"{key} is a section; give one of its keys: {', '.join(place[last])}.")
    place[last] = _parse(key, text, place[last])


def _is_section(place, name: str) -> bool:
    return place is not None and isinstance(place.get(name), ml_collections.ConfigDict)


def _keys(config, prefix: str = ""):
    for name in config:
        if _is_section(config, name):
            yield from _keys(config[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def _check_flat(text: str) -> None:
    """Raises RecursionError for text that may nest deeply, before Python parses it.

    So Python's parser never runs out of stack, and such text is no name in a tuple either.
    """
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "''", text)
    if len(re.findall(r"[(\[{]", bare)) > 200 or max(map(len, bare.split(","))) > 200:
        raise RecursionError


def _parse(key: str, text: str, current):
    """Reads a value of the type that the key has already."""
    wanted = type(current)
    if wanted is str:
        return text
    try:
        _check_flat(text)
        if wanted is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python, about what looks like code
            value = ast.literal_eval(text) if text else ()
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if wanted is int and isinstance(value, float) and value.is_integer():
            return int(value)  # 1e4
        if wanted in (tuple, list) and not isinstance(value, tuple | list):
            value = (value,)
        if wanted in (tuple, list) and isinstance(value, tuple | list):
            return wanted(value)
        if type(value) is wanted:
            return value
    except (RecursionError, MemoryError, OverflowError):
        pass
    except (ValueError, SyntaxError, KeyError, TypeError):
        if wanted in (tuple, list):  # names without quotes: a,b
            return wanted(part.strip() for part in text.strip("()[]").split(",") if part.strip())
    raise UsageError(
        f"{key} is of type {wanted.__name__} (now {short(repr(current))}). Received: "
        f"{short(repr(text))}."
    )


def _remember(module) -> None:
    """Adds a module's file to `user_files`; of a package, all its files."""
    if file := getattr(module, "__file__", None):
        path = Path(file).resolve()
        user_files.update(path.parent.rglob("*.py") if path.stem == "__init__" else [path])


def import_user_modules(names: Sequence[str]) -> None:
    """Imports modules of the user, which register their own models, tasks and data sets.

    Raises:
      UsageError: where a module is missing or does not run.
    """
    search_current_folder_last()
    for name in names:
        if "/" in name or name.endswith(".py"):
            module = name.removesuffix(".py").strip("./").replace("/", ".")
            raise UsageError(
                f"--import takes the name of a module, as Python does. Received: {name!r}; from "
                f"its folder it is --import={module}."
            )
        if other := shadowed(name):
            raise UsageError(
                f"--import={name} names another module than the one in this folder, which is "
                f"searched last: rename yours. Received: {other}."
            )
        _remember(_run(f"--import={name}", lambda name=name: importlib.import_module(name)))
