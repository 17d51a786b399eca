"""Qwen2, Qwen2.5 and Qwen3 in transformers: Llamas with biases, or normalized queries and keys.

Qwen2ForCausalLM has biases of the projections to queries, keys and values. Qwen3ForCausalLM has RMS
normalization of queries and keys per head instead. Later layers may have windows of attention.
"""

import dataclasses
import re
from collections.abc import Mapping

from zoo.errors import UsageError
from zoo.models.convert.family import Config
from zoo.models.convert.llama import LLAMA, join_forms, read_forms, read_llama, write_llama

_FULL, _SLIDING = "full_attention", "sliding_attention"


def _read_attention(config: Config, num_layers: int) -> str:
    """Returns the form of attention of all layers, from four keys that describe the windows."""
    has_windows = config.flag("use_sliding_window", False)
    window, first = config.pop("sliding_window", 4096), config.pop("max_window_layers", 28)
    types = config.pop("layer_types")
    has_windows = has_windows and window is not None
    if types is None:
        types = [_FULL] * num_layers
        if has_windows:
            first = config.natural("max_window_layers", first)
            types = [_SLIDING if i >= first else _FULL for i in range(num_layers)]
    if not isinstance(types, list) or len(types) != num_layers or {*types} - {_FULL, _SLIDING}:
        config.refuse("layer_types", types, f"{num_layers} of {_FULL} or {_SLIDING}")
    if _SLIDING not in types:
        return "plain"
    if not has_windows:
        config.refuse("layer_types", types, f"no {_SLIDING} without a sliding_window in use")
    sliding = f"window:{config.positive('sliding_window', window)}"
    return join_forms([sliding if kind == _SLIDING else "plain" for kind in types])


def _write_attention(arguments: Mapping) -> dict:
    count = arguments["num_layers"]
    forms = arguments["attention"].split(",")
    forms = forms * count if len(forms) == 1 else forms
    windows = sorted({form for form in forms if form != "plain"})
    if len(windows) > 1 or (windows and not re.fullmatch(r"window:\d+", windows[0])):
        raise UsageError(
            "Qwen has layers with plain attention and layers with the same window, without "
            f"dilation. Received: model.attention={arguments['attention']!r}."
        )
    return {
        "use_sliding_window": bool(windows),
        "sliding_window": int(windows[0].partition(":")[2]) if windows else None,
        "max_window_layers": forms.index(windows[0]) if windows else count,
        "layer_types": [_FULL if form == "plain" else _SLIDING for form in forms],
    }


def _reader(**fixed):
    def read(config: Config) -> dict:
        arguments = read_llama(config)
        attention = _read_attention(config, arguments["num_layers"])
        return {**arguments, **fixed, "attention": attention}

    return read


def _write(arguments: Mapping) -> dict:
    config = {**write_llama(arguments), **_write_attention(arguments)}
    del config["attention_bias"], config["mlp_bias"]
    return config


_COMMON = {
    "write": _write, "read_layers": read_forms, "backbones": (), "read_backbone": None,
    "write_backbone": None,
}  # fmt: skip
QWEN2 = dataclasses.replace(
    LLAMA,
    name="Qwen2",
    has_blocks=lambda settings: LLAMA.has_blocks(settings) and settings["query_key_value_bias"],
    arguments=(*LLAMA.arguments, "query_key_value_bias"),
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    read=_reader(query_key_value_bias=True),
    **_COMMON,
)
QWEN3 = dataclasses.replace(
    LLAMA,
    name="Qwen3",
    has_blocks=lambda settings: LLAMA.has_blocks(settings) and settings["query_key_norm"],
    arguments=(*LLAMA.arguments, "query_key_norm"),
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    read=_reader(query_key_norm=True),
    **_COMMON,
)
