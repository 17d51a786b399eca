"""Longformer in other libraries: LongformerForMaskedLM of transformers."""

from collections.abc import Mapping

import numpy as np

from zoo.errors import RunError, UsageError
from zoo.layers.attention import parse_form
from zoo.models import longformer
from zoo.models.convert.family import Config, Family, Join, tensors

# Rows of the table of positions before the first position: padding, and the ids below it.
_FIRST_POSITION = 2


def _read(config: Config) -> dict:
    num_layers = config.size("num_hidden_layers")
    dropout = config.number("hidden_dropout_prob", 0.1)
    other = config.number("attention_probs_dropout_prob", 0.1)
    if other != dropout:
        config.refuse(
            "attention_probs_dropout_prob", other,
            f"only one dropout rate, and hidden_dropout_prob is {dropout}",
        )  # fmt: skip
    config.expect("hidden_act", "gelu")
    config.expect("tie_word_embeddings", True)
    config.expect("attention_mode", "longformer")
    config.expect("pad_token_id", _FIRST_POSITION - 1)
    if (types := config.size("type_vocab_size", 2)) != 1:
        config.refuse("type_vocab_size", types, "1")
    positions = config.size("max_position_embeddings", 512) - _FIRST_POSITION
    if positions < 1:
        raise RunError(
            f"{config.path}: max_position_embeddings must exceed {_FIRST_POSITION}. Received: "
            f"{positions + _FIRST_POSITION}."
        )
    return {
        "vocabulary_size": config.size("vocab_size"),
        "sequence_length": positions,
        "num_layers": num_layers,
        "hidden_dim": config.size("hidden_size"),
        "num_heads": config.size("num_attention_heads"),
        "intermediate_dim": config.size("intermediate_size"),
        "dropout": dropout,
        "attention": _attention(config, num_layers),
        "epsilon": config.number("layer_norm_eps", 1e-12),
        "start_token": config.pop("bos_token_id", 0),
        "separator_token": config.pop("sep_token_id", 2),
    }


def _attention(config: Config, num_layers: int) -> str:
    """Returns the windows; transformers counts both sides together."""
    sizes = config.pop("attention_window", 512)
    sizes = [sizes] * num_layers if isinstance(sizes, int) else sizes
    is_valid = isinstance(sizes, list) and len(sizes) == num_layers
    if not is_valid or not all(type(n) is int and n > 0 and n % 2 == 0 for n in sizes):
        raise RunError(
            f"{config.path}: attention_window must be an even positive integer or one per layer. "
            f"Received: {sizes!r}."
        )
    windows = [f"window:{n // 2}" for n in sizes]
    return windows[0] if len(set(windows)) == 1 else ",".join(windows)


def _write(arguments: Mapping) -> dict:
    forms = [parse_form(name) for name in arguments["attention"].split(",")]
    largest = max(form.window for form in forms)
    if any(form.dilation > 1 or largest % form.window for form in forms):
        raise UsageError(
            "transformers' Longformer requires windows without dilation, which divide the largest "
            f"window. Received: model.attention={arguments['attention']!r}."
        )
    return {
        "vocab_size": arguments["vocabulary_size"],
        "max_position_embeddings": arguments["sequence_length"] + _FIRST_POSITION,
        "num_hidden_layers": arguments["num_layers"],
        "hidden_size": arguments["hidden_dim"],
        "num_attention_heads": arguments["num_heads"],
        "intermediate_size": arguments["intermediate_dim"],
        "hidden_act": "gelu",
        "layer_norm_eps": arguments["epsilon"],
        "hidden_dropout_prob": arguments["dropout"],
        "attention_probs_dropout_prob": arguments["dropout"],
        "attention_window": [2 * form.window for form in forms],
        "type_vocab_size": 1,
        "pad_token_id": _FIRST_POSITION - 1,
        "bos_token_id": arguments["start_token"],
        "sep_token_id": arguments["separator_token"],
        "tie_word_embeddings": True,
    }


