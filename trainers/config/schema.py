"""Which values the keys of a recipe may have: one check for recipes, overrides and config.json.

Types follow from the defaults in trainers/config/base.py, element types of tuples too. Loads no
TensorFlow.
"""

import math
from collections.abc import Mapping

from trainers.config import base
from trainers.config.choices import OPTIMIZERS, SCHEDULES
from zoo.errors import UsageError, near_names, short

NAMED_SECTIONS = {
    "optimizer": (OPTIMIZERS, base.optimizer),
    "schedule": (SCHEDULES, base.schedule),
}
_OPEN = ("model", "task")  # their keys are the arguments of a builder or of a task
_LARGEST_FLOAT = 3.4e38  # of float32
_LARGEST_SIZE, _LARGEST_BYTES, _LARGEST_INT = 2**31, 2**53, 2**63
_UNBOUNDED = ("trainer.seed",)  # has a rule of its own
_SIGNED = ("optimizer.beta_2_decay",)
_DEPTH = 20  # of values in values


def check_values(plain: Mapping, whole: bool = True) -> None:
    """Checks keys, types and sizes of a recipe's values.

    Args:
      plain: sections by name, as `ConfigDict.to_dict` or JSON gives them.
      whole: whether keys must all be there, and no others.

    Raises:
      UsageError: for a missing or unknown key, or a value of another type or size.
    """
    if not isinstance(plain, Mapping):
        raise UsageError(f"A recipe is a dictionary of sections. Received: {shown(plain)}.")
    reference = base.base().to_dict()
    for section, (_, make) in NAMED_SECTIONS.items():
        if section in plain:
            _check_section(f"{section}.", plain[section], {"name": ""}, whole, closed=False)
            reference[section] = make(plain[section].get("name", "")).to_dict()
    _check_section("", plain, reference, whole)
    for section in _OPEN:
        for key, value in plain.get(section, {}).items():
            if not isinstance(key, str):
                raise UsageError(f"Keys of {section} are words. Received: {shown(key)}.")
            _check_open(f"{section}.{key}", value)


def _check_section(prefix: str, section, reference: dict, whole: bool, closed=True) -> None:
    """Checks that a section has the keys of the reference, of its types, and no others."""
    if not isinstance(section, Mapping):
        raise UsageError(f"{prefix.rstrip('.')} is a section. Received: {shown(section)}.")
    for key, example in reference.items():
        if key not in section:
            if whole:
                raise UsageError(
                    f"The recipe lacks {prefix}{key}; start from trainers.config.base."
                )
            continue
        name, value = f"{prefix}{key}", section[key]
        if isinstance(example, dict):
            _check_section(f"{name}.", value, example, whole, closed=name not in _OPEN)
        elif isinstance(example, tuple):
            if not isinstance(value, tuple | list):
                raise UsageError(f"{name} is of type tuple. Received: {shown(value)}.")
            element = example[0] if example else base.ELEMENTS[name]
            for one in value:
                _check_one(name, one, element, "holds values")
        else:
            _check_one(name, value, example, "is")
    unknown = [key for key in section if key not in reference]
    if unknown and closed and whole:
        raise UsageError(
            f"The recipe has an unknown key {prefix}{unknown[0]}."
            f"{near_names(str(unknown[0]), reference)}"
        )


def _check_one(name: str, value, example, verb: str) -> None:
    """Checks a word, a number or a truth value by an example of it."""
    wanted = type(example)
    fits = isinstance(value, (float, int) if wanted is float else wanted)
    if not fits or (isinstance(value, bool) and wanted is not bool):
        raise UsageError(f"{name} {verb} of type {wanted.__name__}. Received: {shown(value)}.")
    if wanted not in (int, float):
        return
    if wanted is float and not abs(value) <= _LARGEST_FLOAT:
        raise UsageError(f"{name} {verb} finite in float32. Received: {shown(value)}.")
    if value < 0 and name not in _SIGNED:
        raise UsageError(f"{name} is at least 0. Received: {name}={shown(value)}.")
    limit = _LARGEST_BYTES if name.startswith("prep.") else _LARGEST_SIZE
    if wanted is int and name not in _UNBOUNDED and value >= limit:
        raise UsageError(f"{name} is less than {limit:,}. Received: {shown(value)}.")


def _check_open(name: str, value, depth: int = 0) -> None:
    """Checks an argument of a model or a task, whose type only the builder knows."""
    if depth > _DEPTH:
        raise UsageError(f"{name} is nested more than {_DEPTH} times.")
    if isinstance(value, Mapping):
        for key, one in value.items():
            if not isinstance(key, str):
                raise UsageError(f"Keys of {name} are words. Received: {shown(key)}.")
            _check_open(name, one, depth + 1)
    elif isinstance(value, tuple | list):
        for one in value:
            _check_open(name, one, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{name} is finite. Received: {shown(value)}.")
    elif isinstance(value, int):
        if abs(value) >= _LARGEST_INT:
            raise UsageError(f"{name} is less than 2**63. Received: {shown(value)}.")
    elif value is not None and not isinstance(value, str):
        raise UsageError(
            "A recipe holds numbers, words, truth values and lists of them: Object of type "
            f"{type(value).__name__} in {name}."
        )


def shown(value) -> str:
    """Returns a value as an error message shows it, also one that cannot be written."""
    try:
        return short(repr(value))
    except Exception:  # repr of a user's object, and of very large numbers
        return f"a value of type {type(value).__name__}"
