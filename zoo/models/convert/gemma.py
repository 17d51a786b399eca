"""Gemma 3 in transformers, Gemma3ForCausalLM: the model of text, without images."""

import dataclasses
from collections.abc import Mapping

from zoo.errors import UsageError
from zoo.models.convert.family import Config, Join, is_block, tied
from zoo.models.convert.llama import (
    FULL,
    LLAMA,
    SLIDING,
    forms_of_types,
    read_forms,
    read_llama,
    types_of_forms,
    write_llama,
)
from zoo.models.convert.rotary import read_table, write_table

# Defaults of transformers that differ from those of `read_llama`.
_DEFAULTS = {
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "max_position_embeddings": 131_072, "tie_word_embeddings": True,
}  # fmt: skip
_FIXED = {
    "query_key_norm": True, "activation": "geglu_tanh", "post_norm": True, "scale_embeddings": True,
}  # fmt: skip


def _read(config: Config) -> dict:
    for key, value in _DEFAULTS.items():
        config.set_default(key, value)
    # The tanh approximation; "gelu" is the exact function.
    config.expect("hidden_activation", "gelu_pytorch_tanh", None)
    config.expect("final_logit_softcapping", None)
    config.expect("attn_logit_softcapping", None)
    config.expect("use_bidirectional_attention", False, None)
    head_dim = config.size("head_dim")
    config.set_default("head_dim", head_dim)
    arguments = read_llama(config, read_rotary=_read_rotary)
    scalar = config.number("query_pre_attn_scalar", 256)
    if scalar == 0:
        config.refuse("query_pre_attn_scalar", scalar, "positive numbers")
    count = arguments["num_layers"]
    pattern, types = config.size("sliding_window_pattern", 6), config.pop("layer_types")
    if types is None:
        types = [SLIDING if (i + 1) % pattern else FULL for i in range(count)]
    window = config.pop("sliding_window", 4096)
    return {
        **arguments,
        **_FIXED,
        "query_scale": (head_dim / scalar) ** 0.5,
        "attention": forms_of_types(config, types, count, window),
    }


def _read_rotary(config: Config) -> dict:
    """Returns the rotary arguments; `rope_parameters` has a table for each type of layer."""
    tables = config.pop("rope_parameters") or {}
    if not isinstance(tables, dict) or set(tables) - {FULL, SLIDING}:
        config.refuse("rope_parameters", tables, f"a table for each of {FULL} and {SLIDING}")
    # Keys of transformers 4.
    scaling, base = config.pop("rope_scaling"), config.pop("rope_theta")
    local = config.pop("rope_local_base_freq")
    full = _table(config, "rope_scaling", scaling or {})
    old = {FULL: {**full, "rope_theta": base}, SLIDING: {"rope_theta": local}}
    results = {}
    for kind, default in ((FULL, 1_000_000.0), (SLIDING, 10_000.0)):
        key = f"rope_parameters.{kind}"
        table = {k: v for k, v in old[kind].items() if v is not None}
        for name, value in _table(config, key, tables.get(kind) or {}).items():
            if table.setdefault(name, value) != value:
                config.refuse(f"{key}.{name}", value, f"only one value, and {table[name]} differs")
        base, scaling = read_table(config, key, table)
        results[kind] = float(default if base is None else base), scaling
    if results[SLIDING][1]:
        config.refuse(f"rope_parameters.{SLIDING}", results[SLIDING][1], "no scaling of this table")
    return {
        "rotary_base": results[FULL][0],
        "rotary_scaling": results[FULL][1],
        "local_rotary_base": results[SLIDING][0],
    }


def _table(config: Config, key: str, table) -> dict:
    if not isinstance(table, dict):
        config.refuse(key, table, "a table of settings")
    return table


def _write(arguments: Mapping) -> dict:
    types, window = types_of_forms("Gemma 3", arguments)
    config = write_llama(arguments)
    for key in ("hidden_act", "mlp_bias", "rope_theta", "rope_scaling"):
        config.pop(key, None)
    scalar = config["head_dim"] / arguments["query_scale"] ** 2
    if abs(scalar - round(scalar)) > 1e-6 * scalar:
        raise UsageError(
            "head_dim / query_scale ** 2 must be an integer, the query_pre_attn_scalar of Gemma 3. "
            f"Received: model.query_scale={arguments['query_scale']}."
        )
    local = arguments["local_rotary_base"] or 10_000.0
    full = write_table(arguments["rotary_scaling"])
    return {
        **config,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": round(scalar),
        "sliding_window": window or 4096,
        "layer_types": types,
        # transformers 4 reads the first three, transformers 5 the table.
        "rope_theta": arguments["rotary_base"],
        "rope_local_base_freq": local,
        **({"rope_scaling": full} if arguments["rotary_scaling"] else {}),
        "rope_parameters": {
            FULL: {**full, "rope_theta": arguments["rotary_base"]},
            SLIDING: {"rope_type": "default", "rope_theta": local},
        },
    }


def _read_layers(layers: Mapping) -> dict:
    """Returns the arguments that layers with and without a window have in common."""
    settings = [layer.settings for name, layer in layers.items() if is_block(name)]
    local = [s for s in settings if s["attention"] != "plain"]
    full = [s for s in settings if s["attention"] == "plain"] or local
    return {
        **tied(layers),
        **read_forms(layers),
        **_FIXED,
        "rotary_base": full[0]["rotary_base"],
        "rotary_scaling": full[0]["rotary_scaling"],
        "local_rotary_base": local[0]["rotary_base"] if local else 0.0,
    }


def _norm(name: str) -> tuple[list[str], list[str]]:
    return [f"model.layers.{{}}.{name}.weight"], [""]


_NORMS = {
    "attention_norm": "input_layernorm",
    "attention_post_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}
# The file has the scale minus 1.
_FROM_ZERO = Join(
    shapes=lambda shape: [shape],
    join=lambda parts: parts[0] + 1.0,
    split=lambda value: [value - 1.0],
)
_SCALES = (*_NORMS, "attention/query_norm", "attention/key_norm")

GEMMA3 = dataclasses.replace(
    LLAMA,
    name="Gemma 3",
    has_blocks=lambda settings: LLAMA.has_blocks(settings) and settings["post_norm"],
    arguments=(*LLAMA.arguments, "query_scale"),
    tensors={
        **LLAMA.tensors,
        **{f"block_{{}}/{path}/scale": _norm(name) for path, name in _NORMS.items()},
    },
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    read=_read,
    write=_write,
    read_layers=_read_layers,
    joins={
        "final_norm/scale": _FROM_ZERO,
        **{f"block_{{}}/{path}/scale": _FROM_ZERO for path in _SCALES},
    },
    backbones=(),
    read_backbone=None,
    write_backbone=None,
)
