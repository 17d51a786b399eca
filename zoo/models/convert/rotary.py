"""Rotary positions in config.json of transformers: the base, and a scaling for longer contexts."""

from collections.abc import Mapping

from zoo.errors import RunError
from zoo.layers.positions import parse_scaling
from zoo.models.convert.family import Config

# Keys of each kind of scaling, in the order of `zoo.layers.positions.parse_scaling`.
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    ),
}  # fmt: skip
_SUPPORTED = f"only the rotary positions {', '.join(_KEYS)}"


def read_rotary(config: Config) -> dict:
    """Returns the builder arguments rotary_base and rotary_scaling.

    transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters`; a file
    with several of them must agree with itself.
    """
    bases, scalings = {}, {}
    if (rope_theta := config.pop("rope_theta")) is not None:
        bases["rope_theta"] = _positive(config, "rope_theta", rope_theta)
    for key in ("rope_parameters", "rope_scaling"):
        table = config.pop(key)
        if not table:
            continue
        if not isinstance(table, dict):
            config.refuse(key, table, _SUPPORTED)
        base, scaling = read_table(config, key, dict(table))
        scalings[key] = scaling
        if base is not None:
            bases[f"{key}.rope_theta"] = base
    for values, name in ((bases, "rotary base"), (scalings, "scaling of rotary positions")):
        if len(set(values.values())) > 1:
            (first, base), (key, value), *_ = values.items()
            config.refuse(key, value, f"only one {name}, and {first} is {base}")
    return {
        "rotary_base": float(next(iter(bases.values()), 10_000.0)),
        "rotary_scaling": next(iter(scalings.values()), ""),
    }


def read_table(config: Config, key: str, table: dict) -> tuple[float | None, str]:
    """Returns the base, None if absent, and the scaling of one table."""
    base = table.pop("rope_theta", None)
    base = base if base is None else _positive(config, f"{key}.rope_theta", base)
    kinds = [table.pop(name) for name in ("rope_type", "type") if table.get(name) is not None]
    kind = kinds[0] if kinds else "default"
    if kind not in _KEYS or kinds[1:] not in ([], [kind]):
        config.refuse(f"{key}.rope_type", kinds[-1], _SUPPORTED)
    numbers = [_positive(config, f"{key}.{name}", table.pop(name, None)) for name in _KEYS[kind]]
    for name, value in table.items():
        if value is not None and (name, value) != ("partial_rotary_factor", 1.0):
            config.refuse(f"{key}.{name}", value, _SUPPORTED)
    if kind == "default":
        return base, ""
    scaling = ":".join([kind, *(f"{number:.15g}" for number in numbers)])
    try:
        parse_scaling(scaling)
    except ValueError as error:
        raise RunError(f"{config.path}: {key} is wrong: {error}") from None
    return base, scaling


def _positive(config: Config, key: str, value) -> float:
    if type(value) not in (int, float) or value <= 0:
        raise RunError(f"{config.path}: {key} must be a positive number. Received: {value!r}.")
    return value


def write_rotary(arguments: Mapping) -> dict:
    """Returns the keys of config.json, for transformers 4 and 5."""
    base, scaling = arguments["rotary_base"], arguments["rotary_scaling"]
    table = write_table(scaling)
    return {
        "rope_theta": base,
        **({"rope_scaling": table} if scaling else {}),
        "rope_parameters": {**table, "rope_theta": base},
    }


def write_table(scaling: str) -> dict:
    """Returns the table of transformers for a scaling, without the base."""
    kind = scaling.partition(":")[0] or "default"
    table = {"rope_type": kind, **dict(zip(_KEYS[kind], parse_scaling(scaling), strict=True))}
    if kind == "llama3":
        table[_KEYS[kind][-1]] = int(table[_KEYS[kind][-1]])
    return table