def _read_layers(layers: Mapping) -> dict:
    blocks = [layers[name] for name in layers if name.startswith("block_")]
    return {
        "attention": ",".join(block.settings["attention"] for block in blocks),
        **(layers["global_tokens"].settings if "global_tokens" in layers else {}),
    }


def _join_positions(parts) -> np.ndarray:
    """Returns the positions from the first one on, with the only token type added to each."""
    positions, types = parts
    return positions[_FIRST_POSITION:] + types


def _split_positions(positions: np.ndarray) -> list[np.ndarray]:
    width = positions.shape[1]
    unused = np.zeros((_FIRST_POSITION, width), positions.dtype)
    return [np.concatenate([unused, positions]), np.zeros((1, width), positions.dtype)]


def _position_shapes(shape) -> list[tuple[int, int]]:
    length, width = shape
    return [(length + _FIRST_POSITION, width), (1, width)]


_EMBEDDINGS = "longformer.embeddings"
_OUTSIDE = {
    "embedding/embeddings": (f"{_EMBEDDINGS}.word_embeddings.weight", ""),
    "positions/embeddings": (
        f"{_EMBEDDINGS}.position_embeddings.weight {_EMBEDDINGS}.token_type_embeddings.weight", ""
    ),
    "embedding_norm/gamma": (f"{_EMBEDDINGS}.LayerNorm.weight", ""),
    "embedding_norm/beta": (f"{_EMBEDDINGS}.LayerNorm.bias", ""),
    "transform/kernel": ("lm_head.dense.weight", ""),
    "transform/bias": ("lm_head.dense.bias", ""),
    "transform_norm/gamma": ("lm_head.layer_norm.weight", ""),
    "transform_norm/beta": ("lm_head.layer_norm.bias", ""),
    "mlm/bias": ("lm_head.bias", ""),
}  # fmt: skip
_SELF = "attention.self"


def _three(suffix: str, kind: str) -> str:
    return " ".join(f"{_SELF}.{name}{suffix}.{kind}" for name in ("query", "key", "value"))


_BLOCK = {
    "attention/query_key_value/kernel": (_three("", "weight"), ""),
    "attention/query_key_value/bias": (_three("", "bias"), ""),
    "attention/global_query_key_value/kernel": (_three("_global", "weight"), ""),
    "attention/global_query_key_value/bias": (_three("_global", "bias"), ""),
    "attention/output/kernel": ("attention.output.dense.weight", ""),
    "attention/output/bias": ("attention.output.dense.bias", ""),
    "attention_norm/gamma": ("attention.output.LayerNorm.weight", ""),
    "attention_norm/beta": ("attention.output.LayerNorm.bias", ""),
    "feed_forward/up/kernel": ("intermediate.dense.weight", ""),
    "feed_forward/up/bias": ("intermediate.dense.bias", ""),
    "feed_forward/down/kernel": ("output.dense.weight", ""),
    "feed_forward/down/bias": ("output.dense.bias", ""),
    "feed_forward_norm/gamma": ("output.LayerNorm.weight", ""),
    "feed_forward_norm/beta": ("output.LayerNorm.bias", ""),
}

LONGFORMER = Family(
    name="Longformer",
    build=longformer.build,
    has_blocks=lambda settings: settings["max_global"] > 0,
    arguments=("max_global", "epsilon"),
    tensors=tensors("longformer.encoder.layer.{}.", _OUTSIDE, _BLOCK),
    prefix="longformer.",
    linear=lambda path: path.endswith("/kernel"),
    model_type="longformer",
    architecture="LongformerForMaskedLM",
    ignored=(".position_ids",),
    copies={
        "lm_head.decoder.weight": "embedding/embeddings",
        "lm_head.decoder.bias": "mlm/bias",
    },
    read=_read,
    write=_write,
    read_layers=_read_layers,
    joins={"positions/embeddings": Join(_position_shapes, _join_positions, _split_positions)},
)
