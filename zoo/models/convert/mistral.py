"""Mistral in transformers, MistralForCausalLM: a Llama with windows of attention."""

import dataclasses
from collections.abc import Mapping

from zoo.errors import UsageError
from zoo.models.convert.family import Config
from zoo.models.convert.llama import LLAMA, read_forms, read_llama, write_llama


def _read(config: Config) -> dict:
    # Both libraries count the own position: W positions from t - W + 1 to t.
    window = config.pop("sliding_window", 4096)
    config.set_default("num_key_value_heads", 8)
    config.set_default("max_position_embeddings", 131_072)
    attention = "plain" if window is None else f"window:{config.positive('sliding_window', window)}"
    return {**read_llama(config), "attention": attention}


def _write(arguments: Mapping) -> dict:
    name, _, window = arguments["attention"].partition(":")
    if name != "window" or not window.isdigit():
        raise UsageError(
            "Mistral has the same window of attention, without dilation, in all layers. Received: "
            f"model.attention={arguments['attention']!r}."
        )
    config = {**write_llama(arguments), "sliding_window": int(window)}
    del config["attention_bias"], config["mlp_bias"]
    return config


MISTRAL = dataclasses.replace(
    LLAMA,
    name="Mistral",
    has_blocks=lambda settings: (
        LLAMA.has_blocks(settings) and settings["attention"].startswith("window:")
    ),
    model_type="mistral",
    architecture="MistralForCausalLM",
    read=_read,
    write=_write,
    read_layers=read_forms,
    backbones=(),
    read_backbone=None,
    write_backbone=None,
)
