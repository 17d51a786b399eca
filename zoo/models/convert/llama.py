"""Llama in other libraries: LlamaForCausalLM of transformers and LlamaBackbone of KerasHub."""

import re
from collections.abc import Mapping

from zoo.errors import UsageError
from zoo.models import llama
from zoo.models.convert.family import Config, Family, is_block, tensors, tied
from zoo.models.convert.rotary import read_rotary, write_rotary


def read_llama(config: Config, read_rotary=read_rotary) -> dict:
    """Returns the builder arguments of a Llama, or of a relative with the same keys."""
    hidden_dim, num_heads = config.size("hidden_size"), config.size("num_attention_heads")
    head_dim = config.pop("head_dim")
    head_dim = 0 if head_dim is None else config.positive("head_dim", head_dim)
    config.expect("hidden_act", "silu", "swish")
    config.expect("attention_bias", False)
    config.expect("mlp_bias", False)
    config.expect("attention_dropout", 0.0)
    config.expect("partial_rotary_factor", None, 1.0)
    return {
        "vocabulary_size": config.size("vocab_size"),
        "sequence_length": config.size("max_position_embeddings", 2048),
        "num_layers": config.size("num_hidden_layers"),
        "hidden_dim": hidden_dim,
        "num_heads": num_heads,
        "num_key_value_heads": config.size("num_key_value_heads", num_heads),
        "intermediate_dim": config.size("intermediate_size"),
        "tie_weights": config.flag("tie_word_embeddings", False),
        "epsilon": config.number("rms_norm_eps", 1e-6),
        "head_dim": 0 if head_dim == hidden_dim / num_heads else head_dim,
        **read_rotary(config),
    }


def _read(config: Config) -> dict:
    config.expect("sliding_window", None)
    return read_llama(config)


def write_llama(arguments: Mapping) -> dict:
    """Returns the keys of config.json that Llama and its relatives share."""
    return {
        "vocab_size": arguments["vocabulary_size"],
        "max_position_embeddings": arguments["sequence_length"],
        "num_hidden_layers": arguments["num_layers"],
        "hidden_size": arguments["hidden_dim"],
        "num_attention_heads": arguments["num_heads"],
        "num_key_value_heads": arguments["num_key_value_heads"] or arguments["num_heads"],
        "head_dim": arguments["head_dim"] or arguments["hidden_dim"] // arguments["num_heads"],
        "intermediate_size": arguments["intermediate_dim"],
        "hidden_act": "silu",
        "rms_norm_eps": arguments["epsilon"],
        **write_rotary(arguments),
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": arguments["tie_weights"],
    }


def read_forms(layers: Mapping) -> dict:
    """Returns the arguments `tie_weights` and `attention` of a model; see `Family.read_layers`."""
    forms = [layer.settings["attention"] for name, layer in layers.items() if is_block(name)]
    return {**tied(layers), "attention": join_forms(forms)}


FULL, SLIDING = "full_attention", "sliding_attention"  # values of `layer_types`


def forms_of_types(config: Config, types, num_layers: int, window) -> str:
    """Returns the form of attention of all layers from `layer_types`.

    Args:
      config: config.json, for messages.
      types: value of `layer_types`.
      num_layers: number of layers.
      window: value of `sliding_window`; None if no window is in use.
    """
    if not isinstance(types, list) or len(types) != num_layers or set(types) - {FULL, SLIDING}:
        config.refuse("layer_types", types, f"{num_layers} of {FULL} or {SLIDING}")
    if SLIDING not in types:
        return "plain"
    if window is None:
        config.refuse("layer_types", types, f"no {SLIDING} without a sliding_window in use")
    sliding = f"window:{config.positive('sliding_window', window)}"
    return join_forms([sliding if kind == SLIDING else "plain" for kind in types])


def types_of_forms(family: str, arguments: Mapping) -> tuple[list[str], int | None]:
    """Returns `layer_types` and `sliding_window` of a model, None without a window.

    Raises:
      UsageError: if the layers have other forms of attention, or several windows.
    """
    count = arguments["num_layers"]
    forms = arguments["attention"].split(",")
    forms = forms * count if len(forms) == 1 else forms
    windows = sorted({form for form in forms if form != "plain"})
    if len(windows) > 1 or (windows and not re.fullmatch(r"window:\d+", windows[0])):
        raise UsageError(
            f"{family} has layers with plain attention and layers with the same window, without "
            f"dilation. Received: model.attention={arguments['attention']!r}."
        )
    window = int(windows[0].partition(":")[2]) if windows else None
    return [FULL if form == "plain" else SLIDING for form in forms], window


