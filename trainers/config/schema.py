"""Types and sizes of values: one check for recipes, overrides and config.json.

Types follow from the defaults in the modules of this package. Does not import TensorFlow.
"""

import math
from collections.abc import Mapping

from trainers.config import base
from zoo.errors import UsageError, near_names, short

_OPEN = ("model", "task")  # their keys are the arguments of a builder or of a task
# Example elements of the tuples that are empty by default.
_ELEMENTS = {
    "data.image_size": 224,
    "data.languages": "en",
    "data.columns": "label",
    "trainer.callbacks": "tensorboard",
    "compress.prune.m_by_n": 2,
    "compress.structured.widths": "PATH=UNITS",
    "compress.low_rank.ranks": "PATH=RANK",
    "prep.clean.mask": "email",
    "prep.language.keep": "en",
}
_LARGEST_FLOAT = 3.4e38  # in float32
_LARGEST_SIZE, _LARGEST_BYTES, _LARGEST_INT = 2**31, 2**53, 2**63
_DEPTH = 20  # maximum nesting of a model's or task's argument


def check_types(plain: Mapping) -> None:
    """Checks keys, types and sizes of the values of a configuration.

    Args:
      plain: sections by name, as `ConfigDict.to_dict` or JSON gives them. Optional sections may be
        missing.

    Raises:
      UsageError: for a missing or unknown key, or a value of another type or too large.
    """
    if not isinstance(plain, Mapping):
        raise UsageError(f"A recipe must be a dictionary of sections. Received: {describe(plain)}.")
    reference = base.base().to_dict()
    for section in base.NAMED:
        if section in plain:
            _check_section(f"{section}.", plain[section], {"name": ""}, closed=False)
            reference[section] = base.named(section, plain[section]["name"], {}).to_dict()
    _check_section("", base.with_optional(plain), reference)
    for section in _OPEN:
        _check_argument(section, plain[section])


def _check_section(prefix: str, section, reference: dict, closed=True) -> None:
    """Checks that a section has the keys of the reference, of the same types, and no others."""
    if not isinstance(section, Mapping):
        raise UsageError(f"{prefix.rstrip('.')} must be a section. Received: {describe(section)}.")
    for key, example in reference.items():
        name = f"{prefix}{key}"
        if key not in section:
            raise UsageError(f"The recipe must contain {name}; start from trainers.config.base.")
        value = section[key]
        if isinstance(example, dict):
            _check_section(f"{name}.", value, example, closed=name not in _OPEN)
        elif isinstance(example, tuple):
            if not isinstance(value, tuple | list):
                raise UsageError(f"{name} must be of type tuple. Received: {describe(value)}.")
            for element in value:
                element_example = example[0] if example else _ELEMENTS[name]
                _check_value(name, element, element_example, "must contain values")
        else:
            _check_value(name, value, example)
    unknown = [key for key in section if key not in reference]
    if unknown and closed:
        raise UsageError(
            f"The recipe has an unknown key {prefix}{unknown[0]}."
            f"{near_names(str(unknown[0]), reference)}"
        )


def _check_value(name: str, value, example, verb: str = "must be") -> None:
    """Checks a str, int, float or bool against an example of its type."""
    expected_type = type(example)
    is_valid = isinstance(value, (float, int) if expected_type is float else expected_type)
    if not is_valid or (isinstance(value, bool) and expected_type is not bool):
        raise UsageError(
            f"{name} {verb} of type {expected_type.__name__}. Received: {describe(value)}."
        )
    if expected_type is float and not abs(value) <= _LARGEST_FLOAT:
        raise UsageError(f"{name} must be finite in float32. Received: {describe(value)}.")
    limit = _LARGEST_BYTES if name.startswith("prep.") else _LARGEST_SIZE
    if expected_type is int and name != "trainer.seed" and value >= limit:
        raise UsageError(f"{name} must be less than {limit:,}. Received: {describe(value)}.")


def _check_argument(name: str, value, depth: int = -1) -> None:
    """Checks an argument of a model or a task; only the builder knows its type."""
    if depth > _DEPTH:
        raise UsageError(f"{name} must not be nested more than {_DEPTH} times.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UsageError(f"Keys of {name} must be strings. Received: {describe(key)}.")
            _check_argument(f"{name}.{key}" if depth < 0 else name, item, depth + 1)
    elif isinstance(value, tuple | list):
        for item in value:
            _check_argument(name, item, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{name} must be finite. Received: {describe(value)}.")
    elif isinstance(value, int):
        if abs(value) >= _LARGEST_INT:
            raise UsageError(f"{name} must be less than 2**63. Received: {describe(value)}.")
    elif value is not None and not isinstance(value, str):
        raise UsageError(
            "A recipe must contain only numbers, strings, booleans and lists of them. Received: an "
            f"object of type {type(value).__name__} in {name}."
        )


def describe(value) -> str:
    """Returns a value as an error message shows it, even if its repr fails."""
    try:
        return short(repr(value))
    except Exception:
        return f"a value of type {type(value).__name__}"
