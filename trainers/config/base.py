"""The sections of a recipe. A recipe starts from `base` and changes its keys.

`model` and `task` hold a name and all arguments of the builder and of the task. The modules of this
package and `zoo.prep.settings` describe the other sections. `compress`, `lora` and `prep` are
optional: a configuration leaves out each of their sections that holds only defaults.
"""

from collections.abc import Mapping

import ml_collections

from trainers.config import compress, data, lora, trainer
from trainers.config.optimizer import OPTIMIZERS
from trainers.config.schedule import SCHEDULES
from zoo.errors import check_name
from zoo.prep import settings as prep

# Sections with keys that depend on their name.
NAMED = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
_OPTIONAL = {"compress": compress.KEYS, "lora": lora.KEYS, "prep": prep.KEYS}


def base() -> ml_collections.ConfigDict:
    """Returns all sections with their defaults, for a recipe to change."""
    return ml_collections.ConfigDict(
        {
            "model": {"name": ""},
            "task": {"name": ""},
            "data": data.KEYS,
            "optimizer": optimizer("adamw"),
            "schedule": schedule("constant"),
            "trainer": trainer.KEYS,
            **_OPTIONAL,
            # Weights to start from: a work directory, .keras file, folder of transformers, or
            # keras_hub:PRESET. The first and the third also give the model if model.name is "".
            "init_from": "",
        }
    )


def optimizer(name: str, **arguments) -> ml_collections.ConfigDict:
    """Returns the section of an optimizer: its defaults, changed by the arguments."""
    return named("optimizer", name, arguments)


def schedule(name: str, **arguments) -> ml_collections.ConfigDict:
    """Returns the section of a schedule: its defaults, changed by the arguments."""
    return named("schedule", name, arguments)


def named(section: str, name: str, arguments: Mapping) -> ml_collections.ConfigDict:
    """Returns a section of `NAMED`: the defaults of its name, changed by the arguments."""
    check_name(section, name, NAMED[section])
    config = ml_collections.ConfigDict({"name": name, **NAMED[section][name]})
    # Type-safe: an int given for a float becomes a float, and can be overridden as one.
    config.update(arguments)
    return config


def section(config, path: str) -> ml_collections.ConfigDict:
    """Returns a copy of an optional section, with the defaults of keys that are left out.

    Args:
      config: a configuration, or the section "config" of a config.json.
      path: path of the section, such as "prep" or "compress.distill".
    """
    name, *names = path.split(".")
    values = config.get(name, {})
    if isinstance(values, ml_collections.ConfigDict):
        values = values.to_dict()
    values = _filled(values, _OPTIONAL[name])
    for name in names:
        values = values[name]
    return ml_collections.ConfigDict(values)


def with_optional(plain: Mapping) -> dict:
    """Returns plain sections and all optional ones, with the defaults of keys that are left out."""
    sections = {name: _filled(plain.get(name, {}), keys) for name, keys in _OPTIONAL.items()}
    return {**plain, **sections}


def without_defaults(plain: Mapping) -> dict:
    """Returns plain sections without the optional ones that hold only defaults."""
    optional_sections = {
        name: _changed(plain.get(name, {}), keys) for name, keys in _OPTIONAL.items()
    }
    return {
        k: optional_sections.get(k, value)
        for k, value in plain.items()
        if optional_sections.get(k, True)
    }


def _filled(values, defaults):
    if not (isinstance(values, Mapping) and isinstance(defaults, dict)):
        return values
    filled = {key: _filled(values.get(key, default), default) for key, default in defaults.items()}
    return {**filled, **{key: value for key, value in values.items() if key not in defaults}}


def _changed(values: Mapping, defaults: dict) -> dict:
    """Returns a section without subsections of defaults; {} if only defaults are left."""
    own, below = {}, {}
    for key, value in values.items():
        if not isinstance(defaults[key], dict):
            own[key] = value
        elif changed := _changed(value, defaults[key]):
            below[key] = changed
    same = all(value == defaults[key] for key, value in own.items())
    return {} if same and not below else {**own, **below}