def join_forms(forms: list[str]) -> str:
    """Returns the builder argument `attention` for the form of each layer."""
    return ",".join(forms) if len(set(forms)) > 1 else forms[0]


def _read_backbone(backbone) -> dict:
    for name, expected in (
        ("rope_position_scaling_factor", 1.0),
        ("rope_frequency_adjustment_factor", None),
        ("rope_low_freq_factor", None),
        ("rope_high_freq_factor", None),
        ("rope_pretraining_sequence_length", None),
    ):
        if (value := getattr(backbone, name)) != expected:
            raise UsageError(
                f"A backbone with {name}={value!r} cannot be converted: the zoo's Llama supports "
                "only unscaled rotary positions."
            )
    return {
        "vocabulary_size": backbone.vocabulary_size,
        "num_layers": backbone.num_layers,
        "hidden_dim": backbone.hidden_dim,
        "num_heads": backbone.num_query_heads,
        "num_key_value_heads": backbone.num_key_value_heads,
        "intermediate_dim": backbone.intermediate_dim,
        "dropout": backbone.dropout,
        "rotary_base": float(backbone.rope_max_wavelength),
        "tie_weights": backbone.token_embedding.tie_weights,
        "epsilon": backbone.layer_norm_epsilon,
    }


def _write_backbone(arguments: Mapping) -> dict:
    for name in ("head_dim", "rotary_scaling"):
        if arguments[name]:
            raise UsageError(
                f"Conversion to KerasHub's Llama does not support model.{name}. Received: "
                f"{arguments[name]!r}. Use to_transformers."
            )
    names = ("vocabulary_size", "num_layers", "hidden_dim", "intermediate_dim", "dropout")
    return {
        **{name: arguments[name] for name in names},
        "num_query_heads": arguments["num_heads"],
        "num_key_value_heads": arguments["num_key_value_heads"] or arguments["num_heads"],
        "rope_max_wavelength": arguments["rotary_base"],
        "layer_norm_epsilon": arguments["epsilon"],
        "tie_word_embeddings": arguments["tie_weights"],
    }


# With the tensors that only Qwen has, which KerasHub's Llama lacks.
_OUTSIDE = {
    "embedding/embeddings": ("model.embed_tokens.weight", "token_embedding/embeddings"),
    "embedding/reverse_embeddings": ("lm_head.weight", "token_embedding/reverse_embeddings"),
    "final_norm/scale": ("model.norm.weight", "sequence_output_layernorm/scale"),
}
_BLOCK = {
    "attention_norm/scale": ("input_layernorm.weight", "self_attention_layernorm/scale"),
    "attention/query_key_value/kernel": (
        "self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight",
        "self_attention/query/kernel self_attention/key/kernel self_attention/value/kernel",
    ),
    "attention/query_key_value/bias": (
        "self_attn.q_proj.bias self_attn.k_proj.bias self_attn.v_proj.bias",
        "",
    ),
    "attention/query_norm/scale": ("self_attn.q_norm.weight", ""),
    "attention/key_norm/scale": ("self_attn.k_norm.weight", ""),
    "attention/output/kernel": (
        "self_attn.o_proj.weight",
        "self_attention/attention_output/kernel",
    ),
    "feed_forward_norm/scale": (
        "post_attention_layernorm.weight",
        "feedforward_layernorm/scale",
    ),
    "feed_forward/gate_up/kernel": (
        "mlp.gate_proj.weight mlp.up_proj.weight",
        "feedforward_gate_dense/kernel feedforward_intermediate_dense/kernel",
    ),
    "feed_forward/down/kernel": ("mlp.down_proj.weight", "feedforward_output_dense/kernel"),
}

LLAMA = Family(
    name="Llama",
    build=llama.build,
    has_blocks=lambda settings: settings["norm"] == "rms",
    arguments=(
        "num_key_value_heads",
        "rotary_base",
        "epsilon",
        "head_dim",
        "rotary_scaling",
    ),  # fmt: skip
    tensors=tensors("model.layers.{}.", _OUTSIDE, _BLOCK),
    prefix="model.",
    linear=lambda path: path.endswith("/kernel") or path == "embedding/reverse_embeddings",
    model_type="llama",
    architecture="LlamaForCausalLM",
    ignored=(".rotary_emb.inv_freq",),
    copies={"lm_head.weight": "embedding/embeddings"},
    backbones=("LlamaBackbone", "Llama3Backbone"),
    read=_read,
    write=write_llama,
    read_backbone=_read_backbone,
    write_backbone=_write_backbone,
    read_layers=tied,
)
