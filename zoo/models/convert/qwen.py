"""Qwen2, Qwen2.5 and Qwen3 in transformers: Llamas with biases, or normalized queries and keys.

Qwen2ForCausalLM has biases of the projections to queries, keys and values. Qwen3ForCausalLM has RMS
normalization of queries and keys per head instead. Later layers may have windows of attention.
"""

import dataclasses
from collections.abc import Mapping

from zoo.models.convert.family import Config
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


def _read_attention(config: Config, num_layers: int) -> str:
    """Returns the form of attention of all layers, from four keys that describe the windows."""
    has_windows = config.flag("use_sliding_window", False)
    window, first = config.pop("sliding_window", 4096), config.pop("max_window_layers", 28)
    types = config.pop("layer_types")
    has_windows = has_windows and window is not None
    if types is None:
        types = [FULL] * num_layers
        if has_windows:
            first = config.natural("max_window_layers", first)
            types = [SLIDING if i >= first else FULL for i in range(num_layers)]
    return forms_of_types(config, types, num_layers, window if has_windows else None)


def _write_attention(arguments: Mapping) -> dict:
    types, window = types_of_forms("Qwen", arguments)
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "max_window_layers": types.index(SLIDING) if window else len(types),
        "layer_types": types,
    }


def _reader(**fixed):
    def read(config: Config) -> dict:
        config.set_default("max_position_embeddings", 32_768)
        if "query_key_norm" in fixed:
            config.set_default("head_dim", 128)
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
